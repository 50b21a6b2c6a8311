"""The plan of sentence pairs: documents cut into windows of whole sentences, which the objective splits into A and B.

Windows end where sentences end, so that neither a cut-off end nor a cut-off beginning can tell how a pair was made. A
sentence longer than a window is cut. A window filled from its beginning tends to begin with a long sentence (one that
had no room in the window before) and to end with a short one, which would tell swapped pairs from those in order: so
stretches of text are filled from their beginning or from their end, by chance.

What is drawn is keyed by shard and turn, not by the run's seed: the plan stays a pure function of shards and layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.data.draws import Draw
from engine.data.order import philox
from engine.data.plan import Pieces, RowPlan, SequenceLayout, pack_pieces, room_for_text

STRETCH_WINDOWS = 16
_TWO_POW_64 = 2.0**64

Int64 = NDArray[np.int64]


class ShardOffsets(NamedTuple):
    """Tokens before each document [D + 1] and each sentence [S + 1] of a shard; both begin with 0 and end alike."""

    documents: Int64
    sentences: Int64


def build_pair_plan(shards: Iterable[ShardOffsets], seq_length: int, layout: SequenceLayout) -> RowPlan:
    """Cut the documents of all shards into windows and pack them into rows.

    Args:
        shards: in stored order; only one is held at a time.
        seq_length: tokens of a row.
        layout: tokens that the objective adds, and the share of short windows.

    Raises:
        ValueError: if a row has no room for two tokens of text.
    """
    room = room_for_text(seq_length, layout)
    starts, ends, finals = [], [], []
    first = 0
    for number, shard in enumerate(shards):
        start, end, final = cut_windows(shard, room, layout.short_seq_prob, number)
        starts.append(first + start)
        ends.append(first + end)
        finals.append(final)
        first += int(shard.documents[-1])
    start, end = (np.concatenate(parts) if parts else np.zeros(0, np.int64) for parts in (starts, ends))
    final = np.concatenate(finals) if finals else np.zeros(0, np.bool_)
    return pack_pieces(Pieces(start, end - start, final), seq_length, layout)


def cut_windows(
    shard: ShardOffsets, room: int, short_seq_prob: float, number: int
) -> tuple[Int64, Int64, NDArray[np.bool_]]:
    """Cut the documents of a shard into windows that follow each other without a gap.

    Args:
        shard: its documents and sentences.
        room: tokens of the longest window, at least 2.
        short_seq_prob: share of the windows that end at the first sentence end behind a random length in [2, room].
        number: of the shard: a key of what is drawn.

    Returns:
        [W] first token, [W] last token + 1 and [W] whether the document ends there, in stored order.
    """
    bounds = _stretches(shard, STRETCH_WINDOWS * room)
    backward = philox(0, number, 0, Draw.WINDOW_DIRECTIONS).random_raw(len(bounds) - 1) >> np.uint64(63) == 1
    total = int(shard.documents[-1])
    starts, ends = [], []
    for reverse in (False, True):
        here = backward == reverse
        begin, end, sentences = bounds[:-1][here], bounds[1:][here], shard.sentences
        if reverse:
            begin, end, sentences = total - end, total - begin, total - sentences[::-1]
        start, stop = _fill_forward(sentences, begin, end, room, short_seq_prob, 2 * number + reverse)
        starts.append(total - stop if reverse else start)
        ends.append(total - start if reverse else stop)
    start, stop = np.concatenate(starts), np.concatenate(ends)
    order = np.argsort(start)
    start, stop = start[order], stop[order]
    return start, stop, shard.documents[np.searchsorted(shard.documents, stop)] == stop


def _stretches(shard: ShardOffsets, size: int) -> Int64:
    """Bounds of the documents and, in long ones, of sentences about every ``size`` tokens, ascending."""
    lengths = np.diff(shard.documents)
    parts = np.maximum(1, lengths // size)
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # of a stretch within its document
    wanted = np.repeat(shard.documents[:-1], parts) + number * np.repeat(lengths // parts, parts)
    above = np.searchsorted(shard.sentences, wanted)
    below = np.maximum(above - 1, 0)
    nearer = np.where(shard.sentences[above] - wanted < wanted - shard.sentences[below], above, below)
    found = np.where(number == 0, wanted, shard.sentences[nearer])
    return np.unique(np.append(found, shard.documents[-1]))


def _fill_forward(
    sentences: Int64, begin: Int64, end: Int64, room: int, short_seq_prob: float, key: int
) -> tuple[Int64, Int64]:
    """Cut stretches [begin, end) into windows from the left; all take their first at once, then their second, ...

    Returns:
        [W] first token and [W] last token + 1, in no order.
    """
    position = begin.copy()
    last = np.searchsorted(sentences, end)
    going = np.arange(len(position))
    starts, ends, turn = [position[:0]], [position[:0]], 0
    while len(going):
        raw = philox(0, key, turn, Draw.WINDOWS).random_raw(2 * len(going)).reshape(2, -1)
        target = np.where(raw[0] / _TWO_POW_64 < short_seq_prob, 2 + (raw[1] % (room - 1)).astype(np.int64), room)
        starts.append(position[going])
        ends.append(_window_ends(sentences, starts[-1], last[going], target, room))
        position[going] = ends[-1]
        going = going[ends[-1] < end[going]]
        turn += 1
    return np.concatenate(starts), np.concatenate(ends)


def _window_ends(sentences: Int64, start: Int64, last: Int64, target: Int64, room: int) -> Int64:
    """Where windows end.

    Args:
        sentences: [S + 1] tokens before each sentence.
        start: [W] first token of each window.
        last: [W] number of the sentence bound that ends the window's stretch.
        target: [W] tokens that the window should have.
        room: tokens that it can have.
    """
    first_end = np.searchsorted(sentences, start, side="right")
    wanted = np.searchsorted(sentences, start + target)
    wanted = np.minimum(np.maximum(wanted, first_end + 1), last)  # two sentences, so that there is a bound to split at
    fitting = np.searchsorted(sentences, start + room, side="right") - 1
    chosen = np.minimum(wanted, fitting)
    chosen -= (last - chosen == 1) & (chosen - first_end >= 2)  # a last sentence alone could not be split at a bound
    cut = start + room
    cut -= sentences[last] - cut == 1  # one token alone could not be split at all
    return np.where(fitting < first_end, cut, sentences[chosen])
