"""The best answers to a question, from the scores of the tokens in all windows of its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


class AnswerWindow(NamedTuple):
    """Where the text of a window is in its sequence.

    Attributes:
        first: place of its first token in the sequence.
        starts: [k] where each token begins in the text, in code points.
        ends: [k] where it ends.
        own_begin: first of the tokens that an answer of this window may begin with.
        own_end: behind the last of them.
        none: place of the token that stands for no answer.
    """

    first: int
    starts: Int64
    ends: Int64
    own_begin: int
    own_end: int
    none: int


class Candidate(NamedTuple):
    """An answer [start, end) in the text and its score, the sum of two logits."""

    start: int
    end: int
    score: float


def no_answer_score(windows: Sequence[AnswerWindow], logits: Sequence[Float32]) -> float:
    """That there is no answer in any window: the least of them (arXiv:1810.04805, section 4.3)."""
    return min(float(scores[window.none].sum()) for window, scores in zip(windows, logits, strict=True))


def best_answers(
    windows: Sequence[AnswerWindow], logits: Sequence[Float32], text: str, count: int, most_tokens: int
) -> list[Candidate]:
    """The best different answers, best first.

    Args:
        windows: of one question.
        logits: of each [n, 2], as first and as last token.
        text: that the windows show.
        count: how many.
        most_tokens: of an answer.
    """
    found: dict[tuple[int, int], float] = {}
    for window, scores in zip(windows, logits, strict=True):
        for begin, end, score in _best_pairs(window, scores.astype(np.float64), 2 * count, most_tokens):
            start, stop = int(window.starts[begin]), int(window.ends[end])
            shown = text[start:stop]
            start, stop = start + len(shown) - len(shown.lstrip()), stop - len(shown) + len(shown.rstrip())
            if start < stop and score > found.get((start, stop), -np.inf):
                found[start, stop] = score
    best = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [Candidate(start, stop, score) for (start, stop), score in best]


def _best_pairs(
    window: AnswerWindow, scores: NDArray[np.float64], count: int, most_tokens: int
) -> list[tuple[int, int, float]]:
    """(first, last, score) of pairs of the window's text tokens."""
    size = len(window.starts)
    begins = np.arange(window.own_begin, window.own_end)
    if not len(begins):
        return []
    lasts = begins[:, None] + np.arange(most_tokens)  # [own, most_tokens]
    inside = scores[window.first : window.first + size]
    sums = np.where(lasts < size, inside[begins, 0][:, None] + inside[np.minimum(lasts, size - 1), 1], -np.inf)
    flat = sums.ravel()
    chosen = np.argpartition(-flat, min(count, len(flat)) - 1)[:count]
    rows, columns = np.divmod(chosen, most_tokens)
    return [
        (int(begins[row]), int(lasts[row, column]), float(sums[row, column]))
        for row, column in zip(rows, columns, strict=True)
        if np.isfinite(sums[row, column])
    ]
