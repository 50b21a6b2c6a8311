"""Evaluation: means over all targets, the same on any number of ranks, whether or not the batches divide."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.config.masking import MaskingConfig
from engine.data.batch import PackedBatch
from engine.data.rows import Piece, Row
from engine.models.model import Model, build_model
from engine.objectives.base import LossTerm, Vocabulary
from engine.objectives.mlm import MaskedLM
from engine.train.evaluate import ModelRunner, evaluate, held_out_turns
from tests.engine.ranks import run_ranks

SIZE = 50
IDS = {"cls": 0, "sep": 1, "mask": 2}
OBJECTIVE = MaskedLM(MaskingConfig(), Vocabulary(SIZE, IDS, np.arange(SIZE) < 3, np.zeros(SIZE, np.bool_)), seed=1)
ARCH = ArchConfig(
    vocab_size=SIZE, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_positions=64, init_std=0.3
)
CASES = [
    (7, 0, 2),
    (7, 5, 2),
    (7, 4, 3),
    (7, 100, 4),
    (1, 0, 2),
    (7, 6, 1),
    (6, 0, 2),
]  # samples, asked for, batch size


class HeldOut:
    """Rows of very different lengths."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def held_out(self, samples: range) -> PackedBatch:
        assert 0 <= samples.start < samples.stop <= self.num_samples
        generator = np.random.default_rng(0)
        rows = [Row((Piece(generator.integers(3, SIZE, n), True),), 0, n) for n in (60, 2, 40, 1, 13, 30, 55)]
        return OBJECTIVE.collate([rows[sample] for sample in samples])


def model() -> Model:
    return build_model(ARCH, OBJECTIVE.make_heads(ARCH), seed=1)


def evaluate_cases(folder: Path) -> list[dict[str, float]]:
    """Figures of every case on this rank."""
    made = model()
    return [
        evaluate(ModelRunner(made), OBJECTIVE, HeldOut(n), asked, size, torch.device("cpu")) for n, asked, size in CASES
    ]


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def by_hand(num_samples: int, asked: int) -> dict[str, float]:
    """One sample after another."""
    made, source = model().eval(), HeldOut(num_samples)
    loss = correct = targets = 0.0
    for sample in range(min(asked or num_samples, num_samples)):
        with torch.no_grad():
            term = OBJECTIVE.losses(made, source.held_out(range(sample, sample + 1)), with_accuracy=True)["mlm"]
        loss, correct, targets = loss + term.loss_sum.item(), correct + term.correct.item(), targets + term.num_targets
    means = {"loss": loss / targets, "accuracy": correct / targets, "perplexity": math.exp(loss / targets)}
    return {**means, "num_targets": targets}


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: str(CASES[case]))
def test_figures_are_means_over_all_targets(case):
    figures = evaluate_cases(Path())[case]
    expected = by_hand(*CASES[case][:2])
    assert set(figures) == set(expected)
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-5), name


def test_any_number_of_ranks_gives_the_same_figures(tmp_path):
    expected = evaluate_cases(Path())
    found = run_ranks("tests.engine.train.test_evaluate", "evaluate_cases", tmp_path, ranks=3)
    assert found[0] == found[1] == found[2]
    for mine, theirs in zip(expected, found[0], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-12), name


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize(("samples", "asked", "size"), CASES)
def test_turns(samples, asked, size, ranks, monkeypatch):
    """Equally many forward calls on every rank; those that count hold each sample once."""
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    calls, counted = set(), []
    for rank in range(ranks):
        monkeypatch.setenv("RANK", str(rank))
        turns = list(held_out_turns(HeldOut(samples), asked, size))
        calls.add(len(turns))
        counted += [sample for batch, counts in turns if counts for sample in batch]
    assert len(calls) == 1
    assert sorted(counted) == list(range(min(asked or samples, samples)))


class TwoTerms:
    """An objective with two terms of different weights and counts; the second knows no accuracy."""

    name = "two"

    def losses(self, model: Any, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        count = batch.num_tokens
        first = LossTerm(torch.tensor(3.0 * count), count, 1.0, torch.tensor(count // 2))
        return {"a": first, "b": LossTerm(torch.tensor(10.0), 2, 0.5)}


def test_two_terms():
    figures = evaluate(ModelRunner(model()), TwoTerms(), HeldOut(7), 0, 7, torch.device("cpu"))
    assert figures["loss"] == pytest.approx(3.0 + 0.5 * 5.0)
    assert (figures["loss_a"], figures["loss_b"]) == (pytest.approx(3.0), pytest.approx(5.0))
    assert "perplexity" not in figures  # neither term predicts tokens
    assert figures["accuracy_a"] == pytest.approx(0.5, abs=0.01) and "accuracy" not in figures


def test_model_is_evaluated_without_dropout_and_left_as_it_was():
    made = model()
    seen = []
    made.encoder.register_forward_hook(lambda module, given, result: seen.append(module.training))
    for training in (True, False):
        made.train(training)
        evaluate(ModelRunner(made), OBJECTIVE, HeldOut(7), 0, 2, torch.device("cpu"))
        assert made.training == made.encoder.training == training
    assert not any(seen)
