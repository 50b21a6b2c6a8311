"""How a start takes a run folder: compared under its lock, and left as it was where the start is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from engine.checkpoint.files import CheckpointManifest, write_manifest
from engine.checkpoint.run_folder import RunFolder
from engine.config.train import TrainConfig
from engine.train import run as starting
from engine.train.timeline import Timeline

STEPS = 10


def parts(seed: int = 1, steps: int = STEPS) -> Any:
    """As much of a run's parts as a start looks at before it builds anything."""
    return SimpleNamespace(
        train=TrainConfig(steps=steps),
        resolved={"seed": seed, "train": {"steps": steps}, "world_size": 4},
        defaults={},
        timeline=Timeline([TrainConfig(steps=steps).stage(seq_length=8, length_ramp={})]),
        settings=SimpleNamespace(notes=["a note"], precision="fp32", stage=0),
        num_samples=100,
        selection=None,
    )


def fill(run: RunFolder, step: int, seed: int = 1) -> None:
    """A run's folder as a run leaves it at a step."""
    run.write_config({**parts(seed).resolved, "world_size": 1})
    folder = run.temporary_folder(step, "token")
    folder.mkdir()
    write_manifest(folder, CheckpointManifest(step, {}, {}, {}, {}))
    run.publish(folder, step, keep=0)
    run.metrics.write_text("")


def content(folder: Path) -> dict[str, str]:
    """Digest of every file by path; where links point to."""
    return {
        str(path): str(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_another_run_that_came_first_is_not_adopted(tmp_path, monkeypatch):
    """It began, saved and ended between the look at the folder and the lock."""
    run, claim = RunFolder(str(tmp_path / "run")), RunFolder.claim

    def claim_late(self: RunFolder) -> None:
        fill(self, 3, seed=2)
        claim(self)

    monkeypatch.setattr(RunFolder, "claim", claim_late)
    with pytest.raises(ValueError, match=r"holds a run with other settings:\n  seed: 2 there, 1 now"):
        starting._enter(run, parts())
    assert '"seed": 2' in (run.path / "config.json").read_text()


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (parts(seed=2), "seed: 1 there, 2 now"),
        (parts(steps=5), r"is at step 7 already, beyond train\.steps \(5\)"),
    ],
    ids=["settings", "steps"],
)
def test_refused_start_leaves_the_folder_as_it_was(now, message, tmp_path):
    run = RunFolder(str(tmp_path))
    fill(run, 7)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=message):
        starting._enter(run, now)
    assert content(tmp_path) == before


def test_foreign_folder_gets_no_lock(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds files but no"):
        starting._enter(RunFolder(str(tmp_path)), parts())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_finished_run_is_left_as_it_was(tmp_path, capsys):
    run = RunFolder(str(tmp_path))
    fill(run, STEPS)
    run.finish()
    before = content(tmp_path)
    assert starting._enter(run, parts()) is None
    assert content(tmp_path) == before
    assert f"is finished at step {STEPS}; a larger --train.steps goes on from there" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["damaged", "other model"])
def test_start_that_no_checkpoint_fits_leaves_settings_and_mark(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "from_rank_zero", lambda work: work())
    run, model = RunFolder(str(tmp_path)), nn.Linear(2, 1)
    fill(run, 5)
    run.finish()
    if fault == "damaged":
        (run.step_folder(5) / "manifest.json").write_text("{")
    before = content(tmp_path)
    writer: Any = SimpleNamespace(run=run)
    with pytest.raises(ValueError, match="holds no whole checkpoint" if fault == "damaged" else "of another model"):
        starting._first_checkpoint(parts(), model, writer, True)
    assert content(tmp_path) == before


def test_start_that_goes_on_records_its_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "from_rank_zero", lambda work: work())
    monkeypatch.setattr(starting, "raise_together", lambda problem: None)
    monkeypatch.setattr(starting, "refuse_other_model", lambda *ignored: None)
    run = RunFolder(str(tmp_path))
    fill(run, 5)
    run.finish()
    now = parts(steps=STEPS + 1)
    assert starting._enter(run, now) is True
    writer: Any = SimpleNamespace(run=run)
    _, manifest = starting._first_checkpoint(now, nn.Linear(2, 1), writer, True)
    assert manifest.step == 5 and not run.is_finished()
    assert f'"steps": {STEPS + 1}' in (run.path / "config.json").read_text()
