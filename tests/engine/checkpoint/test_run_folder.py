"""A run's folder: which one goes on, what may change, and what another start leaves and takes away."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.files import CheckpointManifest, write_manifest
from engine.checkpoint.run_folder import RunFolder, settings_difference
from preprocess.files import sha256_of_file

CONFIG: dict[str, Any] = {
    "seed": 1,
    "train": {"steps": 10, "output": "x", "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}},
    "deepspeed": {"zero_optimization": {"stage": 1}},
}


def add_checkpoint(run: RunFolder, step: int, keep: int = 0) -> None:
    """A checkpoint as a trainer leaves it."""
    folder = run.temporary_folder(step, "token")
    (folder / "model").mkdir(parents=True)
    file = folder / "rank-00000.safetensors"
    file.write_bytes(b"weights of step %d" % step)
    entry = {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
    write_manifest(folder, CheckpointManifest(step, {}, {}, {"step": step}, {file.name: entry}))
    run.publish(folder, step, keep)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with checkpoints of steps 0, 2 and 10."""
    run = RunFolder(str(tmp_path / "run"))
    assert run.open(CONFIG) is False
    run.write_config(CONFIG)
    for step in (0, 2, 10):
        add_checkpoint(run, step)
    return run


def changed(**changes: Any) -> dict[str, Any]:
    tree = json.loads(json.dumps(CONFIG))
    for name, value in changes.items():
        *path, last = name.split("__")
        branch = tree
        for part in path:
            branch = branch[part]
        branch[last] = value
    return tree


def test_new_and_empty_folders_begin(tmp_path):
    assert RunFolder(str(tmp_path / "new" / "run")).open(CONFIG) is False
    assert RunFolder(str(tmp_path)).open(CONFIG) is False
    assert list(tmp_path.iterdir()) == []  # looking changes nothing


@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml", ".hidden"])
def test_foreign_files_are_left_alone(name, tmp_path):
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=r"holds files but no config\.json of a run; choose another folder"):
        RunFolder(str(tmp_path)).open(CONFIG)
    with pytest.raises(ValueError, match=r"holds files but no config\.json of a run"):
        RunFolder(str(tmp_path / name)).open(CONFIG)


@pytest.mark.parametrize("content", ['{"model_type": "bert", "vocab_size": 30522}', "[1]", "3"])
def test_config_of_something_else_is_left_alone(content, tmp_path):
    """A model folder has a config.json too, and a run would write over it."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"holds files but no config\.json of a run"):
        RunFolder(str(tmp_path)).open(CONFIG)
    assert (tmp_path / "config.json").read_text() == content


def test_damaged_config(run):
    (run.path / "config.json").write_text('{"seed": 1,')
    with pytest.raises(ValueError, match=r"config\.json is damaged .*; choose another train\.output"):
        run.open(CONFIG)


def test_same_settings_go_on(run):
    assert run.open(CONFIG) is True
    assert run.open(json.loads(json.dumps(CONFIG))) is True  # a tuple is a list in the file


def test_run_without_a_checkpoint_begins_again(tmp_path):
    run = RunFolder(str(tmp_path))
    run.write_config(CONFIG)
    run.temporary_folder(0, "token").mkdir()
    assert run.open(changed(seed=7)) is False


def test_what_may_change(run):
    assert run.open(changed(train__steps=20, train__output="y", deepspeed={"bf16": {}}, world_size=8)) is True


def test_what_may_not_change_is_listed(run):
    with pytest.raises(ValueError) as caught:
        run.open(changed(seed=7, train__optimizer__lr=0.2, train__steps=99))
    text = str(caught.value)
    assert f"train.output {run.path} holds a run with other settings:\n  seed: 1 there, 7 now\n" in text
    assert "  train.optimizer.lr: 0.1 there, 0.2 now\n" in text
    assert "train.steps: " not in text and "these may change: ds_config, " in text


def test_settings_difference():
    before = {"a": {"b": 1, "c": [1, 2]}, "train": {"steps": 3}, "train_file": "x", "gone": None}
    now = {"a": {"b": 1, "c": (1, 3)}, "train": {"steps": 4}, "train_file": "y", "new": {"d": 0}}
    assert settings_difference(before, now) == [
        ("a.c", [1, 2], [1, 3]),
        ("gone", None, "absent"),
        ("new.d", "absent", 0),
    ]
    assert settings_difference({"train": {"steps_more": 1}}, {"train": {"steps_more": 2}})  # a name, not a prefix
    # a finished run would not look for its best checkpoint any more
    assert settings_difference({"train": {"keep_best": False}}, {"train": {"keep_best": True}})
    assert not settings_difference({"train": {"early_stopping": 2}}, {"train": {"early_stopping": 3}})
    assert not settings_difference({"deepspeed": {"a": {"b": 1}}}, {"deepspeed": {"c": 2}})


def test_a_setting_that_the_schedule_of_an_older_stage_did_not_have():
    def staged(schedule: dict[str, Any]) -> dict[str, Any]:
        return {"train": {}, "stages": [{"steps": 5, "schedule": schedule}]}

    older, defaults = staged({"name": "linear"}), {"train": {"schedule": {"decay_from": "peak"}}, "stages": []}
    assert settings_difference(older, staged({"name": "linear", "decay_from": "peak"}), defaults) == []
    found = settings_difference(older, staged({"name": "linear", "decay_from": "start"}), defaults)
    assert found == [("stages.0.schedule.decay_from", "peak", "start")]
    without = {"train": {}, "stages": [{"steps": 5, "schedule": None}]}
    assert ("stages.0.schedule.decay_from", "absent", "peak") in settings_difference(
        without, staged({"name": "linear", "decay_from": "peak"}), defaults
    )


def test_stages_are_compared_one_by_one():
    def staged(*steps: int, rate: float = 0.1, **train: Any) -> dict[str, Any]:
        return {"train": train, "stages": [{"steps": number, "schedule": {"lr": rate}} for number in steps]}

    assert settings_difference(staged(5, 9), staged(5, 12)) == []  # the last stage may become longer
    assert settings_difference(staged(5, 9), staged(6, 9)) == [("stages.0.steps", 5, 6)]
    assert settings_difference(staged(5), staged(5, rate=0.2)) == [("stages.0.schedule.lr", 0.1, 0.2)]
    more = settings_difference(staged(5), staged(7, 9))
    assert [key for key, *_ in more] == ["stages.0.steps", "stages.1.schedule.lr", "stages.1.steps"]
    assert settings_difference({"train": {}, "stages": []}, staged(7))[0] == ("stages", [], "absent")


def test_setting_that_an_older_version_lacked_was_its_default(run):
    defaults = {"train": {"optimizer": {"name": "adamw", "momentum": None}, "ramp": {}}, "stages": [], "model": "x"}
    assert run.open(changed(train__ramp={}, train__optimizer__name="adamw", stages=[]), defaults) is True
    assert run.open(CONFIG, defaults) is True  # what is no setting of this start does not count
    with pytest.raises(ValueError) as caught:
        run.open(changed(train__optimizer__name="lamb", train__ramp={"10": 4}), defaults)
    text = str(caught.value)
    assert "  train.optimizer.name: adamw there, lamb now\n" in text and "train.ramp.10: absent there, 4 now" in text
    with pytest.raises(ValueError, match=r"train\.optimizer\.name: absent there, adamw now"):
        run.open(changed(train__optimizer__name="adamw"))
    with pytest.raises(ValueError, match=r"train\.optimizer\.lr: 0\.1 there, absent now"):
        run.open({**CONFIG, "train": {"optimizer": {"betas": [0.9, 0.99]}}}, CONFIG)


def test_steps_are_numbers_of_finished_checkpoints(run):
    run.temporary_folder(3, "token").mkdir()
    (run.checkpoints / "step-4").mkdir()  # without a manifest
    (run.checkpoints / "damaged-step-2").mkdir()
    (run.checkpoints / "step-x").mkdir()
    assert run.steps() == [0, 2, 10]


def test_return_to(run):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 2, 3, 4)]
    run.metrics.write_text("\n".join([*lines[:2], "[]", *lines[2:], '{"step": 2, "lo']))
    run.temporary_folder(11, "token").mkdir()
    (run.checkpoints / ".step-5.old").mkdir()  # deleting was cut off
    (run.checkpoints / ".step-7.partial").mkdir()  # by an older version
    run.return_to(2)
    assert run.steps() == [0, 2]
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2, 2]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["damaged-step-10", "step-0", "step-2"]
    assert os.readlink(run.model) == "checkpoints/step-2/model"
    add_checkpoint(run, 10)
    run.return_to(2)  # damaged at the same step again
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["damaged-step-10", "step-0", "step-2"]


def test_return_to_the_newest_changes_nothing_but_a_link_that_was_not_renewed(run):
    run.metrics.write_text('{"step": 10}\n')
    run.model.unlink()  # killed between the renames of checkpoint and link
    run.return_to(10)
    assert os.readlink(run.model) == "checkpoints/step-10/model"
    assert run.steps() == [0, 2, 10] and run.metrics.read_text() == '{"step": 10}\n'


def test_model_is_a_relative_link_to_the_newest(run, tmp_path):
    assert os.readlink(run.model) == "checkpoints/step-10/model"
    add_checkpoint(run, 12)
    assert os.readlink(run.model) == "checkpoints/step-12/model" and run.model.is_dir()
    os.rename(run.path, tmp_path / "moved")
    assert (tmp_path / "moved" / "model").is_dir()
    assert not [path for path in (tmp_path / "moved").iterdir() if path.name.startswith(".")]


def test_publish_keeps_the_newest(run):
    add_checkpoint(run, 11, keep=2)
    assert run.steps() == [10, 11]
    add_checkpoint(run, 12, keep=1)
    assert run.steps() == [12]
    add_checkpoint(run, 13, keep=0)
    assert run.steps() == [12, 13]


def test_deleting_that_is_cut_off_leaves_no_checkpoint(run, monkeypatch):
    monkeypatch.setattr("shutil.rmtree", lambda *ignored, **more: None)
    add_checkpoint(run, 11, keep=1)
    assert run.steps() == [11]
    assert not [path for path in run.checkpoints.iterdir() if path.name in ("step-0", "step-2", "step-10")]


def test_newest_checkpoint_falls_back_to_one_that_is_whole(run):
    folder, manifest, complaints = run.newest_checkpoint()
    assert (folder.name, manifest.step, complaints) == ("step-10", 10, [])
    (run.step_folder(10) / "rank-00000.safetensors").write_bytes(b"weights of step 1x")
    folder, manifest, complaints = run.newest_checkpoint()
    assert (folder.name, manifest.step) == ("step-2", 2)
    assert len(complaints) == 1 and "step-10: rank-00000.safetensors is damaged" in complaints[0]
    (run.step_folder(2) / "manifest.json").write_text("{")
    (run.step_folder(0) / "rank-00000.safetensors").unlink()
    with pytest.raises(ValueError) as caught:
        run.newest_checkpoint()
    text = str(caught.value)
    assert f"{run.checkpoints} holds no whole checkpoint:" in text
    assert "step-10: rank" in text and "step-2 has no readable manifest" in text and "step-0: rank-00000" in text


def test_one_run_at_a_time(run, tmp_path):
    run.claim()
    holder = re.escape(f"(process {os.getpid()} on {socket.gethostname()})")
    with pytest.raises(
        ValueError, match=rf"another run is at work in train\.output {run.path} {holder}; wait for its end"
    ):
        RunFolder(str(run.path)).claim()
    second = RunFolder(str(tmp_path / "other" / "run"))
    second.claim()
    assert second.open(CONFIG) is False  # the lock's file does not count as one
    (second.path / ".lock").write_text("")
    with pytest.raises(ValueError, match=rf"at work in train\.output {second.path}; wait for its end"):
        RunFolder(str(second.path)).claim()
    del second
    RunFolder(str(tmp_path / "other" / "run")).claim()


def test_file_system_without_locks(run, monkeypatch, capsys):
    def refuse(*ignored: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    run.claim()
    assert "has no locks: see to it that no second run works there" in capsys.readouterr().err


def test_finished(run):
    assert not run.is_finished()
    run.finish()
    assert run.is_finished() and (run.path / "FINISHED").is_file()
    run.reopen()
    run.reopen()
    assert not run.is_finished()
