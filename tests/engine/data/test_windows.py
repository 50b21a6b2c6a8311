"""Windows of pairs against a loop over the sentences: none too long, none lost, none cut without need."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.plan import SequenceLayout, build_row_plan, plan_digest
from engine.data.windows import ShardOffsets, build_pair_plan, cut_windows

PAIRS = SequenceLayout(3, 0, pairs=True, short_seq_prob=0.1)


def offsets_of(documents: list[list[int]]) -> ShardOffsets:
    """The offsets of documents given by the lengths of their sentences."""
    sentences = np.cumsum([0, *itertools.chain(*documents)]).astype(np.int64)
    return ShardOffsets(np.cumsum([0, *map(sum, documents)]).astype(np.int64), sentences)


def greedy(lengths: list[int], room: int) -> list[tuple[int, int]]:
    """Windows of one document from its beginning, sentence after sentence, none of them short by chance."""
    sentences = [(sum(lengths[:k]), sum(lengths[: k + 1])) for k in range(len(lengths))]
    windows = []
    while sentences:
        begin = sentences[0][0]
        whole = [sentence for sentence in sentences if sentence[1] - begin <= room]
        if not whole:
            end = begin + room - (sentences[-1][1] - begin - room == 1)
            sentences[0] = (end, sentences[0][1])
        else:
            if len(sentences) - len(whole) == 1 and len(whole) >= 3:
                whole = whole[:-1]
            end, sentences = whole[-1][1], sentences[len(whole) :]
        windows.append((begin, end))
    return windows


def mirrored(windows: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    return [(size - end, size - begin) for begin, end in reversed(windows)]


@given(
    documents=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=20),
    room=st.integers(5, 40),
)
@settings(max_examples=150, deadline=None)
def test_documents_are_filled_from_one_end_or_the_other(documents: list[list[int]], room: int) -> None:
    documents = [document for document in documents if sum(document) < 32 * room] or [[3, 4]]
    starts, ends, finals = (part.tolist() for part in cut_windows(offsets_of(documents), room, 0.0, 0))
    found = list(zip(starts, ends, strict=True))
    first = 0
    for document in documents:
        size = sum(document)
        inside = [(a - first, b - first) for a, b in found if first <= a < first + size]
        assert inside in (greedy(document, room), mirrored(greedy(document[::-1], room), size))
        first += size
    assert [end for end, final in zip(ends, finals, strict=True) if final] == np.cumsum([*map(sum, documents)]).tolist()


@given(
    documents=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=200), min_size=1, max_size=20),
    room=st.integers(2, 40),
    short=st.sampled_from([0.0, 0.1, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_no_token_is_lost_and_sentences_are_cut_only_where_they_must(
    documents: list[list[int]], room: int, short: float
) -> None:
    offsets = offsets_of(documents)
    starts, ends, finals = cut_windows(offsets, room, short, 3)
    assert starts[0] == 0 and ends[-1] == offsets.documents[-1]
    assert (starts[1:] == ends[:-1]).all()
    sizes = ends - starts
    assert (sizes >= 1).all() and (sizes <= room).all()
    assert ends[finals].tolist() == offsets.documents[1:].tolist()
    bounds = set(offsets.sentences.tolist())
    lengths = np.diff(offsets.sentences)
    for place in ends.tolist():
        if place not in bounds:
            assert lengths[np.searchsorted(offsets.sentences, place) - 1] > room


def test_both_directions_happen_also_inside_a_long_document() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 20_000).tolist()
    starts, ends, _ = cut_windows(offsets_of([lengths]), 61, 0.0, 0)
    bounds = np.cumsum([0, *lengths])
    next_sentence = bounds[np.searchsorted(bounds, ends[:-1]) + 1] - ends[:-1]
    sentence_before = starts[1:] - bounds[np.searchsorted(bounds, starts[1:]) - 1]
    full_right = (ends - starts)[:-1] + next_sentence > 61  # no room for the next sentence
    full_left = (ends - starts)[1:] + sentence_before > 61
    assert 0.45 < full_right.mean() < 0.999 and 0.45 < full_left.mean() < 0.999
    assert abs(full_right.mean() - full_left.mean()) < 0.1


def test_short_windows() -> None:
    lengths = np.random.default_rng(1).integers(1, 9, 50_000).tolist()
    offsets = offsets_of([lengths])
    room = 125
    none, some, all_ = (np.subtract(*cut_windows(offsets, room, share, 0)[1::-1]) for share in (0.0, 0.1, 1.0))
    assert (none >= room - 9).mean() > 0.93  # all but the last of a stretch
    assert 0.07 < (some < room - 9).mean() - (none < room - 9).mean() < 0.13
    shares, _ = np.histogram(all_, bins=[2, 33, 64, 95, 126])
    assert np.abs(shares / len(all_) - 0.25).max() < 0.06  # lengths are uniform
    assert all_.min() >= 2


def test_parts_of_windows_are_as_long_on_both_sides() -> None:
    """Else the lengths alone would tell swapped pairs from those in order."""
    lengths = np.random.default_rng(2).geometric(0.05, 200_000).tolist()
    offsets = offsets_of([lengths[k : k + 500] for k in range(0, len(lengths), 500)])
    starts, ends, _ = cut_windows(offsets, 125, 0.1, 0)
    low = np.searchsorted(offsets.sentences, starts, side="right")
    high = np.searchsorted(offsets.sentences, ends)
    several = high - low >= 2
    first = offsets.sentences[low[several]] - starts[several]
    last = ends[several] - offsets.sentences[high[several] - 1]
    difference = first - last
    assert abs(difference.mean()) < 5 * difference.std() / len(difference) ** 0.5


def test_plan_depends_on_the_shards_and_the_layout_alone() -> None:
    shards = [offsets_of([[5, 9, 30], [2], [8, 8, 8]]), offsets_of([[4, 4, 4, 4, 4, 4]])]
    first, second = (build_pair_plan(iter(shards), 24, PAIRS) for _ in range(2))
    assert first.piece_start.tolist() == second.piece_start.tolist()
    assert sorted(zip(first.piece_start, first.piece_length, strict=True))[-1][0] >= 70  # the second shard's tokens
    assert first.piece_length.sum() == 70 + 24
    assert first.fill(24, PAIRS) <= 1.0


def test_plans_of_pairs_have_their_own_names() -> None:
    plain = SequenceLayout(3, 0)
    short = SequenceLayout(3, 0, pairs=True, short_seq_prob=0.2)
    other = SequenceLayout(3, 0, pairs=True, short_seq_prob=0.1, other_text=True)
    names = [plan_digest("d", 64, layout) for layout in (plain, PAIRS, short, other)]
    assert len(set(names)) == 3 and names[1] == names[3]  # nsp and sop share their plan
    # Written down once: plans that users keep are found again.
    assert plan_digest("d", 64, SequenceLayout(2, 0)).startswith("3bccb972a36a34ecd23d6c2b38927943")


def test_row_without_room_for_a_pair_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"data\.seq_length 4 has no room for text beside 3 special tokens"):
        build_pair_plan([], 4, PAIRS)
    assert build_pair_plan([], 8, PAIRS).num_rows == 0
    assert build_row_plan(np.array([5], np.int64), 4, SequenceLayout(3, 0)).num_rows == 5
