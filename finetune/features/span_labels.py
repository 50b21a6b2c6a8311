"""Labels of tokens that mark spans: IOB1, BIO, BMES, BIOES and BILOU are read, BIO (IOB2) is learned.

A label is ``O``, a prefix and a type (``B-PER`` or ``B_PER``), or a prefix alone, whose type is then ``word``
(segmentation). The types of IOB1 and BIO begin with B where a span follows another of its type (IOB1), or always (BIO):
reading a span from its first label of a type on, as conlleval does, suits both (Tjong Kim Sang and De Meulder 2003,
https://aclanthology.org/W03-0419).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
UNTYPED = "word"
_LABEL = re.compile(r"([BIMESLU])(?:[-_](.+))?", re.DOTALL)
_TYPED = re.compile(r"[BI][-_].+", re.DOTALL)  # every scheme but segmentation's has such labels
_BEGIN, _ALONE, _LAST = "B", "SU", "EL"  # what a span of BMES, BIOES or BILOU begins with, is, and ends with


class LabelSpan(NamedTuple):
    """A span of tokens [begin, end) and its type."""

    type: str
    begin: int
    end: int


def marks_spans(labels: Iterable[str]) -> bool:
    """Whether all labels are ``O`` or have a prefix of a scheme, and one has."""
    distinct = set(labels)
    return distinct != {OUTSIDE} and all(label == OUTSIDE or _LABEL.fullmatch(label) for label in distinct)


def odd_labels(labels: Iterable[str], spans: bool = False) -> list[str]:
    """Labels of no scheme, where others show that spans are marked or ``spans`` says so; in order."""
    distinct = set(labels)
    if not spans and not any(_TYPED.fullmatch(label) for label in distinct):
        return []
    return sorted(label for label in distinct if label != OUTSIDE and not _LABEL.fullmatch(label))


def split_label(label: str) -> tuple[str, str]:
    """Prefix and type of a label; prefix O and no type for what marks no span."""
    match = _LABEL.fullmatch(label)
    return (match[1], match[2] or UNTYPED) if match else (OUTSIDE, "")


def spans_of(labels: Sequence[str]) -> list[LabelSpan]:
    """The spans that a sentence's labels mark, in any of the schemes, in their order.

    A label that does not fit, such as an I behind an O, begins a span.
    """
    spans: list[LabelSpan] = []
    begin, kind, closed = 0, "", True  # of the span that is open
    for place, label in enumerate((*labels, OUTSIDE)):
        prefix, own = split_label(label)
        starts = prefix != OUTSIDE and (closed or own != kind or prefix in _BEGIN + _ALONE)
        if not closed and (starts or prefix == OUTSIDE):
            spans.append(LabelSpan(kind, begin, place))
            closed = True
        if starts:
            begin, kind, closed = place, own, False
        if prefix in _LAST + _ALONE and not closed:
            spans.append(LabelSpan(kind, begin, place + 1))
            closed = True
    return spans


def bio_labels(labels: Sequence[str] | set[str]) -> list[str]:
    """The BIO labels of all types that labels of any scheme have; O first, where it is among them."""
    types = sorted({split_label(label)[1] for label in labels} - {""})
    return [OUTSIDE] * (OUTSIDE in labels) + [f"{prefix}-{kind}" for kind in types for prefix in "BI"]


def bio_of(labels: Sequence[str]) -> list[str]:
    """The same spans as BIO labels."""
    result = [OUTSIDE] * len(labels)
    for span in spans_of(labels):
        result[span.begin] = f"B-{span.type}"
        for place in range(span.begin + 1, span.end):
            result[place] = f"I-{span.type}"
    return result


def scheme_of(sentences: Iterable[Sequence[str]]) -> str:
    """Name of the scheme that sentences are labelled with: BMES, BIOES, BILOU, IOB1, BIO, or none."""
    prefixes: set[str] = set()
    begun = {"B": 0, "I": 0}  # by what spans begin
    for labels in sentences:
        before = OUTSIDE, ""
        for label in labels:
            prefix, kind = split_label(label)
            if prefix == "B" or (prefix == "I" and (before[0] == OUTSIDE or before[1] != kind)):
                begun[prefix] += 1
            before = prefix, kind
            prefixes.add(prefix)
    if not prefixes - {OUTSIDE}:
        return "none"
    for scheme, signs in (("BMES", "M"), ("BILOU", "LU"), ("BIOES", "ES")):
        if prefixes & set(signs):
            return scheme
    return "IOB1" if begun["I"] > begun["B"] else "BIO"


def num_misfits(labels: Sequence[str]) -> int:
    """How many labels cannot stand where they do, in all schemes but IOB1: they go on with a span that is not open."""
    count, open_kind = 0, ""
    for label in labels:
        prefix, kind = split_label(label)
        count += prefix in "IMEL" and kind != open_kind
        open_kind = kind if prefix in "BIM" else ""
    return count
