"""Documents, sentences and tokens: counted in shards, given to sources, compared with what a manifest says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from preprocess.manifest import MANIFEST_NAME, Manifest, ShardEntry, Source
from preprocess.shards import ShardArrays

COUNTED = ("documents", "sentences", "tokens")
SourceCounts = Mapping[int, tuple[int, int, int]]  # source -> documents, sentences, tokens


def count_by_source(arrays: ShardArrays) -> dict[int, tuple[int, int, int]]:
    """Return the numbers of documents, sentences and tokens of each source that has any."""
    tokens = np.diff(arrays.document_offsets)
    sentences = np.diff(np.searchsorted(arrays.sentence_offsets, arrays.document_offsets))
    columns = [np.bincount(arrays.document_source, weights) for weights in (None, sentences, tokens)]  # each [R]
    return {
        source: (int(columns[0][source]), int(columns[1][source]), int(columns[2][source]))
        for source in np.flatnonzero(columns[0]).tolist()
    }


def with_counts(sources: Sequence[Source], shards: Iterable[SourceCounts]) -> list[Source]:
    """Return the sources with the numbers that they have in all shards together."""
    counts = [[0, 0, 0] for _ in sources]
    for shard in shards:
        for source, numbers in shard.items():
            counts[source] = [sum(pair) for pair in zip(counts[source], numbers, strict=True)]
    return [
        dataclasses.replace(source, num_documents=documents, num_sentences=sentences, num_tokens=tokens)
        for source, (documents, sentences, tokens) in zip(sources, counts, strict=True)
    ]


def totals(entries: Iterable[ShardEntry | Source]) -> dict[str, int]:
    """Return the numbers of documents, sentences and tokens of shards, or of sources."""
    entries = list(entries)
    return {name: sum(getattr(entry, f"num_{name}") for entry in entries) for name in COUNTED}


def other_counts(manifests: Iterable[Manifest]) -> dict[str, int]:
    """Return the sums of the counts that do not follow from the shards: of what was dropped, or changed."""
    follow = {*COUNTED, *(f"heldout_{name}" for name in COUNTED)}
    sums: dict[str, int] = {}
    for manifest in manifests:
        for name, count in manifest.counts.items():
            if name not in follow:
                sums[name] = sums.get(name, 0) + count
    return sums


def count_problems(manifest: Manifest, heldout: Manifest | None) -> list[str]:
    """Return where counts contradict the shards, or the numbers of the sources; one text for each bad manifest.

    Args:
        manifest: of a shard folder, or of a folder of held-out documents (which has no tokenizer files).
        heldout: that of its held-out documents.
    """
    found = count_problems(heldout, None) if heldout else []
    expected = totals(manifest.shards)
    if manifest.tokenizer.get("files"):
        kept_out = totals(heldout.shards if heldout else [])
        expected |= {f"heldout_{name}": count for name, count in kept_out.items()}
    problems = []
    for name, count in expected.items():
        if manifest.counts.get(name) != count:
            problems.append(f"counts.{name} is {manifest.counts.get(name, 'missing')}, and the shards have {count}")
    for name, count in totals(manifest.sources).items():
        if count != expected[name]:
            problems.append(f"the sources have {count} {name} together, and the shards have {expected[name]}")
    if problems:
        found.append(f"{manifest.folder / MANIFEST_NAME} contradicts itself: {'; '.join(problems)}")
    return found


def source_problems(manifest: Manifest, shards: Iterable[SourceCounts]) -> list[str]:
    """Return where the sources of a manifest have other numbers than in its shards; one text for all."""
    problems = []
    for said, found in zip(manifest.sources, with_counts(manifest.sources, shards), strict=True):
        for name in COUNTED:
            numbers = [getattr(source, f"num_{name}") for source in (said, found)]
            if numbers[0] != numbers[1]:
                problems.append(f"source {said.name!r} has {numbers[0]} {name}, and {numbers[1]} in the shards")
    return [f"{manifest.folder / MANIFEST_NAME} is wrong: {'; '.join(problems)}"] if problems else []
