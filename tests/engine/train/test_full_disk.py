"""A full disk stops the run with the last checkpoint whole; the same command goes on when there is room again."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.checkpoint.run_folder import RunFolder
from preprocess.files import sha256_of_file
from tests import commands

STEPS = 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that holds a few checkpoints (2.6 MB each)."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def options(shards: Path, output: Path, ds_config: Path, *more: str) -> list[str | Path]:
    return [
        "--ds_config", ds_config, "--model", "bert-tiny", "--arch.hidden_size", "48", "--arch.num_heads", "3",
        "--arch.intermediate_size", "100", "--data.shards", shards, "--data.seq_length", "32",
        "--train.output", output, "--train.steps", str(STEPS), "--train.batch_size", "4",
        "--train.micro_batch_size", "2", "--train.log_every", "1", "--train.keep_checkpoints", "0",
        "--train.eval_rows", "4", "--train.tensorboard", "false", *more,
    ]  # fmt: skip


def make_room(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)


def final_digests(run: RunFolder) -> list[str]:
    return [sha256_of_file(file) for file in sorted(run.step_folder(STEPS).rglob("*.safetensors"))]


def test_checkpoint_that_does_not_fit(small_disk, shards, tmp_path):
    config = commands.write_ds_config(tmp_path / "zero1.json", zero_optimization={"stage": 1})
    run, whole = RunFolder(str(small_disk / "run")), RunFolder(str(tmp_path / "whole"))
    every_step = ("--train.save_every", "1")
    done = commands.run(commands.PRETRAIN, options(shards, run.path, config, *every_step), 2)
    assert done.returncode == 2, done.stdout
    assert "error: " in done.stdout and "could not be written: No space left on device (" in done.stdout
    assert "make room (train.keep_checkpoints limits how many are kept). Earlier checkpoints are whole" in done.stdout
    assert "Traceback" not in done.stdout
    folder, manifest, complaints = run.newest_checkpoint()
    assert 0 < manifest.step < STEPS and complaints == []
    assert [path.name for path in run.checkpoints.iterdir() if not path.name.startswith("step-")] == []
    assert os.readlink(run.model) == f"checkpoints/{folder.name}/model"
    make_room(small_disk)
    again = commands.run(commands.PRETRAIN, options(shards, run.path, config, *every_step), 2)
    assert again.returncode == 0, again.stdout
    assert f"going on from step {manifest.step} of {STEPS}" in again.stdout
    done = commands.run(commands.PRETRAIN, options(shards, whole.path, config), 2)
    assert done.returncode == 0, done.stdout
    assert final_digests(run) == final_digests(whole)


@pytest.mark.parametrize("tensorboard", ["true", "false"])
def test_metrics_that_do_not_fit(tensorboard, small_disk, shards, tmp_path):
    """Rank 0 alone writes them: the other rank must not be left waiting."""
    config = commands.write_ds_config(tmp_path / "zero1.json", zero_optimization={"stage": 1})
    run = RunFolder(str(small_disk / "run"))
    more = ("--train.tensorboard", tensorboard, "--train.steps", "100000", "--train.save_every", "100000")
    process = subprocess.Popen(
        commands.launch_command(commands.PRETRAIN, options(shards, run.path, config, *more), 2),
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (run.metrics.is_file() and "loss" in run.metrics.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        fill(small_disk)
        output, _ = process.communicate(timeout=120)
    finally:
        process.terminate()  # the launcher ends its ranks
    assert process.returncode == 2, output
    assert re.search(
        "^error: the metrics of .* could not be written: No space left on device; mend that", output, re.M
    ), output
    assert tensorboard == "true" or "Traceback" not in output  # a thread of TensorBoard's prints its own
    _, manifest, complaints = run.newest_checkpoint()
    assert (manifest.step, complaints) == (0, [])


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
