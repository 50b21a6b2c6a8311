"""Every DeepSpeed file that ships trains as it is, and under offload a run goes on from its checkpoint."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.config.cli import parse_config
from engine.config.deepspeed_json import Device
from engine.config.pretrain import PretrainConfig
from engine.train import run as run_module
from engine.train.distributed import barrier, global_rank
from engine.train.pretraining import pretrain
from tests import commands
from tests.engine.ranks import run_ranks

MODULE = "tests.engine.train.test_ds_configs"
STEPS = 5
FILES = sorted(file.name for file in commands.DS_CONFIGS.glob("*.json"))
ONE_GPU = ("fp32.json", "bf16.json", "fp16.json")
REAL_FP16 = ("zero0.json", "zero1.json", "zero2.json", "zero3.json", "zero3_offload.json")


@dataclass(frozen=True)
class Job:
    """One file, computed on as this machine can or really in fp16."""

    file: str
    fp16: bool = False

    @property
    def resumes(self) -> bool:
        """Whether the run is also ended in the middle and begun again."""
        return "offload" in self.file or "nvme" in self.file


def jobs(ranks: int) -> list[Job]:
    """What is trained on one rank, and on two."""
    if ranks == 1:
        return [Job(file) for file in ONE_GPU]
    return [*(Job(file) for file in FILES if file not in ONE_GPU), *(Job(file, fp16=True) for file in REAL_FP16)]


def options(folder: Path, ds_config: Path, output: str, steps: int) -> list[str]:
    return [
        "--ds_config", str(ds_config), "--model", "bert-tiny", "--arch.hidden_size", "48", "--arch.num_heads", "3",
        "--arch.intermediate_size", "100", "--data.shards", (folder / "shards").read_text(), "--data.seq_length", "32",
        "--train.steps", str(steps), "--train.batch_size", "8", "--train.micro_batch_size", "2",
        "--train.log_every", "1", "--train.optimizer.lr", "1e-3", "--train.schedule.name", "constant",
        "--train.eval_rows", "8", "--train.tensorboard", "false", "--train.output", str(folder / output),
    ]  # fmt: skip


def train_all(folder: Path) -> dict[str, Any]:
    """Train with every file of this number of ranks; the losses, unbroken and of runs in two parts."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for job in jobs(torch.distributed.get_world_size()):
        name = f"{job.file} in fp16" if job.fp16 else job.file
        with pytest.MonkeyPatch.context() as patch:
            if job.fp16:
                allow_fp16(patch)
            found[name] = [run(folder, job.file, f"{name} whole", [STEPS])]
            if job.resumes:
                found[name].append(run(folder, job.file, f"{name} in parts", [3, STEPS]))
        gc.collect()
    return found


def allow_fp16(patch: pytest.MonkeyPatch) -> None:
    """This CPU computes in fp16, slowly."""
    from deepspeed.accelerator import get_accelerator

    patch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)
    patch.setattr(run_module, "describe_device", lambda: Device("cpu", has_bf16=False, has_fp16=True))


def run(folder: Path, file: str, output: str, ends: list[int]) -> list[float]:
    """Train to each of several steps in turn by the function that the command calls; the losses."""
    tree = json.loads((commands.DS_CONFIGS / file).read_text())
    for block in tree.get("zero_optimization", {}).values():
        if isinstance(block, dict) and "nvme_path" in block:
            block["nvme_path"] = str(folder / "nvme")
    ds_config = folder / f"{global_rank()} {file}"
    ds_config.write_text(json.dumps(tree))
    for steps in ends:
        pretrain(parse_config(PretrainConfig, options(folder, ds_config, output, steps), "pretrain.py"))
        barrier()
    return commands.losses(folder / output)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_file_trains(ranks, shards, tmp_path):
    (tmp_path / "shards").write_text(str(shards))
    found, *_ = run_ranks(MODULE, "train_all", tmp_path, ranks, timeout=900)  # libaio is compiled once, for minutes
    assert len(found) == len(jobs(ranks))
    first = np.array(next(iter(found.values()))[0])
    for name, curves in found.items():
        assert len(curves[0]) == STEPS, name
        np.testing.assert_allclose(curves[0], first, rtol=5e-3, err_msg=name)
        assert all(curve == curves[0] for curve in curves), name
    assert first[-1] < first[0]
