"""The manifests of a finished run, made from its plan and the records of its blocks; and what the user is told."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocess.building.work import BlockRecord
from preprocess.files import sha256_of_file
from preprocess.folders import assembly
from preprocess.folders.counts import totals
from preprocess.manifest import Manifest, Source
from preprocess.output_folder import TOKENIZER_FOLDER

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
    kept, heldout = _part(records, "kept"), _part(records, "heldout")
    if not kept.shards:
        raise ValueError("no document is left to write: " + _why_empty(dropped, totals(heldout.shards)))
    counts = {f"dropped_{reason}": dropped[reason] for reason in (*ALWAYS_COUNTED, *sorted(dropped))}
    if num_replaced := sum(record.num_replaced for record in records):
        counts["documents_with_replaced_bytes"] = num_replaced
    settings = {
        **plan["settings"],
        "input_sha256": joint_digest(record.input_sha256 for record in records),
        "versions": plan["versions"],
    }
    files = {path.name: sha256_of_file(path) for path in sorted((output / TOKENIZER_FOLDER).iterdir())}
    return assembly.write_manifests(
        output,
        plan["tokenizer"] | {"files": files},
        [Source(**fields) for fields in plan["sources"]],
        plan["labels"],
        settings,
        kept,
        heldout if plan["settings"]["heldout"] else None,
        counts,
    )


def _why_empty(dropped: Counter[str], heldout: Mapping[str, int]) -> str:
    reasons = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in sorted(dropped.items()) if count]
    return (
        f"dropped were {', '.join(reasons) or 'none'}, and {heldout['documents']:,} documents are held out; "
        "give more text, a smaller --heldout, or weaker filters"
    )


def _part(records: Sequence[BlockRecord], part: str) -> assembly.FolderPart:
    """Return the shards of one part of all blocks, and the counts in each."""
    return assembly.FolderPart(
        [entry for record in records if (entry := getattr(record, part))],
        [
            {
                counts.source: (counts.documents, counts.sentences, counts.tokens)
                for counts in record.source_counts
                if counts.part == part
            }
            for record in records
        ],
    )


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
