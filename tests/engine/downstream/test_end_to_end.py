"""Pretraining that fine-tunes its checkpoints: stopped while it waits, gone on with on two ranks, and by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.downstream.__main__ import main
from tests import commands
from tests.engine.train.test_signals import ranks_of

FINETUNE = commands.REPOSITORY / "finetune" / "run.py"
FP32 = str(commands.DS_CONFIGS / "fp32.json")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A small task."""
    lines = [f"{label}\t{word} day {number}" for number in range(12) for label, word in (("0", "bad"), ("1", "good"))]
    table = tmp_path / "train.tsv"
    table.write_text("\n".join(["label\ttext_a", *lines]) + "\n")
    return {
        "ds_config": FP32, "train_file": str(table), "dev_file": str(table), "epochs": 1, "max_length": 16,
        "train": {"batch_size": 8, "tensorboard": False, "optimizer": {"lr": 1e-3}},
    }  # fmt: skip


def pretraining(folder: Path, shards: Path, plan: Path) -> list[str]:
    return [
        "--ds_config", FP32, "--model", "bert-tiny", "--arch.hidden_size", "32", "--data.shards", str(shards),
        "--data.seq_length", "32", "--train.batch_size", "4", "--train.micro_batch_size", "2", "--train.steps", "4",
        "--train.save_every", "2", "--train.keep_checkpoints", "1", "--train.eval_rows", "4", "--train.log_every", "1",
        "--train.tensorboard", "false", "--train.output", str(folder / "run"), "--train.evaluate_with", str(plan),
    ]  # fmt: skip


def stop_while_it_waits(command: list[str], folder: Path, rank: int | None = None) -> int:
    """Send SIGTERM to the command or a rank of it when it waits for the first fine-tuning; the exit code."""
    log = folder.parent / "log"
    with log.open("w") as output:
        run = subprocess.Popen(command, env=commands.environment(), stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while "waiting for fine-tuning: toy of step 2" not in log.read_text():
        assert time.monotonic() < deadline and run.poll() is None, log.read_text()
        time.sleep(0.1)
    os.kill(run.pid if rank is None else ranks_of(folder)[rank], signal.SIGTERM)
    return run.wait(60)


def downstream_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in commands.metrics(run) if any(key.startswith("downstream_") for key in line)]


def test_scores_of_a_run(
    shards: Path, tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run, plan = tmp_path / "run", tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"every": 2, "tasks": {"toy": settings}}))
    options = pretraining(tmp_path, shards, plan)
    code = stop_while_it_waits(commands.launch_command(commands.PRETRAIN, options, None), run)
    log = (tmp_path / "log").read_text()
    assert code == 75, log
    assert "stopped by SIGTERM at step 4, which is saved: the same command goes on from there" in log
    assert not (run / "FINISHED").exists() and downstream_lines(run) == []
    # Two ranks, of which one waits for the other's fine-tunings for longer than a lost rank would be waited for.
    done = commands.run(commands.PRETRAIN, [*options, "--train.rank_timeout", "1"], ranks=2)
    assert done.returncode == 0, done.stdout
    assert (run / "FINISHED").is_file() and (run / "downstream" / "scores.svg").is_file()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-4"]
    scores = [json.loads(line) for line in (run / "downstream" / "results.jsonl").read_text().splitlines()]
    assert [(score["step"], score["task"]) for score in scores] == [(2, "toy"), (4, "toy")]
    names = ("dev_accuracy", "dev_f1", "dev_loss", "dev_macro_f1", "dev_matthews", "dev_micro_f1")
    assert downstream_lines(run) == [
        {"step": score["step"], **{f"downstream_toy_{name}": score[name] for name in names}} for score in scores
    ]
    by_hand = tmp_path / "by_hand"
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump(settings))
    done = commands.run(FINETUNE, ["--config", file, "--model", run, "--output", by_hand])
    assert done.returncode == 0, done.stdout
    expected = json.loads((by_hand / "results.json").read_text())
    assert {name: scores[1][name] for name in names} == {name: expected[name] for name in names}
    assert scores[0]["dev_loss"] != scores[1]["dev_loss"]
    # Afterwards, another task on what is left of the run.
    plan.write_text(yaml.safe_dump({"at": [3, 4], "tasks": {"other": {**settings, "seed": 2}}}))
    with (run / "metrics.jsonl").open("a") as opened:
        opened.write("{")  # of a run that was killed
    assert main([str(run), str(plan)]) == 0
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if line != "{\n"))
    assert "note: no checkpoint is there of step 3" in capsys.readouterr().err
    assert [line["step"] for line in downstream_lines(run)] == [2, 4, 4]
    assert "downstream_other_dev_accuracy" in downstream_lines(run)[-1]


def test_a_signal_to_another_rank_ends_the_waiting(shards: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"every": 2, "tasks": {"toy": {**settings, "epochs": 5000}}}))
    options = pretraining(tmp_path, shards, plan)
    code = stop_while_it_waits(commands.launch_command(commands.PRETRAIN, options, 2), tmp_path / "run", rank=1)
    log = (tmp_path / "log").read_text()
    assert code == 75 and "stopped by SIGTERM at step 4, which is saved" in log, log


def test_every_rank_ends_with_a_mistake_in_the_file(shards: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Rank 1 alone, as under launchers that end none with another: it does not wait for rank 0, which is not there."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"every": 3, "evry": 2, "tasks": {"toy": settings}}))
    alone = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(commands.free_port())}
    done = commands.run(commands.PRETRAIN, pretraining(tmp_path, shards, plan), env={**alone, "LOCAL_RANK": "0"})
    assert done.returncode == 2 and "unknown key evry; did you mean every?" in done.stdout
    # The files of tasks are rank 0's alone: it looks for them when all have met.
    plan.write_text(yaml.safe_dump({"every": 2, "tasks": {"toy": {**settings, "dev_file": "absent.tsv"}}}))
    done = commands.run(commands.PRETRAIN, pretraining(tmp_path, shards, plan), ranks=2)
    assert done.returncode == 2 and done.stdout.count("tasks.toy: dev_file absent.tsv: no such file") == 1
    done = commands.run(commands.PRETRAIN, [*pretraining(tmp_path, shards, plan), "--dry_run"], ranks=2)
    assert done.returncode == 2 and done.stdout.count("tasks.toy: dev_file absent.tsv: no such file") == 1
    assert not (tmp_path / "run").exists()


def test_mistakes(shards: Path, tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"every": 3, "tasks": {"toy": settings}}))
    done = commands.run(commands.PRETRAIN, pretraining(tmp_path, shards, plan))
    assert done.returncode == 2 and "step 3 has no checkpoint: train.save_every is 2" in done.stdout
    assert not (tmp_path / "run").exists()
    assert main([str(tmp_path / "run"), str(plan)]) == 2
    assert f"{tmp_path / 'run'} is no run folder with a checkpoint" in capsys.readouterr().err
    plan.write_text(yaml.safe_dump({"every": 2, "tasks": {"toy": {**settings, "columns": "label,text_x"}}}))
    done = commands.run(commands.PRETRAIN, pretraining(tmp_path, shards, plan))
    assert done.returncode == 2 and "evaluate_with: task toy is refused:" in done.stdout
    assert "text_x" in done.stdout.partition("is refused:")[2]
    assert not any("loss" in line for line in done.stdout.splitlines() if line.startswith("step 1"))
    plan.write_text(yaml.safe_dump({"at": [2], "last": False, "tasks": {"toy": settings}}))
    assert main([str(tmp_path / "run"), str(plan)]) == 2
    assert "no checkpoint is chosen: there are those of steps 0" in capsys.readouterr().err
    done = commands.run(FINETUNE, ["--ds_config", FP32, "--model", "x", "--train_file", "x", "--dev_file", "x",
                                   "--train.evaluate_with", plan])  # fmt: skip
    assert done.returncode == 2
    assert "train.evaluate_with is given, and fine-tunes checkpoints of a pretraining; remove it" in done.stdout
