"""Sentences cut into units that have labels: words or characters, with their places in the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from finetune.features.span_labels import OUTSIDE

CHARACTERS_FROM = 0.9  # share of units of one character from which a file is one of characters
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana too
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+|[^\w\s]")
_CHARACTER = re.compile(r"\S")


class Sentence(NamedTuple):
    """A text in units.

    Attributes:
        line: of its first unit in the file, from 1.
        text: as it stands there, or the units put together.
        places: where each unit begins and ends in the text, in code points.
        labels: of the units; None where they are not known.
    """

    line: int
    text: str
    places: tuple[tuple[int, int], ...]
    labels: tuple[str, ...] | None

    @property
    def units(self) -> list[str]:
        """The texts of the units."""
        return [self.text[begin:end] for begin, end in self.places]


def join_units(units: Sequence[str], characters: bool) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text of units and their places in it.

    Words have a space between them, unless ideographs or kana stand on both sides; characters have none.
    """
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    size, before = 0, ""
    for unit in units:
        if before and not characters and not (_IDEOGRAPH.match(before[-1]) and _IDEOGRAPH.match(unit)):
            parts.append(" ")
            size += 1
        places.append((size, size + len(unit)))
        parts.append(unit)
        size += len(unit)
        before = unit
    return "".join(parts), tuple(places)


def cut_text(text: str, characters: bool) -> tuple[tuple[int, int], ...]:
    """Places of the units of a text: all characters but white space, or words, signs and ideographs."""
    return tuple(match.span() for match in (_CHARACTER if characters else _WORD).finditer(text))


def are_characters(units: Sequence[str]) -> bool:
    """Whether nearly all units have one character."""
    return sum(len(unit) == 1 for unit in units) >= CHARACTERS_FROM * len(units)


def is_ideographic(text: str) -> bool:
    """Whether half of a text, white space aside, is ideographs or kana."""
    return 2 * len(_IDEOGRAPH.findall(text)) >= len("".join(text.split())) > 0


def labels_of_spans(places: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int, str]]) -> tuple[str, ...]:
    """BIO labels of units.

    Args:
        places: of the units in the text.
        spans: (begin, end, type) in the text.

    Raises:
        ValueError: if two spans overlap, or one begins or ends within a unit or holds none.
    """
    labels = [OUTSIDE] * len(places)
    for begin, end, kind in spans:
        inside = [number for number, (first, last) in enumerate(places) if first < end and last > begin]
        if not inside or places[inside[0]][0] < begin or places[inside[-1]][1] > end:
            raise ValueError(f"the span [{begin}, {end}) of {kind!r} does not begin and end with a unit of the text")
        if any(labels[number] != OUTSIDE for number in inside):
            raise ValueError(f"the span [{begin}, {end}) of {kind!r} overlaps another; only flat spans are learned")
        for number in inside:
            labels[number] = f"{'B' if number == inside[0] else 'I'}-{kind}"
    return tuple(labels)
