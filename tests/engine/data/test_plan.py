"""The row plan against a brute-force packer and its own promises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.plan import GROUP_PIECES, RowPlan, SequenceLayout, build_row_plan, cached_row_plan

MLM, LM = SequenceLayout(2, 0), SequenceLayout(1, 1)


def plan_of(lengths: np.ndarray) -> Callable[[], RowPlan]:
    return lambda: build_row_plan(lengths, 16, MLM)


def rows_of(plan: RowPlan) -> list[list[tuple[int, int, bool]]]:
    pieces = list(zip(plan.piece_start.tolist(), plan.piece_length.tolist(), plan.piece_final.tolist(), strict=True))
    return [pieces[a:b] for a, b in zip(plan.row_offsets[:-1], plan.row_offsets[1:], strict=True)]


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=300),
    seq_length=st.integers(8, 40),
    layout=st.sampled_from([MLM, LM]),
)
@settings(max_examples=60, deadline=None)
def test_every_token_stands_in_one_row_and_no_row_is_too_long(lengths, seq_length, layout):
    plan = build_row_plan(np.array(lengths, np.int64), seq_length, layout)
    seen = np.zeros(sum(lengths), np.int64)
    ends = set(np.cumsum(lengths).tolist())
    for row in rows_of(plan):
        assert row
        used = 0
        for start, length, final in row:
            seen[start : start + length] += 1
            used += length + layout.per_sequence + layout.per_document * final
            assert not final or start + length in ends
        assert used <= seq_length
    assert (seen == 1).all()


@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=200), seq_length=st.integers(8, 40))
@settings(max_examples=30, deadline=None)
def test_pieces_never_cross_documents(lengths, seq_length):
    plan = build_row_plan(np.array(lengths, np.int64), seq_length, MLM)
    starts = np.cumsum([0, *lengths[:-1]])
    for start, length in zip(plan.piece_start, plan.piece_length, strict=True):
        assert np.searchsorted(starts, start, side="right") == np.searchsorted(starts, start + length - 1, side="right")


def test_hand_worked_plan():
    # room of 8 tokens a row: pieces 8 | 8 + 2 | 3 -> sizes 10, 10, 4, 5 -> rows {10}, {10}, {5, 4}
    plan = build_row_plan(np.array([8, 10, 3], np.int64), 10, MLM)
    assert rows_of(plan) == [[(0, 8, True)], [(8, 8, False)], [(16, 2, True), (18, 3, True)]]
    assert plan.group_tokens.tolist() == [[0, 21]]
    assert plan.fill(10, MLM) == pytest.approx(29 / 30)


def test_end_token_is_left_out_where_the_last_piece_is_full():
    plan = build_row_plan(np.array([7, 6], np.int64), 8, LM)
    assert rows_of(plan) == [[(0, 7, False)], [(7, 6, True)]]


def test_fill_and_groups_on_many_documents():
    lengths = np.maximum(8, np.random.default_rng(0).lognormal(5.0, 1.1, 20_000)).astype(np.int64)
    plan = build_row_plan(lengths, 512, MLM)
    assert plan.fill(512, MLM) >= 0.995
    num_pieces = len(plan.piece_start)
    assert len(plan.group_offsets) - 1 == -(-num_pieces // GROUP_PIECES)
    for group, (first, last) in enumerate(plan.group_tokens.tolist()):
        rows = slice(int(plan.group_offsets[group]), int(plan.group_offsets[group + 1]) + 1)
        pieces = slice(int(plan.row_offsets[rows][0]), int(plan.row_offsets[rows][-1]))
        assert plan.piece_start[pieces].min() == first
        assert (plan.piece_start[pieces] + plan.piece_length[pieces]).max() == last


def test_small_pieces_of_one_size_fill_their_bins():
    plan = build_row_plan(np.full(1000, 2, np.int64), 16, MLM)
    assert plan.num_rows == 250


def test_plan_is_kept_and_mapped(tmp_path):
    lengths = np.array([30, 50, 70], np.int64)
    built = cached_row_plan([tmp_path], "digest", 150, plan_of(lengths), 16, MLM)
    assert len(list(tmp_path.iterdir())) == 1

    def never() -> RowPlan:
        raise AssertionError("the plan was to be mapped")

    mapped = cached_row_plan([tmp_path], "digest", 150, never, 16, MLM)
    assert rows_of(mapped) == rows_of(built)
    with pytest.raises(AssertionError, match="to be mapped"):
        cached_row_plan([tmp_path], "digest", 150, never, 17, MLM)


@pytest.mark.parametrize("damage", [b"garbage", b""])
@pytest.mark.parametrize("name", ["piece_length", "row_offsets"])
def test_damaged_plan_is_built_again(name, damage, tmp_path):
    lengths = np.array([30, 50, 70], np.int64)
    built = cached_row_plan([tmp_path], "digest", 150, plan_of(lengths), 16, MLM)
    next(tmp_path.glob(f"*/{name}.npy")).write_bytes(damage)
    assert rows_of(cached_row_plan([tmp_path], "digest", 150, plan_of(lengths), 16, MLM)) == rows_of(built)


def test_folder_that_cannot_be_written_does_no_harm(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    lengths = np.array([30, 50], np.int64)
    cached_row_plan([blocked / "plans", tmp_path / "plans"], "digest", 80, plan_of(lengths), 16, MLM)
    assert list((tmp_path / "plans").iterdir())


def test_row_without_room_is_an_error():
    with pytest.raises(ValueError, match="no room"):
        build_row_plan(np.array([5], np.int64), 2, MLM)


@pytest.mark.parametrize("name", ["piece_start", "piece_length", "row_offsets", "group_tokens"])
def test_flipped_bit_in_a_kept_plan_is_found_and_the_plan_made_anew(tmp_path, name):
    lengths = np.array([30, 50, 70], np.int64)
    built = cached_row_plan([tmp_path], "digest", 150, plan_of(lengths), 16, MLM)
    file = next(tmp_path.glob(f"*/{name}.npy"))
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(content)
    calls = []

    def read() -> RowPlan:
        calls.append(1)
        return build_row_plan(lengths, 16, MLM)

    for _ in range(2):
        assert rows_of(cached_row_plan([tmp_path], "digest", 150, read, 16, MLM)) == rows_of(built)
    assert len(calls) == 1  # mended at the first start
