"""Cleaning as generators from documents to documents; a step that is off does not exist."""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from preprocess.cleaning.drops import Drops
from preprocess.cleaning.settings import CleaningSettings, script_share
from preprocess.corpus.document import Document

Step = Callable[[Iterator[Document]], Iterator[Document]]

CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # Unicode's Cc without tab and line ends
CONTROL_SPACES = frozenset("\x0b\x0c\x1c\x1d\x1e\x1f\x85")
REMOVE_CONTROL = {
    code: " " if chr(code) in CONTROL_SPACES else None for code in range(0xA0) if CONTROL.match(chr(code))
}
UTF_32 = "utf-32-le" if sys.byteorder == "little" else "utf-32-be"
NUM_CODE_POINTS = 0x110000


def cleaning_steps(settings: CleaningSettings, drops: Drops) -> Step:
    """Build the steps of these settings (deduplication and sentences excepted), as one function of documents.

    Order: control characters, normal form, simplified Chinese, then lengths, expressions, share of scripts.
    A second text is changed alike. What is dropped is counted in ``drops``.

    Raises:
        ValueError: listing everything wrong with the settings.
    """
    if problems := settings.problems():
        raise ValueError("; ".join(problems))
    steps = [*_changes(settings, drops), *_filters(settings, drops)]

    def clean(documents: Iterator[Document]) -> Iterator[Document]:
        for step in steps:
            documents = step(documents)
        return documents

    return clean


def _changes(settings: CleaningSettings, drops: Drops) -> list[Step]:
    """Return the steps that change text, and the one that drops documents with control characters."""
    steps: list[Step] = []
    if settings.control_characters == "remove":
        steps.append(_change(_without_control_characters, drops))
    elif settings.control_characters == "drop":
        steps.append(_drop(_has_control_characters, "documents_with_control_characters", drops))
    if settings.normal_form != "none":
        form = cast("Any", settings.normal_form)
        steps.append(_change(lambda text: text if text.isascii() else unicodedata.normalize(form, text), drops))
    if settings.simplify:
        steps.append(_change(_simplifier(), drops))
    return steps


def _filters(settings: CleaningSettings, drops: Drops) -> list[Step]:
    steps: list[Step] = []
    if (least := settings.min_characters) is not None:
        steps.append(_drop(lambda document: len(document.text) < least, "documents_too_short", drops))
    if (most := settings.max_characters) is not None:
        steps.append(_drop(lambda document: len(document.text) > most, "documents_too_long", drops))
    if settings.drop_matching:
        unwanted = _any_pattern(settings.drop_matching)
        steps.append(_drop(unwanted, "documents_matching_a_drop_pattern", drops))
    if settings.keep_matching:
        wanted = _any_pattern(settings.keep_matching)
        steps.append(_drop(lambda document: not wanted(document), "documents_matching_no_keep_pattern", drops))
    for name, share in map(script_share, settings.min_script_share):
        steps.append(_drop(_too_little_of(name, share), f"documents_with_too_little_{name}", drops))
    return steps


def _change(change: Callable[[str], str], drops: Drops) -> Step:
    """Return a step that changes texts; documents that become empty, or whose second text does, are dropped."""

    def step(documents: Iterator[Document]) -> Iterator[Document]:
        """Change each document in place and yield it, if it still has text."""
        for document in documents:
            before = document.text
            document.text = _stripped(before, change(before))
            if document.second is not None:
                second = document.second
                document.second = _stripped(second, change(second))
                if second and not document.second:
                    document.text = ""
            if document.text:
                yield document
            else:
                drops.add("documents_empty", before, document)

    return step


def _stripped(before: str, after: str) -> str:
    """Return ``after`` without white space at its ends, which a change may have made."""
    return before if after is before else after.strip()


def _drop(is_bad: Callable[[Document], Any], reason: str, drops: Drops) -> Step:
    """Return a step that drops the documents that are bad."""

    def step(documents: Iterator[Document]) -> Iterator[Document]:
        for document in documents:
            if is_bad(document):
                drops.add(reason, document.text, document)
            else:
                yield document

    return step


def _without_control_characters(text: str) -> str:
    return text.translate(REMOVE_CONTROL) if _may_have_control(text) and CONTROL.search(text) else text


def _has_control_characters(document: Document) -> bool:
    texts = (document.text,) if document.second is None else (document.text, document.second)
    return any(_may_have_control(text) and CONTROL.search(text) for text in texts)


def _may_have_control(text: str) -> bool:
    """Say quickly that most texts have none: control characters are not printable."""
    return not (text.isprintable() or text.replace("\n", " ").isprintable())


@functools.cache
def _simplifier() -> Callable[[str], str]:
    import opencc

    convert = opencc.OpenCC("t2s").convert

    def simplify(text: str) -> str:
        return text if text.isascii() else convert(text)

    return simplify


def _any_pattern(patterns: Sequence[str]) -> Callable[[Document], bool]:
    """Return whether one of the patterns is found in a document's text or second text."""
    searches = [re.compile(pattern).search for pattern in patterns]

    def is_found(document: Document) -> bool:
        second = document.second
        return any(search(document.text) or (second is not None and search(second)) for search in searches)

    return is_found


def _too_little_of(script: str, share: float) -> Callable[[Document], bool]:
    """Return whether a script has less than its share of a document's letters; without letters it has."""
    letters = _code_points_of("\\p{L}")
    of_script = _code_points_of(f"[\\p{{L}}&&\\p{{Script={script}}}]")

    def is_too_little(document: Document) -> bool:
        text = document.text if document.second is None else document.text + document.second
        code_points = np.frombuffer(text.encode(UTF_32, "surrogatepass"), np.uint32)
        num_letters = int(np.count_nonzero(letters[code_points]))
        return int(np.count_nonzero(of_script[code_points])) < max(share * num_letters, 1)

    return is_too_little


@functools.cache
def _code_points_of(pattern: str) -> npt.NDArray[np.bool_]:
    """Return which code points [0x110000] a character class of the ``regex`` library has."""
    import regex

    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, NUM_CODE_POINTS)]))
    found = "".join(regex.findall(f"{pattern}+", characters, flags=regex.V1))
    table = np.zeros(NUM_CODE_POINTS, np.bool_)
    table[np.frombuffer(found.encode(UTF_32), np.uint32)] = True
    return table
