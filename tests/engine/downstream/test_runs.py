"""The queue of fine-tunings, with a stand-in for finetune/run.py: order, failures, stops, what is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.run_folder import RunFolder
from engine.downstream import process
from engine.downstream.plan import DownstreamPlan
from engine.downstream.runs import DownstreamRuns
from engine.downstream.scores import Score, ScoreFolder
from tests import commands

STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CHILD", STAND_IN)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def add_checkpoint(run: RunFolder, step: int) -> None:
    """What DownstreamRuns looks at of a checkpoint; the weights are the step as text."""
    model = run.step_folder(step) / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_text(str(step))
    (run.step_folder(step) / "manifest.json").write_text("{}")
    run.link_model(step)


def add_line(run: RunFolder, step: int, **figures: float) -> None:
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": step, **figures}) + "\n")


def plan(folder: Path, every: int = 2, **tasks: dict[str, Any]) -> DownstreamPlan:
    diary = str(folder / "diary")
    settings = {name: {"acts": {**acts, "diary": diary}} for name, acts in tasks.items()}
    return DownstreamPlan(every=every, environment={"EXTRA": "yes"}, tasks=settings)


def diary(folder: Path) -> list[dict[str, Any]]:
    file = folder / "diary"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def finish(runs: DownstreamRuns) -> list[tuple[int, dict[str, Any]]]:
    """Wait for all; the lines that came up."""
    lines: list[tuple[int, dict[str, Any]]] = []
    assert runs.wait(lambda step, figures: lines.append((step, figures)), lambda: None) is None
    runs.close()
    return lines


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_chosen_checkpoint_in_order(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_checkpoint(run, 0)
    runs = DownstreamRuns(run, plan(tmp_path, a={}, b={}), last_step=5)
    runs.start(0)
    for step in (1, 2, 4, 5):
        add_checkpoint(run, step)
        runs.checkpoint(step)
    kept = run.path / "downstream" / "step-2" / "model" / "model.safetensors"
    assert kept.samefile(run.step_folder(2) / "model" / "model.safetensors")  # no copy
    lines = finish(runs)
    assert lines == [
        (step, {f"downstream_{task}_dev_accuracy": float(step), f"downstream_{task}_dev_loss": 0.5})
        for step in (2, 4, 5)
        for task in "ab"
    ]
    entries = diary(tmp_path)
    assert [(entry["task"], entry["dry"]) for entry in entries] == [
        ("a", True),
        ("b", True),
        *[("a", False), ("b", False)] * 3,
    ]
    assert all(entry["names"] == [] and entry["extra"] == "yes" for entry in entries)
    assert entries[0]["model"] == str(run.model)
    left = {path.name for path in (run.path / "downstream" / "step-2").iterdir()}
    assert left == {"a", "b", "a.yaml", "b.yaml", "a.log", "b.log"}
    assert [path.name for path in (run.path / "downstream" / "step-2" / "a").iterdir()] == ["results.json"]
    said = capsys.readouterr().err
    assert "fine-tuning the model of step 4: b (" in said and "waiting for fine-tuning: " in said


def test_a_checkpoint_that_is_dropped_meanwhile(run: RunFolder, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    runs = DownstreamRuns(run, plan(tmp_path, a={"wait_for": str(gate)}), last_step=9)
    add_checkpoint(run, 0)
    runs.start(0)
    for step in (2, 4):
        add_checkpoint(run, step)
        runs.checkpoint(step)
    run.publish(written_checkpoint(run, 6), 6, keep=1)
    assert run.steps() == [6]
    gate.touch()
    assert [step for step, _ in finish(runs)] == [2, 4]


def written_checkpoint(run: RunFolder, step: int) -> Path:
    add_checkpoint(run, step)
    return run.step_folder(step).rename(run.checkpoints / ".written")


def test_keep_models(run: RunFolder, tmp_path: Path) -> None:
    add_checkpoint(run, 2)
    wanted = plan(tmp_path, a={})
    runs = DownstreamRuns(run, DownstreamPlan(every=2, keep_models=True, tasks=wanted.tasks), last_step=2)
    runs.start(2)
    finish(runs)
    assert (run.path / "downstream" / "step-2" / "model" / "model.safetensors").is_file()
    assert (run.path / "downstream" / "step-2" / "a" / "checkpoints").is_dir()


def test_a_failure_is_told_and_the_rest_goes_on(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (2, 4):
        add_checkpoint(run, step)
    runs = DownstreamRuns(run, plan(tmp_path, a={"fails_on": "2"}, b={}), last_step=4)
    runs.start(4)
    lines = finish(runs)
    assert [(step, next(iter(figures))) for step, figures in lines] == [
        (2, "downstream_b_dev_accuracy"), (4, "downstream_a_dev_accuracy"), (4, "downstream_b_dev_accuracy"),
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "note: fine-tuning a of step 2 failed: exit code 7; the end of " in said
    assert "  much before\n  error: it went wrong" in said
    assert "note: 1 fine-tuning(s) failed: a of step 2; python -m engine.downstream tries again" in said
    assert runs.failed == ["a of step 2"]
    again = DownstreamRuns(run, plan(tmp_path, a={"fails_on": "2"}, b={}), last_step=4)
    again.start(4)
    finish(again)
    assert [entry["task"] for entry in diary(tmp_path) if not entry["dry"]] == ["a", "b", "a", "b", "a"]


@pytest.mark.parametrize(
    ("acts", "message"),
    [
        ({"results": [1]}, "results.json holds no object but list"),
        ({"results": "torn"}, "results.json holds no object but str"),
        ({"wait_for": "/nowhere"}, "it was ended after 3 s (timeout); the end of "),
    ],
    ids=["list", "text", "hangs"],
)
def test_whatever_goes_wrong_is_a_failure_and_the_waiting_ends(
    acts: dict[str, Any], message: str, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_checkpoint(run, 2)
    wanted = plan(tmp_path, a=acts, b={})
    runs = DownstreamRuns(run, replace(wanted, timeout=3.0), last_step=2)
    runs.start(2)
    assert [next(iter(figures)) for _, figures in finish(runs)] == ["downstream_b_dev_accuracy"]
    assert runs.failed == ["a of step 2"]
    assert message in capsys.readouterr().err
    assert not Path(f"/proc/{diary(tmp_path)[-2]['pid']}").exists()


def test_a_mistake_of_ours_in_the_thread_ends_the_waiting_too(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_checkpoint(run, 2)
    runs = DownstreamRuns(run, plan(tmp_path, a={}), last_step=2)
    runs.start(2)
    monkeypatch.setattr("engine.downstream.runs.read_figures", lambda file: {}["figures"])
    assert finish(runs) == []
    assert "note: fine-tuning a of step 2 failed: KeyError('figures')" in capsys.readouterr().err


def test_a_check_that_hangs_is_refused(run: RunFolder, tmp_path: Path) -> None:
    add_checkpoint(run, 0)
    wanted = replace(plan(tmp_path, a={"check_hangs": True}), timeout=1.0)
    runs = DownstreamRuns(run, wanted, last_step=2)
    with pytest.raises(ValueError, match=r"evaluate_with: the check of task a: it was ended after 1 s \(timeout\)"):
        runs.start(0)
    runs.close()


def test_only_tasks_that_lack_a_score_are_checked(run: RunFolder, tmp_path: Path) -> None:
    wanted = plan(tmp_path, a={}, b={}, c={})
    folder = ScoreFolder(run)
    for step in (2, 4):
        add_checkpoint(run, step)
    folder.path.mkdir()
    for step, task in ((2, "a"), (4, "a"), (2, "b"), (4, "c")):
        folder.add(Score(step, task, wanted.digest(task), {"dev_accuracy": 0.5}))
    runs = DownstreamRuns(run, wanted, last_step=4)
    runs.start(2)  # step 4 is still to come, again
    finish(runs)
    assert [entry["task"] for entry in diary(tmp_path) if entry["dry"]] == ["b", "c"]
    assert [entry["task"] for entry in diary(tmp_path) if not entry["dry"]] == ["c"]


def test_a_kept_model_goes_with_its_last_score_also_after_a_kill(run: RunFolder, tmp_path: Path) -> None:
    wanted = plan(tmp_path, a={})
    folder = ScoreFolder(run)
    add_checkpoint(run, 2)
    kept = folder.keep_model(2)
    assert kept is not None
    folder.add(Score(2, "a", wanted.digest("a"), {"dev_accuracy": 0.5}))
    for keep_models in (True, False):
        assert kept.is_dir()
        runs = DownstreamRuns(run, replace(wanted, keep_models=keep_models), last_step=2)
        runs.start(2)
        finish(runs)
    assert not kept.exists()


def test_stopped_and_taken_up_again(run: RunFolder, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    tasks = plan(tmp_path, a={"wait_for": str(gate)})
    for step in (2, 4):
        add_checkpoint(run, step)
    runs = DownstreamRuns(run, tasks, last_step=4)
    runs.start(4)
    wait_until(lambda: any(not entry["dry"] for entry in diary(tmp_path)))
    assert runs.wait(lambda step, figures: None, lambda: "SIGTERM") == "SIGTERM"
    runs.close()
    assert not Path(f"/proc/{diary(tmp_path)[-1]['pid']}").exists()
    assert runs.failed == [] and ScoreFolder(run).scores() == []
    gate.touch()
    again = DownstreamRuns(run, tasks, last_step=4)
    again.start(4)
    assert [step for step, _ in finish(again)] == [2, 4]
    before = len(diary(tmp_path))
    third = DownstreamRuns(run, tasks, last_step=4)
    third.start(4)
    finish(third)
    assert diary(tmp_path)[before:] == []  # nothing is done twice, and what is done is not checked


def test_lines_that_a_return_cut_off_come_back_with_their_step(run: RunFolder, tmp_path: Path) -> None:
    for step in (2, 4):
        add_checkpoint(run, step)
    runs = DownstreamRuns(run, plan(tmp_path, a={}), last_step=6)
    runs.start(4)
    for step, figures in finish(runs):
        add_line(run, step, **figures)
    lines = run.metrics.read_text().splitlines(keepends=True)
    run.metrics.write_text(lines[0] + '{"step": 3, "lo')  # what a return to step 2 leaves, torn
    again = DownstreamRuns(run, plan(tmp_path, a={}), last_step=6)
    again.start(2)
    assert again.lines() == []
    again.checkpoint(4)
    assert [step for step, _ in again.lines()] == [4]
    assert finish(again) == []
    assert len([entry for entry in diary(tmp_path) if not entry["dry"]]) == 2
    run.metrics.write_text("")
    third = DownstreamRuns(run, plan(tmp_path, a={}), last_step=6)
    third.start(4)
    assert [step for step, _ in finish(third)] == [2, 4]


def test_a_model_that_is_gone_is_told(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_checkpoint(run, 2)
    runs = DownstreamRuns(run, plan(tmp_path, a={}), last_step=2)
    runs.checkpoint(4)
    assert "note: step 4 is left out of a: its model is no longer there" in capsys.readouterr().err


def test_refused_before_the_first_step(run: RunFolder, tmp_path: Path) -> None:
    add_checkpoint(run, 0)
    runs = DownstreamRuns(run, plan(tmp_path, a={}, b={"refused": True}), last_step=2)
    with pytest.raises(ValueError, match=r"evaluate_with: task b is refused:\n  error: columns is wrong"):
        runs.start(0)
    runs.close()
    ScoreFolder(run).add(Score(2, "a", "another", {"dev_accuracy": 0.5}))
    runs = DownstreamRuns(run, plan(tmp_path, a={}), last_step=2)
    with pytest.raises(
        ValueError, match="task a has other settings now than at step 2, so its scores cannot be compar"
    ):
        runs.start(0)


def test_the_disk_cannot_keep_a_model(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_checkpoint(run, 2)
    runs = DownstreamRuns(run, plan(tmp_path, a={}), last_step=2)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.downstream.scores.os.link", full)
    monkeypatch.setattr("engine.downstream.scores.shutil.copyfile", full)
    runs.checkpoint(2)
    assert "note: the model of step 2 could not be kept for fine-tuning: No space left" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("engine.downstream.scores.os.link", full)
    kept = ScoreFolder(run).keep_model(2)
    assert kept is not None and (kept / "model.safetensors").read_text() == "2"  # copied where links cannot be made


def test_picture(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ScoreFolder(run)
    run.path.mkdir()
    assert folder.draw() is None
    folder.path.mkdir()
    for step in (2, 4):
        add_line(run, step, loss=7.0 - step)
        add_line(run, step, heldout_loss=7.5 - step)
        folder.add(Score(step, "toy", "x", {"dev_accuracy": step / 10, "dev_loss": 0.3}))
    picture = folder.draw()
    assert picture == folder.path / "scores.svg"
    root = ET.fromstring(picture.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"loss", "heldout_loss", "score", "step", "toy dev_accuracy"} <= texts
    assert "toy dev_loss" not in texts
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="pip install matplotlib; all scores are in results"):
        folder.draw()


def test_the_real_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """Its settings are a pipe that nobody writes to: it stands there until its parent is killed."""
    pipe = tmp_path / "settings"
    os.mkfifo(pipe)
    program = (
        "import sys, time; from pathlib import Path; from engine.downstream.process import FinetuneProcess\n"
        "child = FinetuneProcess(Path(sys.argv[1]), [], Path(sys.argv[2]), {})\n"
        "print(child._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(pipe), str(tmp_path / "log")],
        cwd=commands.REPOSITORY, env=commands.environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip()
    assert child.exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not child.exists() or "(zombie)" in (child / "status").read_text())
