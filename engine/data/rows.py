"""Read rows: from a position in the endless stream of epochs to the token ids of a row's sequences."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.data.order import BUFFER_GROUPS, EpochOrder
from engine.data.plan import RowPlan, SequenceLayout, cached_row_plan
from preprocess.manifest import Manifest, check_shard
from preprocess.shards import ShardReader

Int64 = NDArray[np.int64]
_CACHED_GROUPS = 2 * BUFFER_GROUPS
_OPEN_SHARDS = 64


@dataclass(frozen=True)
class Piece:
    """A piece of a document.

    Attributes:
        tokens: [n] token ids.
        final: whether the document ends with it (and its end token has room).
        word_starts: [n] bool, whether a word starts at each token; None where the shards do not store it.
    """

    tokens: NDArray[np.unsignedinteger]
    final: bool
    word_starts: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Row:
    """The pieces of one row, and the (epoch, row) that key its random draws."""

    pieces: tuple[Piece, ...]
    epoch: int
    index: int


class TokenRange(NamedTuple):
    """Token ids [n] of a range, and whether a word starts at each [n] (None where the shards do not store it)."""

    tokens: NDArray[np.unsignedinteger]
    word_starts: NDArray[np.bool_] | None


class TokenReader:
    """Tokens of a shard folder as one long array; a shard's digest is checked when it is first opened."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        counts = np.array([shard.num_tokens for shard in manifest.shards], np.int64)
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._checked: set[int] = set()

    def document_lengths(self) -> Int64:
        """[D] tokens of each document, over all shards."""
        lengths = [np.diff(self._shard(k).document_offsets) for k in range(len(self._manifest.shards))]
        return np.concatenate(lengths) if lengths else np.zeros(0, np.int64)

    def read(self, start: int, stop: int) -> TokenRange:
        """Tokens start to stop, counted over all shards.

        Raises:
            ValueError: if a shard is damaged, or one stores word starts and another does not.
        """
        first = int(np.searchsorted(self._offsets, start, side="right")) - 1
        tokens, word_starts = [], []
        while start < stop:
            end = min(stop, int(self._offsets[first + 1]))
            base = int(self._offsets[first])
            if start < end:
                shard = self._shard(first)
                tokens.append(shard.tokens(start - base, end - base))
                word_starts.append(shard.word_starts(start - base, end - base))
            start, first = end, first + 1
        stored = [part for part in word_starts if part is not None]
        if stored and len(stored) < len(word_starts):
            raise ValueError(
                f"{self._manifest.folder}: some shards store word starts and some do not; make the shards again"
            )
        return TokenRange(np.concatenate(tokens), np.concatenate(stored) if stored else None)

    def _shard(self, number: int) -> ShardReader:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        entry = self._manifest.shards[number]
        if number not in self._checked:
            check_shard(self._manifest.folder, entry)
            self._checked.add(number)
        if len(self._open) >= _OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        self._open[number] = ShardReader(self._manifest.folder / entry.file, entry)
        return self._open[number]


class RowReader:
    """Rows of a shard folder in the order of a seed; all state is the position that the caller asks for."""

    def __init__(
        self, manifest: Manifest, seq_length: int, layout: SequenceLayout, seed: int, plan_folders: tuple[Path, ...]
    ) -> None:
        """Plan the rows, or map the plan of an earlier run.

        Args:
            manifest: the shard folder.
            seq_length: tokens of a row.
            layout: tokens that the objective adds.
            seed: the run's seed.
            plan_folders: where the plan may be kept, best first.
        """
        self._tokens = TokenReader(manifest)
        num_tokens = sum(shard.num_tokens for shard in manifest.shards)
        self.plan: RowPlan = cached_row_plan(
            plan_folders, manifest.digest, num_tokens, self._tokens.document_lengths, seq_length, layout
        )
        if not self.plan.num_rows:
            raise ValueError(f"{manifest.folder} holds no documents to train on")
        self._seed = seed
        self._orders: OrderedDict[int, EpochOrder] = OrderedDict()
        self._groups: OrderedDict[int, TokenRange] = OrderedDict()

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return self.plan.num_rows

    def in_order(self, positions: range) -> list[Row]:
        """Rows at positions of the endless stream of shuffled epochs."""
        rows = []
        for epoch in range(positions.start // self.num_rows, (positions.stop - 1) // self.num_rows + 1):
            base = epoch * self.num_rows
            inside = np.arange(max(positions.start - base, 0), min(positions.stop - base, self.num_rows))
            rows += [self.row(index, epoch) for index in self._order(epoch).rows(inside).tolist()]
        return rows

    def row(self, index: int, epoch: int = 0) -> Row:
        """Row ``index`` of the plan."""
        plan = self.plan
        group = int(np.searchsorted(plan.group_offsets, index, side="right")) - 1
        (tokens, word_starts), base = self._group(group), int(plan.group_tokens[group, 0])
        pieces = []
        for piece in range(int(plan.row_offsets[index]), int(plan.row_offsets[index + 1])):
            start = int(plan.piece_start[piece]) - base
            inside = slice(start, start + int(plan.piece_length[piece]))
            starts = None if word_starts is None else word_starts[inside]
            pieces.append(Piece(tokens[inside], bool(plan.piece_final[piece]), starts))
        return Row(tuple(pieces), epoch, index)

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders[epoch] = EpochOrder(self.plan.group_offsets, self._seed, epoch)
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def _group(self, group: int) -> TokenRange:
        if group in self._groups:
            self._groups.move_to_end(group)
        else:
            start, stop = self.plan.group_tokens[group].tolist()
            self._groups[group] = self._tokens.read(start, stop)
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        return self._groups[group]
