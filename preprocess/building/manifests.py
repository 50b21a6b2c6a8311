"""The manifests of a finished run: totals of its blocks, and what the user is told."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from preprocess.building.job import BlockReport, ShardJob
from preprocess.corpus.inputs import Corpus, InputFile
from preprocess.files import sha256_of_file
from preprocess.manifest import FORMAT_VERSION, Manifest, ShardEntry, Source, write_manifest
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER
from preprocess.shards import library_versions
from preprocess.tokenizer import TOKENIZER_FILES, Tokenizer

COUNTED = ("documents", "sentences", "tokens")
DROP_REASONS = ("documents_without_tokens", "sentences_without_tokens")


def decisive_settings(job: ShardJob) -> dict[str, Any]:
    """Return the settings that decide the content, beside tokenizer and inputs."""
    return {"shard_bytes": job.shard_bytes, "compression": job.compression, "heldout": job.heldout}


def joint_digest(digests: Sequence[str]) -> str:
    """Return one digest (hex) for the texts of all blocks."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def describe_sources(corpus: Corpus, counts: Counter[tuple[int, str]]) -> list[Source]:
    """Return the manifest's sources; ``counts`` maps (source, "documents" | "sentences" | "tokens") to a number."""
    sources = []
    files_of: list[list[InputFile]] = [[] for _ in corpus.source_names]
    for file in corpus.files:
        files_of[file.source].append(file)
    for index, (name, files) in enumerate(zip(corpus.source_names, files_of, strict=True)):
        layouts = sorted({file.layout for file in files})
        sources.append(
            Source(
                name=name,
                layout=layouts[0] if len(layouts) == 1 else "mixed",
                files=[{"name": file.name, "num_bytes": file.num_bytes, "layout": file.layout} for file in files],
                num_documents=counts[index, "documents"],
                num_sentences=counts[index, "sentences"],
                num_tokens=counts[index, "tokens"],
            )
        )
    return sources


def write_manifests(job: ShardJob, tokenizer: Tokenizer, blocks: list[BlockReport]) -> Manifest:
    """Write the manifest of the held-out documents, then the main one."""
    dropped = sum((block.dropped for block in blocks), Counter())
    kept = _totals([block.kept for block in blocks])
    heldout = _totals([block.heldout for block in blocks])
    if not kept["documents"]:
        raise ValueError("no document is left to write: " + _why_empty(dropped, heldout))
    counts = kept | {f"heldout_{name}": count for name, count in heldout.items()}
    counts |= {f"dropped_{reason}": dropped[reason] for reason in DROP_REASONS}
    digest = joint_digest([block.input_sha256 for block in blocks])
    common: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "settings": decisive_settings(job) | {"input_sha256": digest, "versions": library_versions()},
    }
    identity = {"type": tokenizer.type, "digest": tokenizer.digest, "vocab_size": tokenizer.vocab_size}
    if job.heldout:
        manifest = Manifest(
            folder=job.output / HELDOUT_FOLDER,
            tokenizer=identity,
            sources=describe_sources(job.corpus, _source_counts(blocks, "heldout")),
            shards=[block.heldout for block in blocks if block.heldout],
            counts=heldout,
            **common,
        )
        write_manifest(manifest, manifest.folder)
    files = {name: sha256_of_file(job.output / TOKENIZER_FOLDER / name) for name in TOKENIZER_FILES}
    manifest = Manifest(
        folder=job.output,
        tokenizer=identity | {"files": files},
        sources=describe_sources(job.corpus, _source_counts(blocks, "kept")),
        shards=[block.kept for block in blocks if block.kept],
        counts=counts,
        **common,
    )
    write_manifest(manifest, manifest.folder)
    return manifest


def _why_empty(dropped: Counter[str], heldout: dict[str, int]) -> str:
    return (
        f"{dropped['documents_without_tokens']:,} documents have no token and {heldout['documents']:,} are held out; "
        "give more text or a smaller --heldout"
    )


def _totals(entries: Sequence[ShardEntry | None]) -> dict[str, int]:
    present = [entry for entry in entries if entry]
    return {
        "documents": sum(entry.num_documents for entry in present),
        "sentences": sum(entry.num_sentences for entry in present),
        "tokens": sum(entry.num_tokens for entry in present),
    }


def _source_counts(blocks: list[BlockReport], part: str) -> Counter[tuple[int, str]]:
    totals: Counter[tuple[int, str]] = Counter()
    for block in blocks:
        for (block_part, source), counts in block.source_counts.items():
            if block_part == part:
                totals.update({(source, name): count for name, count in zip(COUNTED, counts, strict=True)})
    return totals


def summary(manifest: Manifest) -> list[str]:
    """Return lines that tell the user what a finished folder holds."""
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
    for reason in DROP_REASONS:
        if counts[f"dropped_{reason}"]:
            lines.append(f"dropped {counts[f'dropped_{reason}']:,} {reason.replace('_', ' ')}")
    return lines
