"""What a run writes of itself."""

from __future__ import annotations

import json
import math

import pytest
import torch

from engine.config.train import TrainConfig
from engine.objectives.base import LossTerm, perplexity_of
from engine.train.metrics import MetricsLog, Window, say

QUIET = TrainConfig(steps=10, tensorboard=False)


@pytest.fixture(autouse=True)
def rank_zero(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)


def test_lines_are_json_and_what_is_not_finite_is_null(tmp_path):
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file, QUIET, 10, 0)
    log.write(3, {"loss": 2.5, "grad_norm": math.nan, "eta": math.inf, "mfu": None, "tokens": 12_345_678_901})
    log.advance()
    log.write(4, {"heldout_loss": -math.inf})
    log.close()
    lines = file.read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 3, "loss": 2.5, "grad_norm": None, "eta": None, "mfu": None, "tokens": 12_345_678_901},
        {"step": 4, "heldout_loss": None},
    ]
    again = MetricsLog(file, QUIET, 10, 4)  # a resumed run adds to the file
    again.write(5, {"loss": 2.0})
    again.close()
    assert len(file.read_text().splitlines()) == 3


def test_log_line(tmp_path, capsys):
    log = MetricsLog(tmp_path / "metrics.jsonl", QUIET, 10, 0)
    figures = {
        "loss": 2.34567, "lr": 1.25e-5, "tokens": 1234, "memory_bytes": 3 * 2**29, "mfu": 0.4321, "eta": 3723.9,
        "heldout_accuracy": 0.5, "grad_norm": math.nan,
    }  # fmt: skip
    log.write(7, figures)
    log.close()
    line = next(line for line in capsys.readouterr().err.splitlines() if "step 7" in line)
    assert line.endswith(
        "step 7: loss 2.3457, lr 1.25e-05, tokens 1,234, memory 1.50 GiB, mfu 43.2%, eta 1:02:03, "
        "heldout_accuracy 50.0%"
    )


def test_other_ranks_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    log = MetricsLog(tmp_path / "metrics.jsonl", TrainConfig(), 10, 0)
    log.write(1, {"loss": 1.0})
    log.advance()
    log.close()
    say("unheard")
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""


def test_tensorboard_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, steps in ((0, (1, 2, 3)), (2, (3,))):  # the second start goes on from step 2
        log = MetricsLog(tmp_path / "metrics.jsonl", TrainConfig(), 3, first)
        for step in steps:
            log.write(step, {"loss": float(step + first), "mfu": None})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 5.0)]
    assert events.Tags()["scalars"] == ["loss"]


def term(loss: float, correct: int | None = None, weight: float = 1.0) -> LossTerm:
    return LossTerm(torch.tensor(loss), 0, weight, None if correct is None else torch.tensor(correct))


def test_means_of_a_window():
    window = Window()
    window.add("mlm", term(12.0))
    window.add("mlm", term(8.0))
    window.count({"mlm": torch.tensor(5.0)})
    window.count({"mlm": torch.tensor(3.0)})
    assert {key: float(value) for key, value in window.sums().items()} == {("loss", "mlm"): 20.0}
    perplexity = pytest.approx(math.exp(2.5))
    assert window.means({("loss", "mlm"): 20.0}) == {"loss": 2.5, "perplexity": perplexity}
    window.add("nsp", term(2.0, correct=3, weight=0.5))
    window.count({"nsp": torch.tensor(4.0)})
    sums = {key: float(value) for key, value in window.sums().items()}
    parts = {"loss_mlm": 2.5, "loss_nsp": 0.5, "accuracy_nsp": 0.75}
    assert window.means(sums) == {"loss": 2.75, **parts, "perplexity": perplexity}
    empty = Window(counts={"mlm": torch.tensor(0.0)})
    empty.add("mlm", term(0.0))
    assert empty.means({("loss", "mlm"): 0.0}) == {"loss": 0.0, "perplexity": 1.0}


def test_perplexity_is_that_of_the_term_that_predicts_tokens():
    assert perplexity_of({"lm": 3.0}) == {"perplexity": pytest.approx(20.0855369)}
    assert perplexity_of({"nsp": 0.7, "mlm": 1.0}) == {"perplexity": pytest.approx(math.e)}
    assert perplexity_of({"classification": 0.5}) == {}
    assert perplexity_of({"lm": 1e4}) == {"perplexity": math.inf}  # null in the file, as the next
    assert math.isnan(perplexity_of({"lm": math.nan})["perplexity"])


def test_windows_share_nothing():
    Window().loss_sums["mlm"] = torch.tensor(1.0)
    assert Window().loss_sums == {}
