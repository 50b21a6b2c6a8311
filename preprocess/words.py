"""Where words begin in text without spaces: rjieba, jieba, or spaces that are there already."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.code_points import is_visible, to_code_points

SEGMENTERS = ("rjieba", "jieba", "spaces")
CONTROL = re.compile("[\x00-\x1f\x7f]")
DICTIONARY_LINE = re.compile("(\\S.*?)(?: +([0-9]+))?(?: +([a-z]+))?")
MAX_FREQUENCY = 2**31 - 1
MAX_WORD_CHARACTERS = 100


@dataclass(frozen=True)
class UserWord:
    """A line of a user dictionary: a word, and its frequency and part of speech if given."""

    word: str
    frequency: int | None = None
    tag: str | None = None


class Segmenter:
    """Finds where words begin. Built in each process: the libraries behind it are not picklable.

    Args:
        name: one of SEGMENTERS.
        cut: text -> words that joined are the text; None for the words between spaces.
    """

    def __init__(self, name: str, cut: Callable[[str], list[str]] | None) -> None:
        self.name = name
        self.cut = cut

    def word_starts(self, text: str) -> npt.NDArray[np.bool_]:
        """Return at which code points of ``text`` a word begins: [len(text)] bool, never at white space.

        Lines are independent of each other: many texts joined by "\\n" give the same as each alone.

        Raises:
            ValueError: if the segmenter's words are not the text (characters that the library cannot take).
        """
        not_white = is_visible(to_code_points(text))
        if self.cut is None:
            starts = not_white.copy()
            starts[1:] &= ~not_white[:-1]
            return starts
        words = self.cut(text)
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        ends = np.cumsum(lengths)
        if len(text) != (ends[-1] if len(words) else 0):
            raise ValueError(
                f"{self.name} gave back {int(ends[-1]) if len(words) else 0:,} of {len(text):,} characters of "
                f"{text[:40]!r}: remove control characters, or use another --word_segmenter"
            )
        starts = np.zeros(len(text), np.bool_)
        starts[ends - lengths] = True
        return starts & not_white


def build_segmenter(name: str, user_dictionary: str | Path | None = None) -> Segmenter:
    """Build the word segmenter ``name``, with the words of a file in jieba's format added to its dictionary.

    Args:
        name: "rjieba" (fast), "jieba" (the original, 20 times slower) or "spaces" (words have spaces between them).
        user_dictionary: a word on each line, or "word frequency", "word tag", "word frequency tag".

    Raises:
        ValueError: for an unknown name, a library that is not installed, or a bad line of the dictionary.
    """
    if name not in SEGMENTERS:
        raise ValueError(f"there is no word segmenter {name!r}; there are: {', '.join(SEGMENTERS)}")
    if name == "spaces":
        if user_dictionary is not None:
            raise ValueError("a user dictionary needs --word_segmenter rjieba or jieba; spaces takes no other words")
        return Segmenter(name, None)
    words = [] if user_dictionary is None else list(read_user_dictionary(user_dictionary))
    return Segmenter(name, _build_rjieba(words) if name == "rjieba" else _build_jieba(words))


def segmenter_problem(name: str) -> str:
    """Return what is wrong if the package of a segmenter, of the same name, is not installed; else ""."""
    try:
        if name == "spaces" or (importlib.util.find_spec(name) and importlib.metadata.version(name)):
            return ""
    except importlib.metadata.PackageNotFoundError:  # a folder of that name is no package
        pass
    return f"word_segmenter {name} needs a package: pip install {name}"


def segmenter_identity(name: str, user_dictionary: str | Path | None = None) -> dict[str, str]:
    """Return what decides a segmenter's words, for a manifest: its name, version, sha256 of the user dictionary.

    Raises:
        ValueError: if its package is not installed.
    """
    identity = {"name": name}
    if name != "spaces":
        if problem := segmenter_problem(name):
            raise ValueError(problem)
        identity["version"] = importlib.metadata.version(name)
    if user_dictionary is not None:
        identity["user_dictionary_sha256"] = hashlib.sha256(Path(user_dictionary).read_bytes()).hexdigest()
    return identity


def read_user_dictionary(path: str | Path) -> Iterator[UserWord]:
    """Yield the words of a user dictionary in jieba's format; blank lines are skipped.

    Raises:
        ValueError: naming file and line, for text that is not UTF-8 and for words that cannot be taken.
    """
    for number, data in enumerate(Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = data.decode().strip()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: line {number}: byte {error.start} of the line is not UTF-8; write it in UTF-8"
            ) from None
        if line:
            yield _user_word(line, f"{path}: line {number}")


def _user_word(line: str, where: str) -> UserWord:
    found = DICTIONARY_LINE.fullmatch(line)
    problem = ""
    if found is None or CONTROL.search(line):
        problem = "has a control character or a tab"
    elif len(found[1]) > MAX_WORD_CHARACTERS:
        problem = f"has a word of {len(found[1]):,} characters ({MAX_WORD_CHARACTERS} at most)"
    elif found[2] and not 0 < int(found[2]) <= MAX_FREQUENCY:
        problem = f"has the frequency {found[2]} (from 1 to {MAX_FREQUENCY:,}, or none)"
    if problem or found is None:
        raise ValueError(f"{where}: {line[:80]!r} {problem}; a line is: word [frequency [tag]], with spaces between")
    return UserWord(found[1], int(found[2]) if found[2] else None, found[3])


def _build_rjieba(words: list[UserWord]) -> Callable[[str], list[str]]:
    try:
        import rjieba
    except ImportError:
        raise ValueError("--word_segmenter rjieba needs the package rjieba: pip install rjieba") from None
    segmenter = rjieba.Jieba()
    for word in words:
        segmenter.add_word(word.word, word.frequency, word.tag)
    return segmenter.cut


def _build_jieba(words: list[UserWord]) -> Callable[[str], list[str]]:
    try:
        import jieba
    except ImportError:
        raise ValueError("--word_segmenter jieba needs the package jieba: pip install jieba") from None
    jieba.setLogLevel(logging.WARNING)
    segmenter: Any = jieba.Tokenizer()
    # Not segmenter.initialize(): it would load a file from the shared temporary folder, which anyone may have written.
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    for word in words:
        segmenter.add_word(word.word, word.frequency, word.tag)
    return segmenter.lcut
