"""Span and n-gram masking: lengths of spans, their borders, the budget, and what replaces a span."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.masking import MaskingConfig
from engine.data.rows import Piece, Row
from engine.objectives.base import Vocabulary
from engine.objectives.masking import TokenMasker
from engine.objectives.mlm import MaskedLM

SIZE, FIRST_CONTINUATION, MASK = 60, 40, 4
IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": MASK}
VOCABULARY = Vocabulary(SIZE, IDS, np.arange(SIZE) < 5, np.arange(SIZE) >= FIRST_CONTINUATION)


def make_row(index: int, lengths: tuple[int, ...], low: int = 5) -> Row:
    generator = np.random.default_rng(index)
    return Row(tuple(Piece(generator.integers(low, SIZE, n).astype(np.uint16), True) for n in lengths), 0, index)


def targets(row: Row, rate: float | None = None, **masking: Any) -> tuple[list[int], list[int], np.ndarray]:
    """Positions of a row's targets, the tokens there as the model sees them, and the row before masking."""
    text = np.concatenate([[2, *piece.tokens, 3] for piece in row.pieces])
    batch = MaskedLM(MaskingConfig(**masking), VOCABULARY, 3).collate([row], rate)
    index = batch.targets["mlm"].index.numpy()
    assert batch.targets["mlm"].labels.tolist() == text[index].tolist()
    return index.tolist(), batch.tokens.numpy()[index].tolist(), text


def runs(index: list[int]) -> list[list[int]]:
    """Positions in ascending order as runs without gaps."""
    groups = itertools.groupby(enumerate(index), lambda pair: pair[1] - pair[0])
    return [[place for _, place in group] for _, group in groups]


def expected_shares(span: str, longest: int) -> list[float]:
    """Written down from the papers: SpanBERT section 3.1, ALBERT section 3.1."""
    weights = [0.2 * 0.8 ** (n - 1) if span == "geometric" else 1 / n for n in range(1, longest + 1)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(("span", "longest", "mean"), [("geometric", 10, 3.8), ("ngram", 3, 18 / 11)])
def test_lengths_of_spans_follow_the_distribution(span: str, longest: int, mean: float) -> None:
    times = np.zeros(longest + 1)
    for index in range(3000):  # one span a row, so that spans never touch
        found = runs(targets(make_row(index, (400,)), rate=0.0001, span=span)[0])
        assert len(found) == 1
        if found[0][-1] < 400:  # those at the sequence's end are cut there
            times[len(found[0])] += 1
    shares = times[1:] / times.sum()
    expected = np.array(expected_shares(span, longest))
    assert np.abs(shares - expected).max() < 5 * 0.5 / times.sum() ** 0.5
    assert (shares * np.arange(1, longest + 1)).sum() == pytest.approx(mean, rel=0.05)
    assert (expected * np.arange(1, longest + 1)).sum() == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize("span", ["geometric", "ngram"])
@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("rate", [0.1, 0.15, 0.4])
def test_the_budget_is_exact_on_average_and_each_token_equally_likely(span: str, whole_word: bool, rate: float) -> None:
    # Every third token starts a word, so that places differ by nothing else.
    tokens = np.where(np.arange(300) % 3 == 0, 10, 45).astype(np.uint16)
    times = np.zeros(302)
    rows = 2000
    for index in range(rows):
        row = Row((Piece(tokens, True),), 0, index)
        times[targets(row, rate=rate, span=span, whole_word=whole_word)[0]] += 1
    assert times[0] == times[301] == 0
    assert times.sum() / rows == pytest.approx(rate * 300, rel=0.02)
    assert np.abs(times[1:301] / rows - rate).max() < 5 * (rate / rows) ** 0.5


@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=6),
    seed=st.integers(0, 10_000),
    span=st.sampled_from(["geometric", "ngram"]),
    whole_word=st.booleans(),
    low=st.sampled_from([0, 5, 35]),
)
@settings(max_examples=100, deadline=None)
def test_words_stay_whole_and_special_tokens_untouched(
    lengths: list[int], seed: int, span: str, whole_word: bool, low: int
) -> None:
    row = make_row(seed, tuple(lengths), low=low)
    index, _, text = targets(row, rate=0.3, span=span, whole_word=whole_word)
    assert all(text[place] >= 5 for place in index)
    assert index or (text < 5).all()
    if whole_word:
        for place in index:
            assert place - 1 in index or text[place - 1] < 5 or text[place] < FIRST_CONTINUATION
            assert place + 1 in index or text[place + 1] < FIRST_CONTINUATION


@pytest.mark.parametrize("longest", [1, 2, 5])
def test_no_span_is_longer_than_allowed(longest: int) -> None:
    for index in range(300):
        (run,) = runs(targets(make_row(index, (90,)), rate=0.0001, span="geometric", max_span=longest)[0])
        assert len(run) <= longest


def test_spans_of_words_count_words() -> None:
    tokens = np.array([10, 45, 45, 45] * 30, np.uint16)  # words of four tokens
    for span, longest in (("geometric", 10), ("ngram", 3)):
        sizes = set()
        for index in range(400):
            row = Row((Piece(tokens, True),), 0, index)
            (run,) = runs(targets(row, rate=0.0001, span=span, whole_word=True)[0])
            sizes.add(len(run))
        assert sizes == {4 * n for n in range(1, longest + 1)}


def test_geometric_spans_are_replaced_as_a_whole_and_ngrams_token_by_token() -> None:
    mixed = {"geometric": 0, "ngram": 0}
    for span in mixed:
        kinds = np.zeros(3)
        for index in range(1500):
            row = make_row(index, (300,))
            run, seen, text = targets(row, rate=0.0001, span=span, max_span=3)
            masked = [token == MASK for token in seen]
            kept = [token == text[place] for token, place in zip(seen, run, strict=True)]
            mixed[span] += 0 < sum(masked) < len(masked)
            kinds += [all(masked), all(kept), not any(masked) and not all(kept)]
        if span == "geometric":
            assert kinds.sum() == 1500
            assert np.abs(kinds / 1500 - [0.8, 0.1, 0.1]).max() < 0.04
    assert mixed["geometric"] == 0 < mixed["ngram"]


def test_draws_never_change() -> None:
    # Written down once: a change here would change the masks of runs that are under way.
    row = Row((Piece(np.arange(5, 45).astype(np.uint16), True),), 2, 7)
    found = {span: targets(row, span=span)[0] for span in ("geometric", "ngram")}
    assert found == {"geometric": [31, 32, 33, 34, 35, 36, 37, 38, 39], "ngram": [12, 13, 14, 18, 19, 31]}


def test_masking_depends_on_the_key_alone() -> None:
    rows = [make_row(index, (40, 3, 17)) for index in range(8)]
    objective = MaskedLM(MaskingConfig(span="geometric", whole_word=True), VOCABULARY, 3)
    whole = objective.collate(rows)
    parts = [objective.collate(rows[:3]), objective.collate(rows[3:])]
    assert whole.tokens.tolist() == [token for part in parts for token in part.tokens.tolist()]
    masker = TokenMasker(MaskingConfig(span="ngram"), VOCABULARY, 3)
    text = np.array([2, 10, 11, 12, 13, 3])
    assert masker.mask(text, None, (0, 1), 0.3)[0].tolist() == masker.mask(text, None, (0, 1), 0.3)[0].tolist()
