"""Causal language modelling: where sequences begin and end, and what each position predicts."""

from __future__ import annotations

import numpy as np
import pytest

from engine.data.rows import Piece, Row
from engine.objectives.base import Vocabulary
from engine.objectives.lm import CausalLM

BOS, EOS = 1, 2
VOCABULARY = Vocabulary(20, {"bos": BOS, "eos": EOS}, np.arange(20) < 3, np.zeros(20, np.bool_))


def row(*pieces: tuple[list[int], bool]) -> Row:
    return Row(tuple(Piece(np.array(tokens, np.uint16), final) for tokens, final in pieces), 0, 0)


def test_hand_worked_batch():
    batch = CausalLM(VOCABULARY).collate([row(([7, 8, 9], True), ([10], False)), row(([11, 12], True))])
    #      positions                0    1  2  3    4    5    6    7   8   9   10
    assert batch.tokens.tolist() == [BOS, 7, 8, 9, EOS, BOS, 10, BOS, 11, 12, EOS]
    assert batch.layout.lengths == (5, 2, 4)
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3]
    assert batch.segments is None
    target = batch.targets["lm"]
    assert target.index.tolist() == [0, 1, 2, 3, 5, 7, 8, 9]
    assert target.labels.tolist() == [7, 8, 9, EOS, 10, 11, 12, EOS]
    assert batch.counts == {"lm": 8}


def test_one_token_for_begin_and_end():
    vocabulary = Vocabulary(20, {"bos": 0, "eos": 0}, np.arange(20) < 1, np.zeros(20, np.bool_))  # as GPT-2's own
    batch = CausalLM(vocabulary).collate([row(([5], True))])
    assert batch.tokens.tolist() == [0, 5, 0]
    assert batch.targets["lm"].labels.tolist() == [5, 0]


def test_labels_shift_within_each_sequence():
    generator = np.random.default_rng(0)
    rows = [row(*[(generator.integers(3, 20, n).tolist(), bool(n % 2)) for n in (1, 5, 8)]) for _ in range(9)]
    batch = CausalLM(VOCABULARY).collate(rows)
    expected_index, expected_labels, at = [], [], 0
    for piece in (piece for r in rows for piece in r.pieces):
        sequence = [BOS, *piece.tokens.tolist(), *([EOS] if piece.final else [])]
        for place in range(len(sequence) - 1):
            expected_index.append(at + place)
            expected_labels.append(sequence[place + 1])
        at += len(sequence)
    assert batch.targets["lm"].index.tolist() == expected_index
    assert batch.targets["lm"].labels.tolist() == expected_labels


@pytest.mark.parametrize(("have", "missing"), [({"bos": 1}, "eos"), ({"eos": 1}, "bos"), ({}, "bos, eos")], ids=str)
def test_missing_special_tokens(have, missing):
    vocabulary = Vocabulary(20, have, VOCABULARY.special, VOCABULARY.continuation)
    names = ", ".join(have) or "none"
    with pytest.raises(ValueError, match=rf"needs the special token\(s\) {missing}, and the vocabulary has {names};"):
        CausalLM(vocabulary)
