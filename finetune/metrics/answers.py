"""Exact match and F1 of answers: the definitions of SQuAD 1.1 and 2.0, and of CMRC 2018.

English: answers in lower case without punctuation and articles; F1 of their words (Rajpurkar et al. 2016, 2018;
evaluate-v1.1.py, evaluate-v2.0.py). Chinese: Chinese characters and other words as units, without punctuation; F1 of
the longest run of units that both have (Cui et al. 2019; cmrc2018_evaluate.py). Of several right answers the best one
counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ENGLISH, CHINESE = "en", "zh"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE = re.compile("[\u4e00-\u9fa5]")
_SIGNS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # of CMRC's list, what is one character


class Score(NamedTuple):
    """Of one answer, in [0, 1]."""

    exact_match: float
    f1: float


def score_answer(prediction: str, golds: Sequence[str], language: str, no_answers: bool) -> Score:
    """Compare a prediction with the right answers.

    Args:
        prediction: empty where none is given.
        golds: none where the question has no answer.
        language: en or zh.
        no_answers: whether questions may have no answer, as in SQuAD 2.0.
    """
    if language == CHINESE:
        if not golds or not prediction:
            right = float(not golds and not prediction)
            return Score(right, right)
        return Score(
            float(any(_without_signs(gold) == _without_signs(prediction) for gold in golds)),
            max(_run_f1(gold, prediction) for gold in golds),
        )
    if no_answers:
        golds = [gold for gold in golds if normal_english(gold)] or [""]
    if not golds:
        return Score(0.0, 0.0)
    return Score(
        float(any(normal_english(gold) == normal_english(prediction) for gold in golds)),
        max(_word_f1(gold, prediction, no_answers) for gold in golds),
    )


def normal_english(text: str) -> str:
    """In lower case, without punctuation, articles and spare white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _word_f1(gold: str, prediction: str, no_answers: bool) -> float:
    ours, theirs = normal_english(prediction).split(), normal_english(gold).split()
    if no_answers and not (ours and theirs):
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0


def _without_signs(text: str) -> str:
    return "".join(sign for sign in text.lower().strip() if sign not in _SIGNS)


def chinese_units(text: str) -> list[str]:
    """Chinese characters, and the words between them, without punctuation.

    The words are NLTK's, of the text between two Chinese characters as one sentence; the official script first has
    NLTK cut it into sentences, which matters only for a full stop within such a text.
    """
    from nltk.tokenize import NLTKWordTokenizer

    units: list[str] = []
    words = NLTKWordTokenizer()
    for piece in re.split("([\u4e00-\u9fa5])", _without_signs(text)):
        units += [piece] if _CHINESE.fullmatch(piece) else words.tokenize(piece)
    return units


def _run_f1(gold: str, prediction: str) -> float:
    theirs, ours = chinese_units(gold), chinese_units(prediction)
    run = longest_run(theirs, ours)
    return 2 * run / (len(theirs) + len(ours)) if run else 0.0


def longest_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest sequence of neighbours that both have."""
    best, before = 0, [0] * (len(second) + 1)
    for unit in first:
        row = [0] * (len(second) + 1)
        for place, other in enumerate(second):
            if unit == other:
                row[place + 1] = before[place] + 1
        best, before = max(best, *row), row
    return best


def best_threshold(no_answer_scores: Sequence[float], scores: Sequence[float], has_answer: Sequence[bool]) -> float:
    """The threshold with the best mean score, as evaluate-v2.0.py finds it: above it a question has no answer.

    Args:
        no_answer_scores: of each question, the larger the more does it have no answer; infinite where no answer was
            found, which no threshold changes.
        scores: of its best answer.
        has_answer: whether it has one.
    """
    found = np.isfinite(no_answer_scores)
    if not found.any():
        return 0.0
    values = np.asarray(no_answer_scores)[found]
    order = np.argsort(values, kind="stable")
    gains = np.where(has_answer, scores, -1.0)[found][order]  # of giving an answer
    sums = np.concatenate([[0.0], np.cumsum(gains)])
    values = values[order]
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True))  # questions of one value go together
    allowed = np.concatenate([[0], ends + 1])
    best = int(allowed[int(np.argmax(sums[allowed]))])
    return float(values[0] - 1.0) if best == 0 else float(values[best - 1])


def check_nltk() -> None:
    """ValueError saying what to install where the library is missing."""
    try:
        import nltk  # noqa: F401
    except ImportError:
        raise ValueError("the F1 of Chinese answers needs the package nltk: pip install nltk") from None
