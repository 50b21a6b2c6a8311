"""Training on a CUDA device: every DeepSpeed file that ships, and a killed fp16 run that goes on."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from engine.train.profiling import MAX_MICRO_BATCHES
from tests import commands

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ON_GPU = {"DS_ACCELERATOR": "cuda"}
FILES = sorted(path.stem for path in commands.DS_CONFIGS.glob("*.json") if "nvme" not in path.stem)  # libaio is rare


@pytest.fixture(scope="module")
def gzip_shards(tmp_path_factory: pytest.TempPathFactory, corpus: list[Path]) -> Path:
    """Shards that need no plugin of HDF5."""
    pytest.importorskip("deepspeed", reason="training needs deepspeed")
    pytest.importorskip("jsonargparse", reason="the command line needs jsonargparse")
    folder = tmp_path_factory.mktemp("gpu")
    options = ["--type", "wordpiece", "--vocab_size", "2000", "--output", folder / "tokenizer"]
    done = commands.preprocess("tokenizer", "--corpus", *corpus, *options)
    assert done.returncode == 0, done.stdout
    options = ["--tokenizer", folder / "tokenizer", "--output", folder / "shards", "--compression", "gzip"]
    done = commands.preprocess("shards", "--corpus", *corpus, *options, "--heldout", "0.1")
    assert done.returncode == 0, done.stdout
    return folder / "shards"


def options(shards: Path, output: Path, name: str) -> list[str | Path]:
    return [
        "--ds_config", commands.DS_CONFIGS / f"{name}.json", "--model", "bert-tiny", "--data.shards", shards,
        "--train.output", output, "--train.steps", "30", "--train.batch_size", "32", "--train.micro_batch_size", "16",
        "--train.save_every", "10", "--train.log_every", "1", "--train.optimizer.lr", "1e-3",
        "--train.tensorboard", "false",
    ]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_file_learns(name: str, gzip_shards: Path, tmp_path: Path) -> None:
    done = commands.run(commands.PRETRAIN, options(gzip_shards, tmp_path / "run", name), env=ON_GPU)
    assert done.returncode == 0, done.stdout
    losses = commands.losses(tmp_path / "run")
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0] - 0.3


def test_fp16_goes_on_from_a_checkpoint_as_if_unbroken(gzip_shards: Path, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    done = commands.run(commands.PRETRAIN, options(gzip_shards, whole, "zero2"), env=ON_GPU)
    assert done.returncode == 0, done.stdout
    shutil.copytree(whole, again, symlinks=True)
    (again / "FINISHED").unlink()
    for step in (20, 30):
        shutil.rmtree(again / "checkpoints" / f"step-{step}")
    done = commands.run(commands.PRETRAIN, options(gzip_shards, again, "zero2"), env=ON_GPU)
    assert done.returncode == 0 and "going on from step 10" in done.stdout, done.stdout
    assert commands.losses(again) == pytest.approx(commands.losses(whole), rel=1e-3)


def test_checkpoints_are_fine_tuned_beside_the_run_on_the_same_device(gzip_shards: Path, tmp_path: Path) -> None:
    table = tmp_path / "train.tsv"
    table.write_text("label\ttext_a\n" + "".join(f"{n % 2}\t{'good' if n % 2 else 'bad'} day {n}\n" for n in range(24)))
    task = {
        "ds_config": str(commands.DS_CONFIGS / "fp16.json"), "train_file": str(table), "dev_file": str(table),
        "epochs": 1, "max_length": 16, "train": {"batch_size": 8, "tensorboard": False},
    }  # fmt: skip
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({"every": 20, "tasks": {"toy": task}}))
    more = ["--train.evaluate_with", plan, "--train.keep_checkpoints", "1"]
    done = commands.run(commands.PRETRAIN, [*options(gzip_shards, tmp_path / "run", "zero2"), *more], env=ON_GPU)
    assert done.returncode == 0, done.stdout
    scored = [line["step"] for line in commands.metrics(tmp_path / "run") if "downstream_toy_dev_accuracy" in line]
    assert scored == [20, 30], done.stdout
    assert "fp16, ZeRO stage 1;" in (tmp_path / "run" / "downstream" / "step-30" / "toy.log").read_text()


@pytest.mark.parametrize("micro_batch_size", [16, 2])  # 2 and 16 micro-batches a step, of which 5 are traced
def test_a_trace_shows_what_the_gpu_does(micro_batch_size: int, gzip_shards: Path, tmp_path: Path) -> None:
    more = ("--profile", "--train.steps", "6", "--train.peak_tflops", "100", "--train.micro_batch_size")
    more = (*more, str(micro_batch_size))
    done = commands.run(commands.PRETRAIN, [*options(gzip_shards, tmp_path / "run", "zero2_bf16"), *more], env=ON_GPU)
    assert done.returncode == 0, done.stdout
    (trace,) = (tmp_path / "run" / "profile").glob("rank-0-step-4-6.json.gz")
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    assert {"data", "forward", "backward", "optimizer"} <= {event.get("name") for event in events}
    forward = [event for event in events if event.get("name") == "forward" and event.get("cat") == "user_annotation"]
    assert len(forward) == 3 * min(MAX_MICRO_BATCHES, 32 // micro_batch_size)
    assert sum(event.get("cat") == "kernel" for event in events) > 100
    table = (tmp_path / "run" / "profile" / "rank-0-step-4-6.txt").read_text()
    assert "Self CUDA" in table
    for line in commands.metrics(tmp_path / "run"):
        if "loss" in line:
            assert 0 < line["memory_bytes"] < torch.cuda.get_device_properties(0).total_memory and 0 < line["mfu"] < 1


OBSERVED = """
import sys
sys.path[0] = {repository!r}
import torch
from engine.config.cli import exit_process
from engine.pretrain import main
from engine.train.trainer import Trainer
right = Trainer._take_step
def take_step(self, work):
    torch.cuda.set_sync_debug_mode("error" if self.state.step >= 3 else "default")
    right(self, work)
    torch.cuda.set_sync_debug_mode("default")
Trainer._take_step = take_step
exit_process(main())
"""


@pytest.mark.parametrize("name", ["fp32", "zero0_bf16", "zero1_bf16", "zero2_bf16"])
def test_torch_waits_for_nothing_in_a_step(name: str, gzip_shards: Path, tmp_path: Path) -> None:
    """After three steps torch raises where a call of its own waits for the GPU."""
    script = tmp_path / "observed.py"
    script.write_text(OBSERVED.format(repository=str(commands.REPOSITORY)))
    more = ("--train.micro_batch_size", "8", "--train.steps", "12", "--train.log_every", "6")
    done = commands.run(script, [*options(gzip_shards, tmp_path / "run", name), *more], env=ON_GPU)
    assert done.returncode == 0, done.stdout
    assert len(commands.losses(tmp_path / "run")) == 3
