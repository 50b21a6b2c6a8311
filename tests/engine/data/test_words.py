"""Whether shards tell where words start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from engine.data.rows import Piece, Row
from engine.data.source import RowSource


@dataclass
class FewRows:
    """Three rows of one piece each."""

    word_starts: np.ndarray | None
    num_rows: int = 3

    def row(self, index: int) -> Row:
        """Return the same tokens for every row; only the last stores what was given."""
        starts = self.word_starts if index == 2 else np.ones(4, bool)
        return Row((Piece(np.array([4, 5, 6, 4]), True, None if self.word_starts is None else starts),), 0, index)


@pytest.mark.parametrize(
    ("word_starts", "continuing", "known"),
    [
        (None, [], False),
        (None, [6], True),
        (None, [7], False),  # a continuation token that the text never has
        ([True, True, True, True], [6], False),  # what is stored wins
        ([True, True, False, True], [], True),
        ([False, True, True, True], [], False),  # the first token of a piece starts a word anyway
    ],
)
def test_whether_words_are_known(word_starts: list[bool] | None, continuing: list[int], known: bool) -> None:
    continuation = np.zeros(10, bool)
    continuation[continuing] = True
    reader = FewRows(None if word_starts is None else np.array(word_starts))
    assert RowSource({8: reader}, None).knows_words(continuation) is known
