"""Rows of several shard folders in one stream: which folder each position takes its row from.

The stream is cut into blocks. A block holds each source as often as its share says, in an order drawn from (seed,
block) alone: any position is found without walking to it, no prefix strays further from the shares than a block does,
and nothing depends on ranks. A source that is through begins its next epoch, while the others are where they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.data.draws import Draw
from engine.data.order import permutation, philox
from engine.data.rows import Row, RowReader

MIN_BLOCK = 1000  # rows; shorter ones would be drawn too often


class Mixture:
    """The source of each position of an endless stream."""

    def __init__(self, shares: Sequence[int], seed: int) -> None:
        """Cut the stream into blocks.

        Args:
            shares: whole numbers above 0, in proportion to the rows of each source.
            seed: the run's seed.
        """
        common = math.gcd(*shares)
        times = -(-MIN_BLOCK * common // sum(shares))
        self._counts = np.array(shares, np.int64) // common * times
        self._size = int(self._counts.sum())
        self._block = lru_cache(maxsize=4)(lambda block: self._draw(seed, block))  # asked by two threads

    def _draw(self, seed: int, block: int) -> NDArray[np.int64]:
        order = permutation(self._size, philox(seed, block, 0, Draw.SOURCES))
        return np.repeat(np.arange(len(self._counts)), self._counts)[order]

    def sources(self, positions: range) -> NDArray[np.int64]:
        """Number of the source at each of n positions: [n]."""
        blocks = range(positions.start // self._size, -(-positions.stop // self._size))
        if not blocks:
            return np.zeros(0, np.int64)
        first = blocks.start * self._size
        return np.concatenate([self._block(block) for block in blocks])[
            positions.start - first : positions.stop - first
        ]

    def rows_before(self, position: int) -> NDArray[np.int64]:
        """Rows that each source gives to the positions before this one: [sources]."""
        block, inside = divmod(position, self._size)
        begun = np.bincount(self._block(block)[:inside], minlength=len(self._counts)) if inside else 0
        rows: NDArray[np.int64] = block * self._counts + begun
        return rows


class MixedRows:
    """The rows of several readers, mixed."""

    def __init__(self, readers: Sequence[RowReader], names: Sequence[str], mixture: Mixture) -> None:
        self._readers, self._names, self._mixture = readers, names, mixture

    @property
    def num_rows(self) -> int:
        """Rows of all sources, each counted once."""
        return sum(reader.num_rows for reader in self._readers)

    def in_order(self, positions: range) -> list[Row]:
        """Rows at positions of the endless stream."""
        sources = self._mixture.sources(positions)
        rows = [iter(reader.in_order(own)) for reader, own in zip(self._readers, self._own(positions), strict=True)]
        return [next(rows[source]) for source in sources.tolist()]

    def describe(self, positions: range) -> str:
        """What a user can find the rows at positions by."""
        parts = zip(self._names, self._readers, self._own(positions), strict=True)
        return "; ".join(f"{name}: {reader.describe(own)}" for name, reader, own in parts if own)

    def row(self, index: int) -> Row:
        """Row ``index`` of all sources one after another, in stored order."""
        firsts = list(itertools.accumulate((reader.num_rows for reader in self._readers), initial=0))
        source = next(number for number, first in enumerate(firsts[1:]) if index < first)
        return self._readers[source].row(index - firsts[source])

    def _own(self, positions: range) -> list[range]:
        """Positions that each source is asked for, counted in its own stream."""
        before, behind = self._mixture.rows_before(positions.start), self._mixture.rows_before(positions.stop)
        return [range(first, last) for first, last in zip(before.tolist(), behind.tolist(), strict=True)]
