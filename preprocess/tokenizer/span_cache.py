"""Ids of stretches of text that occur again and again, in arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from preprocess.tokenizer.pipeline import IntArray

MAX_CACHED_SPANS = 1 << 18
MAX_CACHED_TOKENS = 1 << 22
MAX_CACHED_SPAN_LENGTH = 64


class SpanCache(dict[str, int]):
    """Span -> row of a growing ragged table of ids; ``rows`` fills the rows of unseen spans.

    Long spans get a row but no key, so text without spaces cannot fill the memory with keys that never come again.
    """

    def __init__(self, encode: Callable[[list[str]], tuple[np.ndarray, IntArray]], dtype: npt.DTypeLike) -> None:
        """Take the function that returns the ids of spans and their counts."""
        super().__init__()
        self.encode = encode
        self.dtype = np.dtype(dtype)
        self.reset()

    def reset(self) -> None:
        """Forget every span."""
        self.clear()
        self.pending: list[str] = []
        self.num_rows = 0
        self.num_ids = 0
        self.lengths = np.zeros(1 << 14, np.int32)
        self.offsets = np.zeros(1 << 14, np.int64)
        self.ids = np.zeros(1 << 16, self.dtype)

    def __missing__(self, span: str) -> int:
        row = self.num_rows
        self.num_rows += 1
        self.pending.append(span)
        if len(span) <= MAX_CACHED_SPAN_LENGTH:
            self[span] = row
        return row

    def rows(self, spans: list[str]) -> npt.NDArray[np.int32]:
        """Return the row of each span, filled; the table is emptied first when it has grown past its bound."""
        if self.num_rows > MAX_CACHED_SPANS or self.num_ids > MAX_CACHED_TOKENS:
            self.reset()
        rows = np.fromiter(map(self.__getitem__, spans), np.int32, len(spans))
        if self.pending:
            self._flush()
        return rows

    def _flush(self) -> None:
        ids, lengths = self.encode(self.pending)
        total = len(ids)
        self.lengths = _grown(self.lengths, self.num_rows)
        self.offsets = _grown(self.offsets, self.num_rows)
        self.ids = _grown(self.ids, self.num_ids + total)
        first = self.num_rows - len(lengths)
        self.lengths[first : self.num_rows] = lengths
        self.offsets[first : self.num_rows] = self.num_ids + np.cumsum(lengths) - lengths
        self.ids[self.num_ids : self.num_ids + total] = ids
        self.num_ids += total
        self.pending = []

    def copy_to(self, ids: np.ndarray, begins: IntArray, rows: npt.NDArray[np.int32]) -> None:
        """Write the ids of each span at its place: most have one, the others go through a ragged gather."""
        lengths = self.lengths[rows]
        one = lengths == 1
        ids[begins[one]] = self.ids[self.offsets[rows[one]]]
        many = np.flatnonzero(lengths > 1)
        if not len(many):
            return
        counts = lengths[many].astype(np.int64)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        source = np.repeat(self.offsets[rows[many]], counts) + within
        ids[np.repeat(begins[many], counts) + within] = self.ids[source]


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    """Return ``array`` with room for at least ``size`` elements, doubling."""
    if size <= len(array):
        return array
    larger = np.zeros(max(size, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger
