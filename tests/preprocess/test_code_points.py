"""White space is the same to all parts: to Python's own functions, to tokenizers and to segmenters."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from preprocess.code_points import is_visible, to_code_points
from preprocess.tokenizer import TrainingSettings, train
from preprocess.words import build_segmenter


def test_white_space_is_that_of_python() -> None:
    every = [chr(code_point) for code_point in range(sys.maxunicode + 1)]
    found = is_visible(np.arange(sys.maxunicode + 1, dtype=np.uint32)).tolist()
    assert found == [not character.isspace() for character in every]
    assert found == [bool(character.strip()) for character in every]
    assert found == [not re.match(r"\s", character) for character in every]


def test_code_points_of_a_text() -> None:
    text = "a\u00e9\u4e00\U0001f600\ud83d"
    assert to_code_points(text).tolist() == [ord(character) for character in text]
    assert to_code_points("").tolist() == []


@pytest.mark.parametrize(
    ("kind", "size"), [("unigram", 17), ("sentencepiece_bpe", 20), ("wordpiece", 40), ("bpe", 270)]
)
@pytest.mark.parametrize("separator", ["\x1c", "\x1d", "\x1e", "\x1f", " ", "\u3000"])
def test_a_word_behind_a_separator_begins_at_its_first_letter(kind: str, size: int, separator: str) -> None:
    """Sentencepiece takes a separator for a part of the token behind it, whose word begins behind the separator."""
    tokenizer = train(["one two three"] * 50, TrainingSettings(type=kind, vocab_size=size))
    text = f"one {separator}two"
    _, _, positions = tokenizer.encode_with_positions([text])
    starts = build_segmenter("spaces").word_starts(text)
    assert [at for at in positions.tolist() if at >= 0 and starts[at]] == [0, 5]
