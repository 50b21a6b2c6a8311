"""The order of rows in an epoch, as a pure function of (plan, seed, epoch).

An epoch permutes the plan's groups; the rows of ``BUFFER_GROUPS`` consecutive groups of that permutation are permuted
among themselves. A reader then holds few groups in memory, and any position is found without walking to it. The
permutations sort the raw output of Philox 4x64, which numpy keeps stable between versions (its ``permutation`` is not
promised to be).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from engine.data.draws import Draw

BUFFER_GROUPS = 32

Int64 = NDArray[np.int64]


def philox(seed: int, epoch: int, index: int, site: int) -> np.random.Philox:
    """A counter-based generator of its own for each (seed, epoch, index, site)."""
    key, counter = np.array([seed, epoch], np.uint64), np.array([0, 0, index, site], np.uint64)  # quicker than lists
    return np.random.Philox(key=key, counter=counter)


def permutation(size: int, generator: np.random.Philox) -> Int64:
    """A permutation of range(size): the order that sorts ``size`` raw 64-bit draws."""
    return np.argsort(generator.random_raw(size), kind="stable")


class EpochOrder:
    """Rows of one epoch by position."""

    def __init__(self, group_offsets: Int64, seed: int, epoch: int) -> None:
        """Permute the groups.

        Args:
            group_offsets: [G + 1] first row of each group and the number of rows.
            seed: the run's seed.
            epoch: counted from 0.
        """
        self.seed, self.epoch = seed, epoch
        self._group_offsets = group_offsets
        num_groups = len(group_offsets) - 1
        self._groups = permutation(num_groups, philox(seed, epoch, 0, Draw.GROUPS))
        rows_of_group = np.diff(group_offsets)[self._groups]
        first_group = np.arange(0, num_groups, BUFFER_GROUPS)
        buffer_rows = np.add.reduceat(rows_of_group, first_group)
        self._buffer_offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(buffer_rows)])
        self._buffers: dict[int, Int64] = {}
        self._places: Int64 | None = None

    def groups_near(self, group: int, draw: int) -> Iterator[int]:
        """Groups of the epoch, those of the buffer of ``group`` first; see ``groups_near``."""
        if self._places is None:
            self._places = np.argsort(self._groups)
        return groups_near(self._groups, int(self._places[group]), draw)

    def rows(self, positions: Int64) -> Int64:
        """Rows at positions of the epoch: [n] int64 -> [n] int64."""
        buffers = np.searchsorted(self._buffer_offsets, positions, side="right") - 1
        rows = np.empty(len(positions), np.int64)
        for buffer in np.unique(buffers).tolist():
            here = buffers == buffer
            rows[here] = self._buffer(buffer)[positions[here] - self._buffer_offsets[buffer]]
        return rows

    def _buffer(self, buffer: int) -> Int64:
        if buffer not in self._buffers:
            groups = self._groups[buffer * BUFFER_GROUPS : (buffer + 1) * BUFFER_GROUPS]
            rows = np.concatenate(
                [np.arange(self._group_offsets[g], self._group_offsets[g + 1]) for g in groups.tolist()]
            )
            self._buffers = {k: v for k, v in self._buffers.items() if k == buffer - 1}  # at most two stay in memory
            self._buffers[buffer] = rows[permutation(len(rows), philox(self.seed, self.epoch, buffer, Draw.ROWS))]
        return self._buffers[buffer]


def groups_near(groups: Int64, place: int, draw: int) -> Iterator[int]:
    """Groups one after another as seen from one of them.

    Args:
        groups: [G] in order.
        place: of the one.
        draw: decides with which group of its buffer to begin.

    Yields:
        All groups of its buffer, then all others: from behind the buffer on, then from the begin.
    """
    first = place // BUFFER_GROUPS * BUFFER_GROUPS
    behind = first + BUFFER_GROUPS
    begin = first + draw % len(groups[first:behind])
    for part in (groups[begin:behind], groups[first:begin], groups[behind:], groups[:first]):
        yield from part.tolist()
