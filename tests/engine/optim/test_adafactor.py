"""Pieces of matrices as rectangles, against brute force; factors through a checkpoint's interface."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.optim.adafactor import rectangles


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), data=st.data())
@settings(max_examples=300, deadline=None)
def test_rectangles_cover_a_piece_once_and_are_three_at_most(rows, columns, data):
    offset = data.draw(st.integers(0, rows * columns - 1))
    size = data.draw(st.integers(1, rows * columns - offset))
    matrix = torch.arange(rows * columns).view(rows, columns)
    piece = matrix.view(-1)[offset : offset + size].clone()
    cut = list(rectangles(offset, size, columns))
    assert len(cut) <= 3
    for rectangle in cut:
        assert torch.equal(rectangle.of(piece), matrix[rectangle.rows, rectangle.columns])
        rectangle.of(piece).fill_(-1)
    assert bool((piece == -1).all())
