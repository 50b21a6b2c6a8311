"""Prose: lines broken to fit a width become paragraphs again."""

from __future__ import annotations

import random
import textwrap

import pytest

from preprocess.corpus.prose import is_wrapped, unwrap, width

SENTENCES = [
    "The quick brown fox jumps over the lazy dog near the bank of the river that nobody has named so far.",
    "She said nothing; then she went away, as she always does when it rains over the town in the valley.",
    "Nobody knows.",
]


@pytest.mark.parametrize("columns", [30, 50, 72, 90])
def test_wrapped_paragraphs_come_back(columns: int) -> None:
    generator = random.Random(columns)
    paragraphs = [" ".join(generator.choices(SENTENCES, k=generator.randint(2, 6))) for _ in range(30)]
    wrapped = ("\n" + " \n" * generator.randint(1, 2)).join(textwrap.fill(part, columns) for part in paragraphs)
    assert unwrap(f"\n{wrapped}\n".replace("\n", "\r\n")) == "\n".join(paragraphs)
    assert unwrap("\n\n".join(paragraphs)) == "\n".join(paragraphs)


def test_chinese_is_joined_without_spaces() -> None:
    text = (
        "万石君名奋，他的父亲是赵国人，姓石，赵国\n灭亡后，迁居到温县。\n\n高祖东进攻打项羽 in\nthe year of\n十五岁。\n"
    )
    assert unwrap(text) == (
        "万石君名奋，他的父亲是赵国人，姓石，赵国灭亡后，迁居到温县。\n高祖东进攻打项羽 in the year of 十五岁。"
    )


def test_lines_that_are_sentences_or_paragraphs_stay() -> None:
    assert unwrap("One is here.\nTwo is there!\n\nThree?\nFour.") == "One is here.\nTwo is there!\nThree?\nFour."
    long = "a long paragraph without any end " * 9
    assert unwrap(f"{long}\n{long}\n{long}") == "\n".join([long.strip()] * 3)
    assert unwrap(" \n\r\n") == ""


def test_width_counts_columns() -> None:
    assert width("abc") == 3
    assert width("中文é") == 5
    assert not is_wrapped([])
    assert not is_wrapped(["中" * 61])
    assert is_wrapped(["中" * 60])
