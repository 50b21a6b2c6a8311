"""W&B beside a run: the real library without a network, one run a folder, and nothing that it can break."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest

from engine.config.cli import RunStopped
from engine.config.train import TrainConfig
from engine.train.metrics import MetricsLog
from engine.train.sinks import require_login
from tests import commands
from tests.engine.train import wandb_files

CONFIG = TrainConfig(steps=10, tensorboard=False, wandb="team/project")
KEY = "0123456789abcdef0123456789abcdef01234567"
SMALL = (
    "--model", "bert-tiny", "--arch.num_layers", "1", "--data.seq_length", "64", "--train.batch_size", "8",
    "--train.micro_batch_size", "4", "--train.log_every", "1", "--train.eval_rows", "16", "--train.save_every", "2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.delenv("RANK", raising=False)
    for name, value in {"WANDB_MODE": "offline", "HOME": str(tmp_path), "WANDB_API_KEY": KEY}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"train": {"steps": 10}, "seed": 1}))
    return folder


def start(run: Path, first: int, steps: list[int], config: TrainConfig = CONFIG) -> None:
    log = MetricsLog(run / "metrics.jsonl", config, 10, first)
    for step in steps:
        log.write(step, {"loss": float(step), "mfu": None})
    log.close()


def test_a_folder_is_one_run_at_every_start(run):
    start(run, 0, [1, 2, 3])
    start(run, 2, [3, 4])  # killed after the checkpoint of step 2
    first, second = wandb_files.offline_files(run)
    ((project, identity),) = json.loads((run / "wandb.json").read_text()).items()
    assert project == "team/project"
    assert first.name == second.name == f"run-{identity}.wandb"
    assert wandb_files.history(first) == [{"step": step, "loss": float(step)} for step in (1, 2, 3)]
    assert wandb_files.history(second) == [{"step": step, "loss": float(step)} for step in (3, 4)]
    settings = wandb_files.config(first)
    assert settings["train"] == {"steps": 10} and settings["seed"] == 1
    start(run, 4, [5], TrainConfig(steps=10, tensorboard=False, wandb="other"))
    assert set(json.loads((run / "wandb.json").read_text())) == {"team/project", "other"}


def test_no_key_is_in_the_folder(run):
    start(run, 0, [1])
    files = [file for file in run.rglob("*") if file.is_file()]
    assert len(files) > 3
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_fails_there_is_told_once_and_ends_nothing(fails, run, monkeypatch, capsys):
    import wandb

    def fail(*arguments, **named):
        raise OSError(28, "No space left on device")

    target = wandb if fails == "init" else wandb.sdk.wandb_run.Run
    monkeypatch.setattr(target, fails, fail)
    start(run, 0, [1, 2, 3])
    text = capsys.readouterr().err
    assert text.count("note: W&B failed (OSError: [Errno 28] No space left on device); the run goes on without it") == 1
    assert [line["step"] for line in commands.metrics(run)] == [1, 2, 3]
    monkeypatch.undo()
    if fails == "finish":
        wandb.finish()


SLOW_WANDB = """
import time
from types import SimpleNamespace

def Settings(**given):
    return None

def setup():
    return SimpleNamespace(settings=SimpleNamespace(mode="offline"))

def init(**given):
    return SimpleNamespace(
        define_metric=lambda *given, **named: None, log=lambda row: None, offline=True, sync_dir="",
        finish=lambda exit_code: time.sleep(100),
    )
"""


def test_a_server_that_is_slow_at_the_end_does_not_make_its_rank_a_lost_one(shards, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(SLOW_WANDB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = tmp_path / "run"
    options = ["--ds_config", commands.DS_CONFIGS / "fp32.json", "--data.shards", shards, "--train.output", run, *SMALL]
    more = ["--train.steps", "2", "--train.tensorboard", "false", "--train.wandb", "p", "--train.rank_timeout", "8"]
    done = commands.run(commands.PRETRAIN, [*options, *more], 2)
    assert done.returncode == 0, done.stdout
    assert (run / "FINISHED").is_file()
    assert f"note: W&B has not taken all within 5 s; what is left stays in {run / 'wandb'}" in done.stdout


@pytest.mark.parametrize(("error", "code"), [(None, 0), (RunStopped("SIGTERM", 1), 0), (ValueError("x"), 1)])
def test_only_a_run_that_failed_is_marked_so(error, code, run):
    log = MetricsLog(run / "metrics.jsonl", CONFIG, 10, 0)
    with contextlib.suppress(RunStopped, ValueError):
        try:
            log.write(1, {"loss": 1.0})
            if error:
                raise error
        finally:
            log.close()
    (file,) = wandb_files.offline_files(run)
    assert [end.exit_code for end in wandb_files.ends(file)] == [code]


def test_without_a_key_nothing_begins(monkeypatch):
    import wandb

    require_login(None)
    require_login("project")  # offline: none is needed
    wandb.teardown()
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "online")
    try:
        with pytest.raises(ValueError, match="no W&B key that it takes: set WANDB_API_KEY or run wandb login; WANDB_"):
            require_login("project")
        monkeypatch.setenv("WANDB_API_KEY", "bogus")
        with pytest.raises(ValueError, match=r"no W&B key that it takes \(.*40.*\): set WANDB_API_KEY"):
            require_login("project")
    finally:
        wandb.teardown()


def test_the_setting(monkeypatch, tmp_path):
    for wrong in ("", "a/", "/b", "a/b/c"):
        assert TrainConfig(wandb=wrong).problems() == [
            f"train.wandb is {wrong!r}; it must be PROJECT or ENTITY/PROJECT"
        ]
    assert TrainConfig(wandb="a/b").problems() == TrainConfig(wandb="a").problems() == []
    missing = "train.wandb needs the library of Weights & Biases: pip install wandb; or leave train.wandb out"
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb")
    for path in ([], [str(tmp_path)]):  # the second finds a folder of that name
        monkeypatch.setattr(sys, "path", path)
        assert TrainConfig(wandb="a").problems() == [missing]
