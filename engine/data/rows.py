"""Read rows: from a position in the endless stream of epochs to the token ids of a row's sequences."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.data.draws import Draw, stable_seed
from engine.data.order import BUFFER_GROUPS, EpochOrder, groups_near, philox
from engine.data.plan import RowPlan, SequenceLayout, build_row_plan, cached_row_plan
from engine.data.windows import ShardOffsets, build_pair_plan
from preprocess.manifest import Manifest, check_shard
from preprocess.shards import ShardReader

Int64 = NDArray[np.int64]
_CACHED_GROUPS = 2 * BUFFER_GROUPS
_OPEN_SHARDS = 64  # of all readers of a process
_LEAST_OPEN_SHARDS = 4
SOURCE_SHIFT = 40  # bits; an epoch of one shard folder has fewer rows
_OPEN_WITH_OFFSETS = 8  # an open shard whose sentences were asked for holds all of them in memory


class Sentences(NamedTuple):
    """Where sentences and documents begin in a range of T tokens.

    Attributes:
        starts: int64, ascending: every place in [0, T) where a sentence begins, and T if one ends there.
        documents: int64, ascending: the same for documents.
        first_document: how many documents begin before the range.
    """

    starts: Int64
    documents: Int64
    first_document: int

    def document_at(self, place: int) -> int:
        """Number of the document at a place of the range, counted from 1 over all shards."""
        return self.first_document + int(self.documents.searchsorted(place, side="right"))


class PieceSentences(NamedTuple):
    """What a pair needs to know of a piece of n tokens.

    Attributes:
        starts: int64, ascending: places in (0, n) where a sentence begins.
        ends_sentence: whether a sentence ends with the piece.
        document: number of its document.
    """

    starts: Int64
    ends_sentence: bool
    document: int


@dataclass(frozen=True)
class Piece:
    """A piece of a document.

    Attributes:
        tokens: [n] token ids.
        final: whether the document ends with it (and its end token has room).
        word_starts: [n] bool, whether a word starts at each token; None where the shards do not store it.
        sentences: only where the layout makes pairs.
    """

    tokens: NDArray[np.unsignedinteger]
    final: bool
    word_starts: NDArray[np.bool_] | None = None
    sentences: PieceSentences | None = None


class TokenRange(NamedTuple):
    """A range of tokens.

    Attributes:
        tokens: [T] ids.
        word_starts: [T] bool, whether a word starts at each token; None where the shards do not store it.
        sentences: only where asked for.
    """

    tokens: NDArray[np.unsignedinteger]
    word_starts: NDArray[np.bool_] | None
    sentences: Sentences | None = None


@dataclass(frozen=True)
class Row:
    """The pieces of one row.

    Attributes:
        pieces: of documents.
        epoch: with ``index`` the key of its random draws.
        index: of the row in the plan; in a mixture with the number of the source in the bits above.
        other_text: text with documents other than the pieces'; only where the layout wants it.
    """

    pieces: tuple[Piece, ...]
    epoch: int
    index: int
    other_text: TokenRange | None = None


class TokenReader:
    """Tokens of a shard folder as one long array; a shard's digest is checked when it is first opened."""

    def __init__(self, manifest: Manifest, with_sentences: bool = False, num_readers: int = 1) -> None:
        """Read nothing yet.

        Args:
            manifest: the shard folder.
            with_sentences: whether ranges come with their sentences and documents.
            num_readers: readers that share the bound on open files.
        """
        self._manifest, self._with_sentences = manifest, with_sentences
        most = _OPEN_WITH_OFFSETS if with_sentences else _OPEN_SHARDS
        self._most_open = max(most // num_readers, min(most, _LEAST_OPEN_SHARDS))
        counts = np.array([shard.num_tokens for shard in manifest.shards], np.int64)
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        documents = np.array([shard.num_documents for shard in manifest.shards], np.int64)
        self._documents_before = np.cumsum(documents) - documents
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._checked: set[int] = set()

    def document_lengths(self) -> Int64:
        """[D] tokens of each document, over all shards."""
        lengths = [np.diff(self._shard(k).document_offsets) for k in range(len(self._manifest.shards))]
        return np.concatenate(lengths) if lengths else np.zeros(0, np.int64)

    def offsets(self) -> Iterator[ShardOffsets]:
        """Documents and sentences of each shard."""
        for number in range(len(self._manifest.shards)):
            shard = self._shard(number)
            yield ShardOffsets(shard.document_offsets, shard.sentence_offsets)

    def read(self, start: int, stop: int) -> TokenRange:
        """Tokens start to stop, counted over all shards.

        Raises:
            ValueError: if a shard is damaged, or one stores word starts and another does not.
        """
        tokens, word_starts = [], []
        for number, begin, end in self._parts(start, stop):
            shard = self._shard(number)
            tokens.append(shard.tokens(begin, end))
            word_starts.append(shard.word_starts(begin, end))
        stored = [part for part in word_starts if part is not None]
        if stored and len(stored) < len(word_starts):
            raise ValueError(
                f"{self._manifest.folder}: some shards store word starts and some do not; make the shards again"
            )
        sentences = self._sentences(start, stop) if self._with_sentences else None
        return TokenRange(np.concatenate(tokens), np.concatenate(stored) if stored else None, sentences)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The shards of a range, and begin and end of the part in each, counted within the shard."""
        number = int(np.searchsorted(self._offsets, start, side="right")) - 1
        while start < stop:
            base, end = int(self._offsets[number]), min(stop, int(self._offsets[number + 1]))
            if start < end:
                yield number, start - base, end - base
            start, number = end, number + 1

    def _sentences(self, start: int, stop: int) -> Sentences:
        """Sentences and documents of a range that is not empty."""
        starts: list[Int64] = []
        documents: list[Int64] = []
        first_document = None
        for number, begin, end in self._parts(start, stop):
            shard, shift = self._shard(number), int(self._offsets[number]) - start
            if first_document is None:
                before = int(np.searchsorted(shard.document_offsets, begin))
                first_document = int(self._documents_before[number]) + before
            last_part = shift + end == stop - start
            for found, offsets in ((starts, shard.sentence_offsets), (documents, shard.document_offsets)):
                low, high = np.searchsorted(offsets, (begin, end), side="left")
                ends_here = last_part and int(offsets[high]) == end  # else the next shard begins with this bound
                found.append(offsets[low : high + ends_here] + shift)
        assert first_document is not None
        return Sentences(np.concatenate(starts), np.concatenate(documents), first_document)

    def _shard(self, number: int) -> ShardReader:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        entry = self._manifest.shards[number]
        if number not in self._checked:
            check_shard(self._manifest.folder, entry)
            self._checked.add(number)
        if len(self._open) >= self._most_open:
            self._open.popitem(last=False)[1].close()
        self._open[number] = ShardReader(self._manifest.folder / entry.file, entry)
        return self._open[number]


class RowReader:
    """Rows of a shard folder in the order of a seed; all state is the position that the caller asks for."""

    def __init__(
        self,
        manifest: Manifest,
        seq_length: int,
        layout: SequenceLayout,
        seed: int,
        plan_folders: tuple[Path, ...],
        source: int = 0,
        num_readers: int = 1,
    ) -> None:
        """Plan the rows, or map the plan of an earlier run.

        Args:
            manifest: the shard folder.
            seq_length: tokens of a row.
            layout: tokens that the objective adds.
            seed: the run's seed.
            plan_folders: where the plan may be kept, best first.
            source: number of the folder among those of a mixture; each has an order and draws of its own.
            num_readers: readers that share the bound on open files.

        Raises:
            ValueError: if there are no documents, or one alone where the layout wants text of others.
        """
        self._tokens = TokenReader(manifest, layout.pairs, num_readers)
        num_tokens = sum(shard.num_tokens for shard in manifest.shards)

        def build() -> RowPlan:
            if layout.pairs:
                return build_pair_plan(self._tokens.offsets(), seq_length, layout)
            return build_row_plan(self._tokens.document_lengths(), seq_length, layout)

        self.plan: RowPlan = cached_row_plan(plan_folders, manifest.digest, num_tokens, build, seq_length, layout)
        if not self.plan.num_rows:
            raise ValueError(f"{manifest.folder} holds no documents to train on")
        if layout.other_text and sum(shard.num_documents for shard in manifest.shards) < 2:
            raise ValueError(
                f"{manifest.folder} holds one document, and the objective nsp takes text of another one; make the "
                "shards of more documents (where it is the held-out one: with a larger --heldout, or 0), or use "
                "--objective mlm,sop"
            )
        self._seed = stable_seed(Draw.SOURCES, seed, source) if source else seed
        self._layout, self._first_index = layout, source << SOURCE_SHIFT
        self._stored_groups = np.arange(len(self.plan.group_tokens))
        self._documents: dict[int, tuple[int, int]] = {}
        self._orders: OrderedDict[int, EpochOrder] = OrderedDict()
        self._groups: OrderedDict[int, TokenRange] = OrderedDict()

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return self.plan.num_rows

    def in_order(self, positions: range) -> list[Row]:
        """Rows at positions of the endless stream of shuffled epochs."""
        rows = []
        for epoch, inside in self._by_epoch(positions):
            order = self._order(epoch)
            rows += [self._row(index, epoch, order) for index in order.rows(inside).tolist()]
        return rows

    def places(self, positions: range) -> list[tuple[int, int]]:
        """Epoch and row at positions of the stream; another thread may read rows meanwhile."""
        found = []
        for epoch, inside in self._by_epoch(positions):
            order = EpochOrder(self.plan.group_offsets, self._seed, epoch)
            found += [(epoch, index) for index in order.rows(inside).tolist()]
        return found

    def describe(self, positions: range) -> str:
        """What a user can find the rows at positions by: their numbers in the plan."""
        return ", ".join(f"{row} of epoch {epoch}" for epoch, row in self.places(positions))

    def _by_epoch(self, positions: range) -> Iterator[tuple[int, Int64]]:
        """The epochs of positions of the stream, and the positions within each."""
        for epoch in range(positions.start // self.num_rows, (positions.stop - 1) // self.num_rows + 1):
            base = epoch * self.num_rows
            yield epoch, np.arange(max(positions.start - base, 0), min(positions.stop - base, self.num_rows))

    def row(self, index: int) -> Row:
        """Row ``index`` of the plan, among the rows stored around it."""
        return self._row(index, 0, None)

    def _row(self, index: int, epoch: int, order: EpochOrder | None) -> Row:
        plan = self.plan
        group = int(np.searchsorted(plan.group_offsets, index, side="right")) - 1
        text, base = self._group(group), int(plan.group_tokens[group, 0])
        pieces = []
        for piece in range(int(plan.row_offsets[index]), int(plan.row_offsets[index + 1])):
            start = int(plan.piece_start[piece]) - base
            stop = start + int(plan.piece_length[piece])
            starts = None if text.word_starts is None else text.word_starts[start:stop]
            sentences = None if text.sentences is None else _piece_sentences(text.sentences, start, stop)
            pieces.append(Piece(text.tokens[start:stop], bool(plan.piece_final[piece]), starts, sentences))
        if not self._layout.other_text:
            return Row(tuple(pieces), epoch, self._first_index + index)
        own = {piece.sentences.document for piece in pieces if piece.sentences is not None}
        other = self._group(self._other_group(group, own, (epoch, index), order))
        return Row(tuple(pieces), epoch, self._first_index + index, other)

    def _other_group(self, group: int, own: set[int], key: tuple[int, int], order: EpochOrder | None) -> int:
        """A group with a document beside each of a row's own: one of those that are in memory anyway, if any has it.

        Args:
            group: the row's own.
            own: its documents.
            key: epoch and row.
            order: of the epoch; None for the stored order.
        """
        draw = int(philox(self._seed, *key, Draw.OTHER_TEXT).random_raw())
        near = order.groups_near(group, draw) if order else groups_near(self._stored_groups, group, draw)
        for candidate in near:
            low, high = self._documents_of(candidate)
            if high > low or low not in own:
                return candidate
        raise AssertionError("two documents stand in no group")

    def _documents_of(self, group: int) -> tuple[int, int]:
        """Numbers of the first and the last document of a group."""
        if group not in self._documents:
            text = self._group(group)
            assert text.sentences is not None
            last = text.sentences.document_at(len(text.tokens) - 1)
            self._documents[group] = text.sentences.document_at(0), last
        return self._documents[group]

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


def _piece_sentences(sentences: Sentences, start: int, stop: int) -> PieceSentences:
    low, high = sentences.starts.searchsorted((start + 1, stop)).tolist()
    ends_sentence = high < len(sentences.starts) and int(sentences.starts[high]) == stop
    return PieceSentences(sentences.starts[low:high] - start, ends_sentence, sentences.document_at(start))
