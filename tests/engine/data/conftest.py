"""Tiny shards with documents of known tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from preprocess.manifest import FORMAT_VERSION, Manifest, read_manifest, write_manifest
from preprocess.shards import ShardArrays, ShardReader, write_shard

LENGTHS_OF_SHARDS = ((5, 61, 1, 18, 30), (7,), (40, 2, 3, 90, 11, 6, 13))


@dataclass(frozen=True)
class TinyShards:
    """A shard folder's manifest and its documents, all tokens different."""

    manifest: Manifest
    documents: list[list[int]]


@pytest.fixture
def tiny_shards(tmp_path: Path) -> TinyShards:
    """Three shards of 13 documents; token i of the corpus has the id i + 10."""
    folder = tmp_path / "shards"
    folder.mkdir()
    entries, documents, first = [], [], 10
    for number, lengths in enumerate(LENGTHS_OF_SHARDS):
        offsets = np.cumsum([0, *lengths]).astype(np.int64)
        tokens = np.arange(first, first + offsets[-1]).astype(np.uint16)
        documents += [part.tolist() for part in np.split(tokens, offsets[1:-1])]
        arrays = ShardArrays(tokens, offsets, offsets, np.zeros(len(lengths), np.uint16))
        entries.append(write_shard(folder / f"shard-{number:05d}.h5", arrays, "0" * 64))
        first += int(offsets[-1])
    manifest = Manifest(
        folder=folder,
        format_version=FORMAT_VERSION,
        tokenizer={"type": "wordpiece", "digest": "0" * 64, "vocab_size": first},
        sources=[],
        shards=entries,
        settings={},
        counts={},
    )
    write_manifest(manifest, folder)
    return TinyShards(read_manifest(folder), documents)


@dataclass(frozen=True)
class SentenceShards:
    """A shard folder's manifest and, of each document, its sentences; all tokens different."""

    manifest: Manifest
    documents: list[list[list[int]]]


def write_sentence_shards(folder: Path, shards: list[list[list[int]]], first: int = 10) -> SentenceShards:
    """Shards from the lengths of sentences: one list a shard, of one list a document; token i has the id i + first."""
    folder.mkdir(parents=True)
    entries, documents, token = [], [], first
    for number, lengths in enumerate(shards):
        begin = token
        for document in lengths:
            bounds = np.cumsum([token, *document]).tolist()
            documents.append([list(range(a, b)) for a, b in itertools.pairwise(bounds)])
            token = bounds[-1]
        flat = [size for document in lengths for size in document]
        arrays = ShardArrays(
            np.arange(begin, token).astype(np.uint32),
            np.cumsum([0, *flat]).astype(np.int64),
            np.cumsum([0, *map(sum, lengths)]).astype(np.int64),
            np.zeros(len(lengths), np.uint16),
        )
        entries.append(write_shard(folder / f"shard-{number:05d}.h5", arrays, "0" * 64))
    tokenizer = {"type": "wordpiece", "digest": "0" * 64, "vocab_size": max(token, 1 << 16)}
    manifest = Manifest(
        folder=folder,
        format_version=FORMAT_VERSION,
        tokenizer=tokenizer,
        sources=[],
        shards=entries,
        settings={},
        counts={},
    )
    write_manifest(manifest, folder)
    return SentenceShards(read_manifest(folder), documents)


@pytest.fixture
def make_sentence_shards(tmp_path: Path) -> Callable[[list[list[list[int]]]], SentenceShards]:
    """Write shards from the lengths of their sentences."""
    numbers = itertools.count()
    return lambda shards: write_sentence_shards(tmp_path / f"sentences-{next(numbers)}", shards)


@pytest.fixture
def rewrite_shards(tiny_shards: TinyShards) -> Callable[[Callable[[int, ShardArrays], ShardArrays]], Manifest]:
    """Write each shard anew with changed arrays (by its number); returns the new manifest."""

    def rewrite(change: Callable[[int, ShardArrays], ShardArrays]) -> Manifest:
        folder = tiny_shards.manifest.folder
        entries = []
        for number, entry in enumerate(tiny_shards.manifest.shards):
            reader = ShardReader(folder / entry.file, entry)
            arrays = reader.arrays()
            reader.close()
            entries.append(write_shard(folder / entry.file, change(number, arrays), "0" * 64))
        write_manifest(replace(tiny_shards.manifest, shards=entries), folder)
        return read_manifest(folder)

    return rewrite
