"""The plan of a run: everything that decides its result, and how it differs from the plan of an earlier one."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from preprocess.building.settings import ShardSettings
from preprocess.building.versions import plan_versions
from preprocess.cleaning.settings import CleaningSettings
from preprocess.corpus.corpus import Corpus, CorpusSettings, InputFile
from preprocess.manifest import Manifest, Source
from preprocess.tokenizer import Tokenizer
from preprocess.words import segmenter_identity

MAX_NAMED_FILES = 5


def make_plan(settings: ShardSettings, corpus: Corpus, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the plan as JSON: tokenizer, settings, versions, sources with their files, labels, number of blocks."""
    return {
        "tokenizer": {"type": tokenizer.type, "digest": tokenizer.digest, "vocab_size": tokenizer.vocab_size},
        "settings": decisive_settings(settings),
        "versions": plan_versions(settings, corpus, tokenizer),
        "sources": [dataclasses.asdict(source) for source in describe_sources(corpus, Counter())],
        "labels": list(corpus.labels),
        "has_second": corpus.has_second,
        "num_blocks": corpus.num_blocks(settings.shard_bytes),
        "dropped_file": os.path.abspath(settings.dropped) if settings.dropped else None,
    }


def decisive_settings(settings: ShardSettings) -> dict[str, Any]:
    """Return the settings that decide the content, beside tokenizer and inputs; of cleaning, those that are not off."""
    decisive: dict[str, Any] = {
        "shard_bytes": settings.shard_bytes,
        "compression": settings.compression,
        "heldout": settings.heldout,
    }
    for field in dataclasses.fields(settings.cleaning):
        value = getattr(settings.cleaning, field.name)
        if value != field.default:
            decisive[field.name] = list(value) if isinstance(value, tuple) else value
    if settings.corpus.invalid_utf8 != "error":
        decisive["invalid_utf8"] = settings.corpus.invalid_utf8
    if settings.corpus.incomplete_records != "error":
        decisive["incomplete_records"] = settings.corpus.incomplete_records
    if settings.word_segmenter:
        decisive["word_segmenter"] = segmenter_identity(settings.word_segmenter, settings.user_dictionary)
    return decisive


def describe_sources(corpus: Corpus, counts: Counter[tuple[int, str]]) -> list[Source]:
    """Return the manifest's sources; ``counts`` maps (source, "documents" | "sentences" | "tokens") to a number."""
    files_of: list[list[InputFile]] = [[] for _ in corpus.source_names]
    for file in corpus.files:
        files_of[file.source].append(file)
    sources = []
    for index, (name, files) in enumerate(zip(corpus.source_names, files_of, strict=True)):
        layouts = sorted({file.layout for file in files})
        sources.append(
            Source(
                name=name,
                layout=layouts[0] if len(layouts) == 1 else "mixed",
                files=[file.description() for file in files],
                num_documents=counts[index, "documents"],
                num_sentences=counts[index, "sentences"],
                num_tokens=counts[index, "tokens"],
            )
        )
    return sources


def plan_of(manifest: Manifest) -> dict[str, Any]:
    """Return the plan that a finished folder was made by."""
    settings = dict(manifest.settings)
    settings.pop("input_sha256", None)
    versions = settings.pop("versions", {})
    empty = {"num_documents": 0, "num_sentences": 0, "num_tokens": 0}
    return {
        "tokenizer": {name: manifest.tokenizer.get(name) for name in ("type", "digest", "vocab_size")},
        "settings": settings,
        "versions": versions,
        "sources": [dataclasses.asdict(source) | empty for source in manifest.sources],
        "labels": list(manifest.labels),
    }


def setting_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs in tokenizer and settings, in the user's words."""
    found = {**before["settings"], "tokenizer": before["tokenizer"]["digest"]}
    wanted = {**now["settings"], "tokenizer": now["tokenizer"]["digest"]}
    return [
        f"{name} was {_value(found, name)} and is {_value(wanted, name)}"
        for name in dict.fromkeys((*wanted, *found))
        if found.get(name) != wanted.get(name)
    ]


def _value(settings: Mapping[str, Any], name: str) -> str:
    """Return a setting for the user; one that is not there has its default."""
    fields = (*dataclasses.fields(CleaningSettings), *dataclasses.fields(CorpusSettings))
    value = settings.get(name, {field.name: field.default for field in fields}.get(name))
    if isinstance(value, Mapping):  # a word segmenter with its version
        return " ".join(map(str, value.values()))
    return "off" if value is None or value == () else str(value)


def version_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return which libraries have another version."""
    found, wanted = before["versions"], now["versions"]
    names = dict.fromkeys((*wanted, *found))
    return [
        f"{name} was {found.get(name, 'not used')} and is {wanted.get(name, 'not used')}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]


def input_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return which files were added, removed or have another size or layout, in the user's words."""
    found, wanted = _files(before), _files(now)
    changes = []
    for name in dict.fromkeys((*found, *wanted)):
        if name not in wanted:
            changes.append(f"{name} is gone")
        elif name not in found:
            changes.append(f"{name} is new")
        elif found[name] != wanted[name]:
            changes.append(f"{name} was {_file_text(found[name])} and is {_file_text(wanted[name])}")
    if not changes and list(found) != list(wanted):
        changes.append("the files come in another order")
    if not changes and before["labels"] != now["labels"]:
        changes.append("the labels are others")
    if len(changes) > MAX_NAMED_FILES:
        changes[MAX_NAMED_FILES:] = [f"and {len(changes) - MAX_NAMED_FILES:,} more"]
    return changes


def _files(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    sources: Sequence[dict[str, Any]] = plan["sources"]
    return {f"{source['name']}/{file['name']}": file for source in sources for file in source["files"]}


def _file_text(file: Mapping[str, Any]) -> str:
    field = f" field {file['text_field']}" if "text_field" in file else ""
    return f"{file['num_bytes']:,} bytes of {file['layout']}{field}"
