"""Counts over all shards of a folder, in bounded memory and by several processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preprocess.folders.verification import check_ranges
from preprocess.manifest import Manifest, ShardEntry, check_shard
from preprocess.progress import progress_bar
from preprocess.shards import ShardArrays, ShardReader
from preprocess.tokenizer import Tokenizer
from preprocess.workers import run_blocks

GROUPS_PER_WORKER = 8
Int64 = npt.NDArray[np.int64]


@dataclass
class Statistics:
    """What was counted; V tokens in the vocabulary, R sources, L labels.

    Attributes:
        token_counts: [V] int64, how often each id occurs.
        unknown: [R] int64, unknown tokens of each source.
        labels: [L + 1] int64, documents of each label; the first is those without one.
        second_texts: documents with a second text.
        document_tokens, document_sentences, sentence_tokens: length -> how many have it. There are at most
            sqrt(2 T) different lengths, so that this stays small.
    """

    token_counts: Int64
    unknown: Int64
    labels: Int64
    second_texts: int = 0
    document_tokens: Counter[int] = field(default_factory=Counter)
    document_sentences: Counter[int] = field(default_factory=Counter)
    sentence_tokens: Counter[int] = field(default_factory=Counter)

    def add(self, other: Statistics) -> None:
        """Add the counts of other shards."""
        self.token_counts += other.token_counts
        self.unknown += other.unknown
        self.labels += other.labels
        self.second_texts += other.second_texts
        for name in ("document_tokens", "document_sentences", "sentence_tokens"):
            getattr(self, name).update(getattr(other, name))

    def add_shard(self, arrays: ShardArrays, unknown_id: int | None) -> None:
        """Add the counts of one shard."""
        self.token_counts += np.bincount(arrays.tokens, minlength=len(self.token_counts))
        if unknown_id is not None:
            places = np.flatnonzero(arrays.tokens == unknown_id)
            document = np.searchsorted(arrays.document_offsets, places, side="right") - 1
            self.unknown += np.bincount(arrays.document_source[document], minlength=len(self.unknown))
        if arrays.document_label is not None:
            self.labels += np.bincount(arrays.document_label + 1, minlength=len(self.labels))
        if arrays.second_offsets is not None:
            self.second_texts += int((arrays.second_offsets < arrays.document_offsets[1:]).sum())
        _count(self.document_tokens, np.diff(arrays.document_offsets))
        _count(self.sentence_tokens, np.diff(arrays.sentence_offsets))
        _count(self.document_sentences, np.diff(np.searchsorted(arrays.sentence_offsets, arrays.document_offsets)))


def _count(counter: Counter[int], lengths: Int64) -> None:
    values, counts = np.unique(lengths, return_counts=True)
    counter.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def no_statistics(manifest: Manifest) -> Statistics:
    """Return the statistics of nothing."""
    return Statistics(
        token_counts=np.zeros(manifest.tokenizer["vocab_size"], np.int64),
        unknown=np.zeros(len(manifest.sources), np.int64),
        labels=np.zeros(len(manifest.labels) + 1, np.int64),
    )


@dataclass(frozen=True)
class StatisticsJob:
    """Counts groups of shards; see ``workers.Job``."""

    manifest: Manifest
    unknown_id: int | None
    groups: list[list[ShardEntry]]

    def start(self) -> None:
        """Need nothing."""

    def run(self, state: None, block: int, progress: Callable[[int], None]) -> Statistics:
        """Count one group; ValueError if a shard differs from its digest, or has what the manifest does not know."""
        statistics = no_statistics(self.manifest)
        for entry in self.groups[block]:
            check_shard(self.manifest.folder, entry)
            reader = ShardReader(self.manifest.folder / entry.file, entry)
            try:
                arrays = reader.arrays()
            finally:
                reader.close()
            check_ranges(self.manifest, entry, arrays)
            statistics.add_shard(arrays, self.unknown_id)
            progress(entry.num_bytes)
        return statistics


def gather_statistics(manifest: Manifest, tokenizer: Tokenizer, num_workers: int = 1) -> Statistics:
    """Count over all shards of a folder; the result is the same for any number of workers."""
    num_groups = min(len(manifest.shards), GROUPS_PER_WORKER * max(1, num_workers))
    groups = [manifest.shards[group::num_groups] for group in range(num_groups)]
    job = StatisticsJob(manifest, tokenizer.special_ids.get("unk"), groups)
    whole = no_statistics(manifest)
    with progress_bar("reading", sum(entry.num_bytes for entry in manifest.shards)) as progress:
        for part in run_blocks(job, range(num_groups), num_workers, progress):
            whole.add(part)
    return whole


def mean(lengths: Mapping[int, int]) -> float:
    """Return the mean of counted lengths."""
    return sum(length * count for length, count in lengths.items()) / sum(lengths.values())


def median(lengths: Mapping[int, int]) -> float:
    """Return the median of counted lengths, the mean of the middle two if their number is even."""
    values = np.array(sorted(lengths))
    ends = np.cumsum([lengths[value] for value in values.tolist()])
    middle = [(ends[-1] - 1) // 2, ends[-1] // 2]
    return float(values[np.searchsorted(ends, middle, side="right")].mean())


def log_bins(lengths: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """Return (least, greatest, how many) for each power of two between the shortest and the longest."""
    counts: Counter[int] = Counter()
    for length, count in lengths.items():
        counts[length.bit_length()] += count
    return [(1 << (e - 1), (1 << e) - 1, counts[e]) for e in range(min(counts), max(counts) + 1)]
