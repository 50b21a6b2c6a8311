"""Windows over what is longer than a model takes: they overlap, and each element belongs to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

OVERLAP = 4  # a window shares up to one part in so many with the next


class Window(NamedTuple):
    """Elements [begin, end) that a window shows, of which [own_begin, own_end) are answered in it."""

    begin: int
    end: int
    own_begin: int
    own_end: int


def windows_of(sizes: Sequence[int], room: int, step: int = 0) -> list[Window]:
    """Cover elements by windows; one that has not more context in another window is its window's own.

    Args:
        sizes: tokens of each element, none above ``room``.
        room: tokens of a window.
        step: elements between the beginnings of two windows, if that many fit; 0: as many as leave an overlap of a
            quarter.

    Returns:
        At least one window; their own elements are all elements, in order.
    """
    bounds: list[tuple[int, int]] = []
    begin = 0
    while True:
        end, total = begin, 0
        while end < len(sizes) and total + sizes[end] <= room:
            total += sizes[end]
            end += 1
        bounds.append((begin, end))
        if end >= len(sizes):
            break
        if step:
            begin = min(begin + step, end)
            continue
        back, overlap = end, 0
        while back - 1 > begin and overlap + sizes[back - 1] <= room // OVERLAP:
            back -= 1
            overlap += sizes[back]
        begin = back
    middles = [(later[0] + earlier[1] + 1) // 2 for earlier, later in pairwise(bounds)]
    owned = [0, *middles, len(sizes)]
    return [Window(*bound, *own) for bound, own in zip(bounds, pairwise(owned), strict=True)]
