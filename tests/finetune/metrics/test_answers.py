"""Exact match and F1, against the published scripts' definitions written out again, on answers from real files."""

from __future__ import annotations

import collections
import json
import math
import random
import re
import string

import numpy as np
import pytest

from finetune.metrics.answers import best_threshold, chinese_units, longest_run, score_answer


def normalize(text: str) -> str:
    """evaluate-v1.1.py and evaluate-v2.0.py."""
    text = "".join(sign for sign in text.lower() if sign not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(gold: str, prediction: str, version: int) -> float:
    predicted, right = normalize(prediction).split(), normalize(gold).split()
    if version == 2 and (not predicted or not right):
        return float(predicted == right)
    same = sum((collections.Counter(predicted) & collections.Counter(right)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(right)
    return 2 * precision * recall / (precision + recall)


def squad(golds: list[str], prediction: str, version: int) -> tuple[float, float]:
    if version == 2:
        golds = [gold for gold in golds if normalize(gold)] or [""]
    exact = max(float(normalize(gold) == normalize(prediction)) for gold in golds)
    return exact, max(squad_f1(gold, prediction, version) for gold in golds)


SIGNS = [
    *"-:_*^/\\~`+=",
    *(
        "，",
        "。",
        "：",
        "？",
        "！",
        "“",
        "”",
        "；",
        "’",
        "《",
        "》",
        "……",
        "·",
        "、",
        "「",
        "」",
        "（",
        "）",
        "－",
        "～",
    ),
    *("『", "』"),
]


def cmrc_segments(text: str) -> list[str]:
    """mixed_segmentation of cmrc2018_evaluate.py with rm_punc, its word_tokenize on one sentence."""
    nltk = pytest.importorskip("nltk")
    segments, rest = [], ""
    for sign in text.lower().strip():
        if sign in SIGNS:
            continue
        if "\u4e00" <= sign <= "\u9fa5":
            segments += [*nltk.word_tokenize(rest, preserve_line=True), sign]
            rest = ""
        else:
            rest += sign
    return segments + nltk.word_tokenize(rest, preserve_line=True)


def cmrc(golds: list[str], prediction: str) -> tuple[float, float]:
    def bare(text: str) -> str:
        return "".join(sign for sign in text.lower().strip() if sign not in SIGNS)

    found, ours = [], cmrc_segments(prediction)
    for gold in golds:
        theirs = cmrc_segments(gold)
        runs = [
            size
            for size in range(min(len(ours), len(theirs)), 0, -1)
            for a in range(len(ours) - size + 1)
            if any(ours[a : a + size] == theirs[b : b + size] for b in range(len(theirs) - size + 1))
        ]
        best = max(runs, default=0)
        share_a, share_b = best / max(len(ours), 1), best / max(len(theirs), 1)
        found.append(2 * share_a * share_b / (share_a + share_b) if best else 0.0)
    return float(any(bare(gold) == bare(prediction) for gold in golds)), max(found)


def cases(path, count: int) -> list[tuple[list[str], str]]:
    """Right answers and a prediction: one of them, cut, grown, another question's, or none."""
    draw, made = random.Random(4), []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            context = paragraph["context"]
            for qa in paragraph["qas"]:
                golds = [answer["text"] for answer in qa["answers"]]
                begin = max(context.find(golds[0]), 0)
                wide = context[max(begin - draw.randint(0, 9), 0) : begin + len(golds[0]) + draw.randint(0, 9)]
                other = made[-1][0][0] if made else "."
                made.append((golds, draw.choice([golds[-1], golds[0][:3], wide, golds[0].upper() + ".", other, ""])))
    return draw.sample(made, count)


def test_english(shared_data):
    found = cases(shared_data / "qa_en_xquad" / "xquad.en.json", 400)
    for golds, prediction in [*found, (["the"], ""), (["The cat!"], "a cat"), (["a b", "c"], "c d")]:
        for version in (1, 2):
            ours = score_answer(prediction, golds, "en", no_answers=version == 2)
            assert ours == pytest.approx(squad(golds, prediction, version)), (golds, prediction, version)
    assert score_answer("", [], "en", True) == (1, 1) and score_answer("x", [], "en", True) == (0, 0)
    assert 0.2 < np.mean([score_answer(p, golds, "en", False).f1 for golds, p in found]) < 0.9


def test_chinese(shared_data):
    pytest.importorskip("nltk")
    found = cases(shared_data / "qa_zh_cmrc2018" / "dev.json", 300)
    found += [
        (["1994年3月5日", "ω-force（光荣）"], "1994年"),
        (["《Don't stop》 a.b, c"], "don't stop a.b"),
        (["——"], "x"),
    ]
    for golds, prediction in found:
        if prediction:
            ours = score_answer(prediction, golds, "zh", no_answers=False)
            assert ours == pytest.approx(cmrc(golds, prediction)), (golds, prediction)
    assert score_answer("", [], "zh", True) == (1, 1) and score_answer("", ["水"], "zh", True) == (0, 0)
    assert chinese_units("光荣和ω-force（2）") == ["光", "荣", "和", "ωforce2"]
    assert longest_run("abcde", "xbcdy") == 3 and longest_run("", "a") == 0


def test_threshold_is_the_best_of_all():
    draw = random.Random(2)
    for _ in range(300):
        size = draw.randint(1, 9)
        scores = [draw.choice([0.0, 0.5, 1.0]) for _ in range(size)]
        has_answer = [draw.random() < 0.5 for _ in range(size)]
        none = [draw.choice([-1.0, 0.0, 0.5, 2.0]) for _ in range(size)]

        def mean(threshold: float, none=none, scores=scores, has_answer=has_answer) -> float:
            given = [n <= threshold for n in none]
            rows = zip(given, scores, has_answer, strict=True)
            return sum(score * has if give else not has for give, score, has in rows)

        best = best_threshold(none, scores, has_answer)
        assert mean(best) == max(mean(threshold) for threshold in (*none, -9.0))
        nowhere = ([*none, math.inf], [*scores, 0.0], [*has_answer, True])  # no answer was found to the last
        assert best_threshold(*nowhere) == best
    assert best_threshold([math.inf], [0.0], [False]) == 0.0
