"""Peaks of allocated memory of real engines, as torch's own profiler counts bytes: the reference of estimates."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.checkpoint.files import CheckpointManifest, write_tensors
from engine.checkpoint.state import model_shapes, model_snapshot, restore
from engine.config.arch import ArchConfig
from engine.config.deepspeed_json import DeepSpeedSettings, Device, complete_deepspeed_config, deepspeed_problems
from engine.config.masking import MaskingConfig
from engine.config.optimizer import OptimizerConfig
from engine.config.train import BatchShape
from engine.data.batch import PackedBatch
from engine.data.rows import Piece, Row
from engine.models.model import build_model
from engine.objectives.base import PretrainingObjective, Vocabulary
from engine.objectives.lm import CausalLM
from engine.objectives.mlm import MaskedLM
from engine.optim.build import bind_optimizer, build_optimizer
from engine.train.distributed import gather_objects, init_distributed
from engine.train.zero import ZeroEngine

ROLES = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": 2, "eos": 3}
STEPS = 3
FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}


@dataclass(frozen=True)
class Case:
    """One engine whose peak is measured."""

    stage: int
    precision: str = "fp32"
    optimizer: str = "adamw"
    accumulation: int = 1
    checkpointing: bool = False
    objective: str = "lm"
    seq_length: int = 128
    micro_batch_size: int = 4
    arch: tuple[tuple[str, Any], ...] = ()
    zero: tuple[tuple[str, Any], ...] = ()
    top: tuple[tuple[str, Any], ...] = ()

    def settings(self, ranks: int) -> DeepSpeedSettings:
        """The checked and completed DeepSpeed configuration."""
        zero = {"stage": self.stage}
        if self.stage:
            zero |= {"reduce_bucket_size": 1_000_000, "allgather_bucket_size": 2_000_000}
        tree: dict[str, Any] = {"gradient_clipping": 1.0, "zero_optimization": {**zero, **dict(self.zero)}}
        if self.precision == "bf16":
            tree |= {"bf16": {"enabled": True}, **FP32_SUMS}
        tree |= dict(self.top)
        shape = BatchShape(self.micro_batch_size * self.accumulation * ranks, self.micro_batch_size, ranks)
        device = Device("cpu", has_bf16=True)
        assert not (found := deepspeed_problems(tree, "test", shape, device)), found
        return complete_deepspeed_config(tree, shape, device)

    def architecture(self) -> ArchConfig:
        """A GPT-2 for objective lm, else a BERT."""
        small: dict[str, Any] = {
            "vocab_size": 4000, "hidden_size": 256, "num_layers": 3, "num_heads": 4, "intermediate_size": 1024,
            "max_positions": max(128, self.seq_length),
        }  # fmt: skip
        if self.objective == "lm":
            small |= {"causal": True, "norm_position": "pre", "embedding_norm": False, "num_segments": 0}
        return ArchConfig(**{**small, **dict(self.arch)})


def objective_of(case: Case, arch: ArchConfig) -> PretrainingObjective:
    """The real objective over a vocabulary whose first tokens are special."""
    special = np.zeros(arch.vocab_size, np.bool_)
    special[:5] = True
    vocabulary = Vocabulary(arch.vocab_size, ROLES, special, np.zeros_like(special))
    return CausalLM(vocabulary) if case.objective == "lm" else MaskedLM(MaskingConfig(), vocabulary, 1)


def full_rows(case: Case, objective: PretrainingObjective, number: int) -> PackedBatch:
    """A micro-batch of rows that one piece fills."""
    draw = np.random.default_rng(number)
    added = objective.sequence_layout.per_sequence
    pieces = [
        Piece(draw.integers(5, 3000, case.seq_length - added).astype(np.uint16), final=False)
        for _ in range(case.micro_batch_size)
    ]
    return objective.collate([Row((piece,), 0, index) for index, piece in enumerate(pieces)])


def make_engine(case: Case, folder: Path) -> ZeroEngine:
    """An engine as a run begins with: filled from a checkpoint of step 0."""
    arch, ranks = case.architecture(), torch.distributed.get_world_size()
    objective, settings = objective_of(case, arch), case.settings(ranks)
    model = build_model(arch, objective.make_heads(arch), 1)
    optimizer = build_optimizer(model, OptimizerConfig(name=case.optimizer), settings)
    file = f"initial-{os.getpid()}.safetensors"
    manifest = CheckpointManifest(
        0, model_shapes(model), {}, {}, {file: write_tensors(folder / file, model_snapshot(model))}
    )
    with contextlib.redirect_stdout(io.StringIO()):
        engine = ZeroEngine(model, objective, optimizer, settings)
    bind_optimizer(engine.deepspeed, model)
    model.encoder.checkpoint_layers = case.checkpointing
    restore(engine.deepspeed, model, folder, manifest)
    return engine


def take_steps(case: Case, folder: Path, mark: Callable[[str], None]) -> None:
    """Steps of an engine, as the trainer takes them."""
    engine = make_engine(case, folder)
    mark("built")
    config = OptimizerConfig(name=case.optimizer).completed()
    for step in range(STEPS):
        engine.apply(config, 1e-4)
        for micro in range(case.accumulation):
            batch = full_rows(case, engine.objective, step * 100 + micro)
            counts = {name: torch.tensor(float(count)) for name, count in batch.counts.items()}
            engine.micro_step(batch, counts, last=micro == case.accumulation - 1)
        mark(f"step{step}")
    if engine.deepspeed.optimizer is not engine.optimizer:
        vars(engine.deepspeed.optimizer).clear()  # DeepSpeed holds the wrapper until it makes the next one


def allocations(work: Callable[[], None]) -> list[tuple[int, int]]:
    """Time in ns and change in bytes of every allocation and release of torch's CPU memory during some work."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    return sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")


def wait_for_threads() -> None:
    """Have gloo's threads let go of tensors before their owner does: the profiler sees releases of this thread alone.

    A thread of gloo that is still on its way out of a collective may be the last to hold a tensor.
    """

    wait = torch.distributed.Work.wait

    def patient(work: torch.distributed.Work, *arguments: Any) -> bool:
        done: bool = wait(work, *arguments)
        time.sleep(0.005)
        return done

    torch.distributed.Work.wait = patient


def measure(case: Case, folder: Path) -> dict[str, int]:
    """Bytes at the peak of the last step, before it, and after it.

    It leaves behind what was there before; where it seems not to, a release was lost all the same (on a loaded machine
    gloo's threads come late), and all ranks measure again.
    """
    for _ in range(4):
        found = measure_once(case, folder)
        if not any(gather_objects(found["after"] != found["before"])):
            break
    return found


def measure_once(case: Case, folder: Path) -> dict[str, int]:
    """The same, right or wrong."""
    marks: dict[str, int] = {}
    events = allocations(lambda: take_steps(case, folder, lambda name: marks.update({name: time.time_ns()})))
    gc.collect()
    return peaks(events, marks)


def peaks(events: list[tuple[int, int]], marks: dict[str, int]) -> dict[str, int]:
    """Bytes before, in and after the last step."""
    totals = dict.fromkeys(("built", "before", "peak", "after"), 0)
    total = 0
    for at, change in events:
        total += change
        if at < marks["built"]:
            totals["built"] = total
        elif at < marks[f"step{STEPS - 2}"]:
            totals["before"] = total
        elif at < marks[f"step{STEPS - 1}"]:
            totals["peak"], totals["after"] = max(totals["peak"], total), total
    return totals


def run_here(folder: Path) -> list[dict[str, int]]:
    """Peaks of the cases of cases.json on this rank."""
    torch.set_num_threads(1)
    wait_for_threads()
    init_distributed()
    cases = [
        Case(**{k: _tuples(v) for k, v in case.items()}) for case in json.loads((folder / "cases.json").read_text())
    ]
    return [measure(case, folder) for case in cases]


def _tuples(value: Any) -> Any:
    return tuple((name, item) for name, item in value) if isinstance(value, list) else value
