"""Shards written anew with some of their documents, or with other numbers for sources and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocess.folders.counts import SourceCounts, count_by_source
from preprocess.folders.verification import read_checked
from preprocess.manifest import Manifest, ShardEntry
from preprocess.shards import ShardArrays, write_shard
from preprocess.tokenizer import load_tokenizer

LEFT_OUT = -1
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Origin:
    """Where shards are from, and what the numbers in them become.

    Attributes:
        sources: the new number of each of its sources; LEFT_OUT: its documents are left out.
        labels: the new number of each of its labels.
    """

    manifest: Manifest
    sources: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """One shard to read and one to write; ``documents`` limits it to a range of them."""

    origin: Origin
    entry: ShardEntry
    target: Path
    documents: tuple[int, int] | None = None


@dataclass(frozen=True)
class Rewritten:
    """The shard that was written, None if no document was left; source -> documents, sentences, tokens."""

    entry: ShardEntry | None
    counts: SourceCounts = field(default_factory=dict)


@dataclass(frozen=True)
class RewriteJob:
    """Does tasks; see ``workers.Job``.

    Attributes:
        optional: the optional datasets of what is written; those that a shard lacks are filled in with what their
            absence means.
        tokenizer: folder of the tokenizer that knows which tokens continue words.
    """

    tasks: Sequence[Task]
    optional: tuple[str, ...]
    compression: str
    tokenizer: Path

    def start(self) -> Bools | None:
        """Load what tells word starts where they are not stored."""
        return load_tokenizer(self.tokenizer).continuation if "word_starts" in self.optional else None

    def run(self, state: Bools | None, block: int, progress: Callable[[int], None]) -> Rewritten:
        """Do one task."""
        task = self.tasks[block]
        arrays = read_checked(task.origin.manifest, task.entry)
        if set(arrays.optional) - set(self.optional):
            path = task.origin.manifest.folder / task.entry.file
            raise ValueError(
                f"{path} has the optional datasets {list(arrays.optional)}, and the first shard of its folder has not; "
                "`python -m preprocess verify` tells which shards are wrong"
            )
        sources = np.array(task.origin.sources, np.int64)[arrays.document_source]
        chosen = sources != LEFT_OUT
        if task.documents is not None:
            number = np.arange(len(sources))
            chosen &= (number >= task.documents[0]) & (number < task.documents[1])
        progress(task.entry.num_bytes)
        if not chosen.any():
            return Rewritten(None)
        labels = arrays.document_label
        if labels is not None:  # -1 stays what it is: it picks the last
            labels = np.array([*task.origin.labels, -1], np.int32)[labels]
        arrays = arrays._replace(document_source=sources.astype(np.uint16), document_label=labels)
        arrays = select_documents(complete(arrays, self.optional, state), chosen)
        entry = write_shard(task.target, arrays, task.entry.input_sha256, self.compression)
        return Rewritten(entry, count_by_source(arrays))


def complete(arrays: ShardArrays, optional: Sequence[str], continuation: Bools | None) -> ShardArrays:
    """Add the optional arrays that are missing, saying what their absence says."""
    missing = set(optional) - set(arrays.optional)
    if "word_starts" in missing:
        assert continuation is not None
        starts = ~continuation[arrays.tokens]
        starts[arrays.document_offsets[:-1]] = True
        arrays = arrays._replace(word_starts=starts)
    if "document_label" in missing:
        arrays = arrays._replace(document_label=np.full(len(arrays.document_source), -1, np.int32))
    if "second_offsets" in missing:
        arrays = arrays._replace(second_offsets=arrays.document_offsets[1:].copy())
    return arrays


def select_documents(arrays: ShardArrays, chosen: Bools) -> ShardArrays:
    """Return the documents where ``chosen`` [D] is true, at least one, as arrays of their own."""
    if chosen.all():
        return arrays
    lengths = np.diff(arrays.document_offsets)
    of_token = np.repeat(chosen, lengths)
    of_sentence = chosen[np.searchsorted(arrays.document_offsets, arrays.sentence_offsets[:-1], side="right") - 1]
    document_offsets = _offsets(lengths[chosen])
    second = arrays.second_offsets
    if second is not None:
        second = document_offsets[:-1] + (second - arrays.document_offsets[:-1])[chosen]
    return ShardArrays(
        tokens=arrays.tokens[of_token],
        sentence_offsets=_offsets(np.diff(arrays.sentence_offsets)[of_sentence]),
        document_offsets=document_offsets,
        document_source=arrays.document_source[chosen],
        word_starts=None if arrays.word_starts is None else arrays.word_starts[of_token],
        document_label=None if arrays.document_label is None else arrays.document_label[chosen],
        second_offsets=second,
    )


def _offsets(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
