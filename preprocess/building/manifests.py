"""The manifests of a finished run, made from its plan and the records of its blocks; and what the user is told."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocess.building.work import BlockRecord
from preprocess.files import sha256_of_file
from preprocess.manifest import FORMAT_VERSION, Manifest, ShardEntry, Source, write_manifest
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER

COUNTED = ("documents", "sentences", "tokens")
ALWAYS_COUNTED = ("documents_without_tokens", "sentences_without_tokens")


def joint_digest(digests: Iterable[str]) -> str:
    """Return one digest (hex) for the texts of all blocks."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def write_manifests(output: Path, plan: Mapping[str, Any], records: Sequence[BlockRecord]) -> Manifest:
    """Write the manifest of the held-out documents, then the main one.

    Raises:
        ValueError: if no document is left.
    """
    dropped = sum((Counter(record.dropped) for record in records), Counter(dict.fromkeys(ALWAYS_COUNTED, 0)))
    kept = _totals([record.kept for record in records])
    heldout = _totals([record.heldout for record in records])
    if not kept["documents"]:
        raise ValueError("no document is left to write: " + _why_empty(dropped, heldout))
    counts = kept | {f"heldout_{name}": count for name, count in heldout.items()}
    counts |= {f"dropped_{reason}": dropped[reason] for reason in (*ALWAYS_COUNTED, *sorted(dropped))}
    if num_replaced := sum(record.num_replaced for record in records):
        counts["documents_with_replaced_bytes"] = num_replaced
    common: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "labels": plan["labels"],
        "settings": {
            **plan["settings"],
            "input_sha256": joint_digest(record.input_sha256 for record in records),
            "versions": plan["versions"],
        },
    }
    if plan["settings"]["heldout"]:
        manifest = Manifest(
            folder=output / HELDOUT_FOLDER,
            tokenizer=plan["tokenizer"],
            sources=_sources(plan, records, "heldout"),
            shards=[record.heldout for record in records if record.heldout],
            counts=heldout,
            **common,
        )
        write_manifest(manifest, manifest.folder)
    folder = output / TOKENIZER_FOLDER
    files = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())}
    manifest = Manifest(
        folder=output,
        tokenizer=plan["tokenizer"] | {"files": files},
        sources=_sources(plan, records, "kept"),
        shards=[record.kept for record in records if record.kept],
        counts=counts,
        **common,
    )
    write_manifest(manifest, manifest.folder)
    return manifest


def _why_empty(dropped: Counter[str], heldout: Mapping[str, int]) -> str:
    reasons = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in sorted(dropped.items()) if count]
    return (
        f"dropped were {', '.join(reasons) or 'none'}, and {heldout['documents']:,} documents are held out; "
        "give more text, a smaller --heldout, or weaker filters"
    )


def _totals(entries: Sequence[ShardEntry | None]) -> dict[str, int]:
    present = [entry for entry in entries if entry]
    return {
        "documents": sum(entry.num_documents for entry in present),
        "sentences": sum(entry.num_sentences for entry in present),
        "tokens": sum(entry.num_tokens for entry in present),
    }


def _sources(plan: Mapping[str, Any], records: Sequence[BlockRecord], part: str) -> list[Source]:
    totals: Counter[tuple[int, str]] = Counter()
    for record in records:
        for counts in record.source_counts:
            if counts.part == part:
                totals.update({(counts.source, name): getattr(counts, name) for name in COUNTED})
    return [
        Source(**{**fields, **{f"num_{name}": totals[index, name] for name in COUNTED}})
        for index, fields in enumerate(plan["sources"])
    ]


def summary(manifest: Manifest) -> list[str]:
    """Return lines that tell the user what a finished folder holds, and what was dropped."""
    counts = manifest.counts
    lines = [
        f"{source.name}: {source.num_documents:,} documents, {source.num_sentences:,} sentences, "
        f"{source.num_tokens:,} tokens ({source.layout})"
        for source in manifest.sources
    ]
    lines.append(
        f"{manifest.folder}: {len(manifest.shards):,} shards, {counts['documents']:,} documents, "
        f"{counts['sentences']:,} sentences, {counts['tokens']:,} tokens; held out {counts['heldout_documents']:,} "
        f"documents ({counts['heldout_tokens']:,} tokens)"
    )
    for name, count in counts.items():
        if name.startswith("dropped_") and count:
            lines.append(f"dropped {count:,} {name.removeprefix('dropped_').replace('_', ' ')}")
    if num_replaced := counts.get("documents_with_replaced_bytes"):
        lines.append(f"replaced bytes that are not UTF-8 in {num_replaced:,} documents")
    return lines
