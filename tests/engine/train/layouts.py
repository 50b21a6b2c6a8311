"""Many pretraining runs on the same ranks, one after another: what they trained on, and what a restore left in them.

A process group takes longer to start than such a run takes, so a group of ranks runs a whole list of them, each through
the function that the entry calls.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.checkpoint import state
from engine.checkpoint.files import CheckpointManifest, FragmentReader
from engine.config.cli import parse_config
from engine.config.deepspeed_json import Device
from engine.config.pretrain import PretrainConfig
from engine.data.batch import PackedBatch
from engine.train import run as run_module
from engine.train.distributed import barrier, gather_objects, global_rank
from engine.train.pretraining import pretrain
from engine.train.zero import ZeroEngine
from preprocess.files import sha256_of_file
from tests.commands import metrics
from tests.engine.ranks import run_ranks


@dataclass(frozen=True)
class Layout:
    """How a run is laid out over ranks and memory.

    Attributes:
        ranks: of the run.
        stage: ZeRO stage.
        precision: fp32, bf16 or fp16, the last also on a CPU that lacks it.
        offload: nothing, cpu (the optimizer), all (parameters too) or nvme (both).
    """

    ranks: int
    stage: int
    precision: str = "fp32"
    offload: str = ""

    def __str__(self) -> str:
        return f"{self.ranks} ranks, stage {self.stage}, {self.precision}{self.offload and ', offload ' + self.offload}"

    def deepspeed(self, folder: Path) -> dict[str, Any]:
        """The DeepSpeed configuration: buckets and sub-groups so small that they cut through parameters."""
        zero: dict[str, Any] = {"stage": self.stage}
        if self.stage:
            zero |= {"reduce_bucket_size": 30000, "allgather_bucket_size": 50000}
        if self.stage == 3:
            zero |= {"stage3_prefetch_bucket_size": 30000, "stage3_param_persistence_threshold": 60}
            zero |= {"stage3_max_live_parameters": 50000, "sub_group_size": 20000, "memory_efficient_linear": False}
        place = {"device": "nvme", "nvme_path": str(folder)} if self.offload == "nvme" else {"device": "cpu"}
        if self.offload:
            zero["offload_optimizer"] = place
        if self.offload in ("all", "nvme"):
            zero["offload_param"] = place
        tree: dict[str, Any] = {"zero_optimization": zero, "gradient_clipping": 0.5}
        if self.precision == "bf16":
            tree |= {"bf16": {"enabled": True}, "communication_data_type": "fp32"}
            tree |= {"data_types": {"grad_accum_dtype": "fp32"}}
        if self.precision == "fp16":
            tree["fp16"] = {"enabled": True, "initial_scale_power": 10, "loss_scale_window": 3}
        return tree


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        losses: of each step, by its number.
        rows: digest of what each step was trained on, over all ranks.
        restored: what differed between the checkpoint and the engine that was filled from it.
        files: digests of the last checkpoint's tensors and model.
        error: why it ended early; empty where it did not.
    """

    losses: dict[str, float] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    restored: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Job:
    """A run: its folder and options, and the checkpoint that it goes on from."""

    output: str
    options: list[str]
    layout: Layout
    source: str | None = None
    step: int = 0


def run_jobs(folder: Path, jobs: list[Job], timeout: float = 600) -> dict[str, Outcome]:
    """Run jobs of the same number of ranks, one after another; outcomes by output folder."""
    (ranks,) = {job.layout.ranks for job in jobs}
    folder.mkdir(parents=True)
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    found, *others = run_ranks("tests.engine.train.layouts", "run_here", folder, ranks, timeout)
    assert all(other == found for other in others)
    return {name: Outcome(**outcome) for name, outcome in found.items()}


def run_here(folder: Path) -> dict[str, Any]:
    """The jobs of a folder, on every rank."""
    torch.set_num_threads(1)
    outcomes = {}
    for tree in json.loads((folder / "jobs.json").read_text()):
        job = Job(**{**tree, "layout": Layout(**tree["layout"])})
        outcomes[job.output] = asdict(_run(job, folder))
        gc.collect()
    return outcomes


def _run(job: Job, folder: Path) -> Outcome:
    if global_rank() == 0:
        if job.source is not None:
            _copy_up_to(Path(job.source), Path(job.output), job.step)
        (folder / "ds.json").write_text(json.dumps(job.layout.deepspeed(folder)))
    barrier()
    outcome, trained = Outcome(), dict[str, list[str]]()
    options = ["--ds_config", str(folder / "ds.json"), "--train.output", job.output, *job.options]
    with observe(outcome, trained, fp16=job.layout.precision == "fp16"):
        try:
            pretrain(parse_config(PretrainConfig, options, "pretrain.py"))
        except ValueError as error:
            outcome.error = str(error)
    barrier()
    outcome.restored = sorted({text for part in gather_objects(outcome.restored) for text in part})
    parts = gather_objects(trained)
    for step in trained:
        digests = sorted(digest for part in parts for digest in part[step])
        outcome.rows[step] = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    run = Path(job.output)
    if not outcome.error:
        outcome.losses = {str(line["step"]): line["loss"] for line in metrics(run) if "loss" in line}
        outcome.files = {
            str(file.relative_to(run)): sha256_of_file(file)
            for file in sorted(
                [
                    *run.glob(f"checkpoints/step-{max(map(int, trained))}/*.safetensors"),
                    *run.glob("model/*.safetensors"),
                ]
            )
        }
    return outcome


def _copy_up_to(source: Path, output: Path, step: int) -> None:
    """A run's folder as it was when a step had been saved."""
    name = Path("checkpoints") / f"step-{step}"
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(source / name, output / name)
    shutil.copy(source / "config.json", output)


@contextmanager
def observe(outcome: Outcome, trained: dict[str, list[str]], fp16: bool) -> Iterator[None]:
    """Note what the engine is trained on and how a restored engine differs from the checkpoint."""
    micro_step, restore = ZeroEngine.micro_step, state.restore

    def noted_step(self: ZeroEngine, batch: PackedBatch, *rest: Any, **more: Any) -> Any:
        content = torch.cat([batch.tokens, *(target.labels for target in batch.targets.values())])
        digest = hashlib.sha256(content.numpy().tobytes()).hexdigest()
        trained.setdefault(str(self.deepspeed.global_steps + 1), []).append(digest)
        return micro_step(self, batch, *rest, **more)

    def noted_restore(engine: Any, model: nn.Module, folder: Path, manifest: CheckpointManifest) -> None:
        restore(engine, model, folder, manifest)
        outcome.restored += differences(engine, model, folder, manifest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ZeroEngine, "micro_step", noted_step)
        patch.setattr(run_module, "restore", noted_restore)
        if fp16:
            from deepspeed.accelerator import get_accelerator

            patch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)
            patch.setattr(run_module, "describe_device", lambda: Device("cpu", has_bf16=False, has_fp16=True))
        yield


def differences(engine: Any, model: nn.Module, folder: Path, manifest: CheckpointManifest) -> list[str]:
    """What is not bit-equal, or not there, between an engine and the checkpoint that filled it; called by all ranks."""
    tensors, numbers = state.snapshot(engine, model)
    reader = FragmentReader([folder / name for name in manifest.files])
    sizes: dict[str, int] = {}
    found = []
    for name, tensor in tensors.items():
        kind, parameter, offset = name.split("|")
        if not torch.equal(reader.read(kind, parameter, int(offset), tensor.numel()), tensor):
            found.append(f"{name} differs")
        sizes[f"{kind}|{parameter}"] = sizes.get(f"{kind}|{parameter}", 0) + tensor.numel()
    parts = gather_objects(sizes)
    for kind in reader.kinds():
        for parameter, shape in manifest.shapes.items():
            there = sum(part.get(f"{kind}|{parameter}", 0) for part in parts)
            if there != int(torch.Size(shape).numel()):
                found.append(f"{kind} of {parameter}: {there} elements of {shape}")
    saved = {**manifest.optimizer, "name": numbers["name"]}  # whose code steps may differ, as under offload
    if manifest.optimizer and numbers != saved:
        found.append(f"{saved} became {numbers}")
    return found
