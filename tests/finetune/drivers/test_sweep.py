"""Sweeps: what they run, in which order, what they keep, and that they go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.config.cli import UsageError
from finetune import sweep
from finetune.drivers import sweeping
from finetune.drivers.config import SweepConfig
from finetune.drivers.processes import Done
from finetune.drivers.sweeping import Sweep
from tests.finetune import tiny

SETTINGS = {"ds_config": "fp32.json", "model": "bert", "train_file": "train.tsv", "dev_file": "dev.tsv"}
LR = "train.optimizer.lr"


class FakeJobs:
    """Ends jobs in the order of their starts, with figures computed from their settings."""

    begun: list[Mapping[str, Any]]
    compute: Callable[[Mapping[str, Any]], float | None]

    def __init__(self, slots: list[Any], timeout: float) -> None:
        self.slots, self.jobs = slots, {}

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def running(self) -> list[str]:
        return list(self.jobs)

    @property
    def has_room(self) -> bool:
        return len(self.jobs) < len(self.slots)

    def begin(self, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        FakeJobs.begun.append(settings)
        (folder / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.jobs[name] = settings

    def next_done(self) -> Done:
        name = next(iter(self.jobs))
        value = FakeJobs.compute(self.jobs.pop(name))
        if value is None:
            return Done(name, None, "it broke", 1.0)
        results = {"main_figure": "accuracy", "dev_accuracy": value, "dev_loss": 1 - value, "steps": 5}
        return Done(name, results, "", 1.0)


@pytest.fixture
def fake(monkeypatch):
    """Sweeps whose runs take no time."""
    monkeypatch.setattr(sweeping, "FinetuneJobs", FakeJobs)
    monkeypatch.setattr(FakeJobs, "begun", [], raising=False)
    monkeypatch.setattr(
        FakeJobs, "compute", staticmethod(lambda s: accuracy(s["train"]["optimizer"]["lr"])), raising=False
    )
    return FakeJobs


def accuracy(lr: float) -> float:
    return 1 / (1 + abs(math.log10(lr) + 4))  # the best is 1e-4


def config(output: Path, **more: Any) -> SweepConfig:
    return SweepConfig(**{"output": str(output), "settings": SETTINGS, "search": {LR: ["1e-3", 1e-4, 1e-5]}, **more})


def test_grid_makes_every_combination_once_and_keeps_the_best_model(fake, tmp_path):
    output = tmp_path / "sweep"
    Sweep(config(output, search={LR: ["1e-3", 1e-4], "epochs": [1, 2]}, jobs=3)).run()
    assert [(run["train"]["optimizer"]["lr"], run["epochs"]) for run in fake.begun] == [
        (1e-3, 1), (1e-3, 2), (1e-4, 1), (1e-4, 2),
    ]  # fmt: skip
    assert all(run["model"] == "bert" for run in fake.begun) and "train" not in SETTINGS
    assert [(output / f"trial-{n:04d}/run/checkpoints").exists() for n in range(4)] == [False, False, True, False]
    best = json.loads((output / "best.yaml").read_text())
    assert best == {**SETTINGS, "train": {"optimizer": {"lr": 1e-4}}, "epochs": 1}
    lines = (output / "sweep.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["run", "state", LR, "epochs", "dev_accuracy", "dev_loss", "seconds"]
    assert [line.split("\t")[0] for line in lines[1:]] == ["2", "3", "0", "1"]
    assert lines[1].split("\t")[2:6] == ["0.0001", "1", "1.0000", "0.0000"]
    assert "| 2 | done | 0.0001 | 1 | 1.0000 | 0.0000 | 1.0000 |" in (output / "sweep.md").read_text()
    assert (output / "sweep.png").stat().st_size > 1000


def test_a_second_start_makes_what_is_missing(fake, tmp_path):
    Sweep(config(tmp_path / "sweep")).run()
    assert len(fake.begun) == 3
    Sweep(config(tmp_path / "sweep")).run()
    assert len(fake.begun) == 3
    Sweep(config(tmp_path / "sweep", search={LR: [1e-4, 1e-6]})).run()
    assert len(fake.begun) == 4 and fake.begun[-1]["train"]["optimizer"]["lr"] == 1e-6


def test_what_was_running_or_failed_is_tried_again_in_its_folder(fake, tmp_path, monkeypatch):
    works = fake.compute
    monkeypatch.setattr(
        fake, "compute", staticmethod(lambda s: None if s["train"]["optimizer"]["lr"] == 1e-4 else works(s))
    )
    with pytest.raises(ValueError, match=r"run\(s\) 1 failed; the same command tries them again"):
        Sweep(config(tmp_path / "sweep")).run()
    assert json.loads((tmp_path / "sweep/trial-0001/trial.json").read_text())["problem"] == "it broke"
    record = tmp_path / "sweep/trial-0002/trial.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "state": "running"}))
    monkeypatch.setattr(fake, "compute", staticmethod(works))
    Sweep(config(tmp_path / "sweep")).run()
    assert [run["train"]["optimizer"]["lr"] for run in fake.begun[3:]] == [1e-4, 1e-5]
    assert len(list((tmp_path / "sweep").glob("trial-*"))) == 3


def test_a_loss_is_minimized(fake, tmp_path):
    sweep = Sweep(config(tmp_path / "sweep", figure="dev_loss"))
    sweep.run()
    assert [trial.changes[LR] for trial in sweep.ranked()] == [1e-4, 1e-3, 1e-5]
    assert Sweep(config(tmp_path / "sweep", figure="dev_loss", direction="maximize")).ranked()[0].changes[LR] != 1e-4


def test_optuna_goes_on_as_if_it_had_not_been_stopped(fake, tmp_path):
    pytest.importorskip("optuna")
    more = {"method": "optuna", "search": {LR: {"low": "1e-6", "high": 1e-2, "log": True}, "epochs": [1, 2]}}
    whole = Sweep(config(tmp_path / "whole", trials=12, **more))
    whole.run()
    Sweep(config(tmp_path / "parts", trials=7, **more)).run()
    parts = Sweep(config(tmp_path / "parts", trials=12, **more))
    parts.run()
    drawn = [trial.changes for trial in whole.trials.values()]
    assert drawn == [trial.changes for trial in parts.trials.values()] and len(drawn) == 12
    assert len({changes[LR] for changes in drawn}) == 12 and {changes["epochs"] for changes in drawn} == {1, 2}
    assert all(1e-6 <= changes[LR] <= 1e-2 for changes in drawn)
    Sweep(config(tmp_path / "seed", trials=3, seed=2, **more)).run()
    assert fake.begun[-3]["train"]["optimizer"]["lr"] != drawn[0][LR]


def test_optuna_goes_on_after_a_kill_in_the_middle_of_a_run(fake, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    more = {"method": "optuna", "search": {LR: {"low": "1e-6", "high": 1e-2, "log": True}}, "trials": 12}
    whole = Sweep(config(tmp_path / "whole", **more))
    whole.run()
    works = fake.next_done

    def killed(self: Any) -> Done:
        if "6" in self.jobs:
            raise KeyboardInterrupt
        return works(self)

    monkeypatch.setattr(fake, "next_done", killed)
    with pytest.raises(KeyboardInterrupt):
        Sweep(config(tmp_path / "parts", **more)).run()
    monkeypatch.setattr(fake, "next_done", works)
    parts = Sweep(config(tmp_path / "parts", **more))
    parts.run()
    assert [trial.changes for trial in parts.trials.values()] == [trial.changes for trial in whole.trials.values()]


def test_optuna_finds_what_is_better(fake, tmp_path):
    pytest.importorskip("optuna")
    search = {LR: {"low": 1e-6, "high": 1e-2, "log": True}}
    sweep = Sweep(config(tmp_path / "sweep", method="optuna", trials=30, search=search, keep_models="none", jobs=2))
    sweep.run()
    distances = [abs(math.log10(trial.changes[LR]) + 4) for trial in sweep.trials.values()]
    assert min(distances) < 0.1 and sum(distances[20:]) < 0.7 * sum(distances[:10])


def test_stops_where_nothing_goes_well(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(fake, "compute", staticmethod(lambda settings: None))
    with pytest.raises(ValueError, match="the first 3 runs failed; the last of them: it broke"):
        Sweep(config(tmp_path / "sweep", search={LR: [1.0, 2.0, 3.0, 4.0, 5.0]})).run()
    assert len(fake.begun) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"search": {}}, "search is empty"),
        ({"search": {LR: []}}, "must hold at least one value"),
        ({"search": {LR: 1e-3}}, "must be a list of values or a range"),
        ({"search": {LR: {"low": 1e-5, "high": 1e-3}}}, "a grid needs a list of values"),
        ({"search": {LR: {"low": 1, "high": 1}}, "method": "optuna", "trials": 3}, "low < high"),
        ({"search": {LR: {"low": 0, "high": 1, "log": True}}, "method": "optuna"}, "log needs low above 0"),
        ({"search": {LR: {"low": 0, "hihg": 1}}, "method": "optuna"}, "unknown key hihg; did you mean high"),
        ({"method": "optuna"}, "optuna needs to know how many runs"),
        ({"method": "random"}, "method is 'random'; it must be one of grid, optuna"),
        ({"search": {"train.optimizer.rl": [1]}}, r"unknown key train\.optimizer\.rl; did you mean train\.opt"),
        ({"search": {"epochs": [1, 0]}}, r"epochs is 0; it must be at least 1 \(with epochs 0\)"),
        ({"settings": {**SETTINGS, "output": "x"}}, "output is given; the sweep sets it"),
        ({"jobs": -1}, "jobs is -1"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_any_run(fake, tmp_path, more, message):
    with pytest.raises(UsageError, match=message):
        Sweep(config(tmp_path / "sweep", **more))
    assert not (tmp_path / "sweep").exists()


def test_another_sweeps_folder_is_refused(fake, tmp_path):
    Sweep(config(tmp_path / "sweep")).run()
    with pytest.raises(UsageError, match="is of a sweep with other settings"):
        Sweep(config(tmp_path / "sweep", settings={**SETTINGS, "seed": 7}))
    with pytest.raises(UsageError, match=r"that searches train.optimizer.lr, and not epochs; only their values may"):
        Sweep(config(tmp_path / "sweep", search={"epochs": [1, 2]}))
    at_work = Sweep(config(tmp_path / "sweep"))
    with pytest.raises(UsageError, match="another sweep or suite is at work in --output"):
        Sweep(config(tmp_path / "sweep"))
    at_work.run()
    with pytest.raises(ValueError, match="figure is 'dev_f1', but the runs have dev_accuracy, dev_loss"):
        Sweep(config(tmp_path / "sweep", figure="dev_f1")).ranked()


def test_real_runs_two_at_once(bert, tmp_path, monkeypatch):
    """By the command line, in processes of their own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tiny.write_table(tmp_path / "train.tsv", ["label", "text_a"], tiny.single_rows(16))
    given = tiny.options(bert, file, tmp_path / "unused", "--epochs", "2", "--train.optimizer.lr", "1e-9")
    pairs = dict(zip(map(str, given[::2]), map(str, given[1::2]), strict=True))
    settings: dict[str, Any] = {}
    for name, value in pairs.items():
        settings = sweeping.with_changes(settings, {name[2:]: int(value) if value.isdecimal() else value})
    del settings["output"]
    settings["train"]["tensorboard"] = False
    (tmp_path / "sweep.yaml").write_text(
        json.dumps({"settings": settings, "search": {LR: ["3e-3", 1e-7]}, "output": str(tmp_path / "sweep")})
    )
    assert sweep.main(["--config", str(tmp_path / "sweep.yaml"), "--jobs", "2", "--figure", "dev_loss"]) == 0
    trials = [json.loads((tmp_path / f"sweep/trial-{n:04d}/trial.json").read_text()) for n in range(2)]
    results = [json.loads((tmp_path / f"sweep/trial-{n:04d}/run/results.json").read_text()) for n in range(2)]
    assert [trial["figures"]["dev_loss"] for trial in trials] == [result["dev_loss"] for result in results]
    assert results[0]["dev_loss"] < results[1]["dev_loss"] and trials[0]["main_figure"] == "dev_accuracy"
    assert (tmp_path / "sweep/trial-0000/run/model/config.json").is_file()
    assert not (tmp_path / "sweep/trial-0001/run/model").exists()
