"""Schemes of span labels, against seqeval."""

from __future__ import annotations

import itertools
import random

import pytest

from finetune.features.span_labels import bio_of, marks_spans, num_misfits, scheme_of, spans_of
from finetune.features.windows import windows_of

SENTENCES = {
    "BIO": ["B-A", "B-A", "I-A", "O", "B-B", "I-B"],
    "IOB1": ["I-A", "B-A", "I-A", "O", "I-B", "I-B"],
    "BMES": ["S-A", "B-A", "E-A", "O", "B-B", "E-B"],
    "BIOES": ["S-A", "B-A", "E-A", "O", "B-B", "E-B"],
    "BILOU": ["U-A", "B-A", "L-A", "O", "B-B", "L-B"],
}


@pytest.mark.parametrize("scheme", SENTENCES)
def test_the_same_spans_in_all_schemes(scheme):
    assert bio_of(SENTENCES[scheme]) == SENTENCES["BIO"]
    assert [(span.type, span.begin, span.end) for span in spans_of(SENTENCES[scheme])] == [
        ("A", 0, 1), ("A", 1, 3), ("B", 4, 6),
    ]  # fmt: skip


def test_schemes_are_told_apart():
    longer = {"BMES": [["B-A", "M-A", "E-A"]], "BIOES": [["B-A", "I-A", "E-A"]], "BILOU": [["B-A", "I-A", "L-A"]]}
    for scheme, sentences in (longer | {"BIO": [SENTENCES["BIO"]], "IOB1": [SENTENCES["IOB1"]]}).items():
        assert scheme_of(sentences) == scheme
    assert scheme_of([["O", "O"]]) == "none"
    assert scheme_of([["B-A", "O", "I-A", "O", "B-A"]]) == "BIO"  # one mistake does not make it IOB1


@pytest.mark.parametrize("letters", ["BIO", "BIOES"])
def test_any_labels_give_the_spans_of_seqeval(letters):
    get_entities = pytest.importorskip("seqeval.metrics.sequence_labeling").get_entities
    alphabet = ["O", *(f"{prefix}-{kind}" for prefix in letters if prefix != "O" for kind in "XY")]
    draw = random.Random(3)
    for labels in itertools.chain(
        itertools.product(alphabet, repeat=3), (draw.choices(alphabet, k=9) for _ in range(500))
    ):
        theirs = [(kind, begin, last + 1) for kind, begin, last in get_entities(list(labels))]
        assert [tuple(span) for span in spans_of(labels)] == theirs, labels
        assert [tuple(span) for span in spans_of(bio_of(labels))] == theirs, labels


def test_what_marks_no_spans():
    assert marks_spans(["O", "B-x"]) and marks_spans(["B", "M", "E", "S"])
    assert not marks_spans(["NN", "VB", "B"]) and not marks_spans(["O"])
    assert bio_of(["B", "E", "S"]) == ["B-word", "I-word", "B-word"]
    assert num_misfits(["O", "I-A", "I-A", "B-B", "E-A"]) == 3 - 1 and num_misfits(SENTENCES["BMES"]) == 0


@pytest.mark.parametrize("step", [0, 3])
def test_windows_cover_all_and_give_context(step):
    draw = random.Random(1)
    for _ in range(200):
        sizes = [draw.randint(1, 7) for _ in range(draw.randint(0, 60))]
        windows = windows_of(sizes, 20, step)
        assert [place for window in windows for place in range(window.own_begin, window.own_end)] == [
            *range(len(sizes))
        ]
        for window in windows:
            assert window.begin <= window.own_begin <= window.own_end <= window.end
            assert sum(sizes[window.begin : window.end]) <= 20
        for before, window in itertools.pairwise(windows):
            shared = sum(sizes[window.begin : before.end])
            assert window.begin == before.begin + step if step and before.begin + step <= before.end else shared <= 5
            assert window.begin <= window.own_begin and (shared == 0 or before.own_end < before.end or shared <= 7)
