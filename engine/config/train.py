"""Settings of the training loop, shared by pretraining and fine-tuning. Never imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Self

from engine.config.optimizer import OptimizerConfig
from engine.config.schedule import ScheduleConfig
from engine.config.stages import Stage, endless_ramp, ramp_problems

NONFINITE = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop.

    Args:
        output: run folder; the same command goes on where an earlier one stopped.
        steps: optimizer steps of the whole run; the sum of the stages' steps where the run has stages.
        batch_size: rows (examples in fine-tuning) per optimizer step over all ranks.
        batch_ramp: smaller batches first, as {step: batch_size until that step}.
        micro_batch_size: rows per forward pass of one rank; accumulation follows from it.
        activation_checkpointing: keep the input of each layer alone and compute the rest again in the backward pass.
        fixed_shapes: fill batches up, so that few differ in shape; not given: on GPUs.
        compile: let torch.compile fuse what it can of a layer; the first steps take a minute or more.
        nonfinite: a step whose loss or gradient is not finite: stop the run, or skip the step.
        max_skipped_steps: steps skipped in a row (overflow in fp16, or nonfinite skip) before the run stops.
        rank_timeout: seconds after which a rank that does not answer counts as lost, and the others stop.
        save_every: steps between checkpoints; the last step is always saved; 0 saves only that one.
        keep_checkpoints: newest checkpoints kept on disk; 0 keeps all.
        log_every: steps between lines of metrics.jsonl.
        eval_every: steps between evaluations on held-out data; 0 evaluates only at the end.
        eval_rows: held-out rows used in an evaluation, of each shard folder of a mixture; 0 uses all.
        peak_tflops: peak of one device for the MFU figure, in TFLOP/s, where its name is not known.
        evaluate_with: YAML file that says which checkpoints are fine-tuned in the background, and on what
            (docs/recipes.md).
        tensorboard: write TensorBoard events into the run folder.
        wandb: project on Weights & Biases, as PROJECT or ENTITY/PROJECT, that gets the figures as well.
        optimizer: the optimizer.
        schedule: the learning rate over the run.
    """

    output: str = "runs/pretrain"
    steps: int = 100_000
    batch_size: int = 256
    batch_ramp: dict[int, int] = field(default_factory=dict)
    micro_batch_size: int = 8
    activation_checkpointing: bool = False
    fixed_shapes: bool | None = None
    compile: bool = False
    nonfinite: str = NONFINITE[0]
    max_skipped_steps: int = 100
    rank_timeout: float = 120.0
    save_every: int = 1000
    keep_checkpoints: int = 3
    log_every: int = 10
    eval_every: int = 1000
    eval_rows: int = 1024
    peak_tflops: float | None = None
    evaluate_with: str | None = None
    tensorboard: bool = True
    wandb: str | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = [
            f"train.{name} is {getattr(self, name)}; it must be at least 1"
            for name in ("steps", "batch_size", "micro_batch_size", "log_every", "max_skipped_steps")
            if getattr(self, name) < 1
        ]
        found += [
            f"train.{name} is {getattr(self, name)}; it must not be negative"
            for name in ("save_every", "keep_checkpoints", "eval_every", "eval_rows")
            if getattr(self, name) < 0
        ]
        if not 1 <= self.rank_timeout < math.inf:
            found.append(f"train.rank_timeout is {self.rank_timeout}; it must be at least 1, and finite")
        if self.nonfinite not in NONFINITE:
            found.append(f"train.nonfinite is {self.nonfinite!r}; it must be one of {', '.join(NONFINITE)}")
        found += _wandb_problems(self.wandb)
        found += ramp_problems("train.batch_ramp", self.batch_ramp, self.batch_size, "train.batch_size", least=1)
        found += endless_ramp("train.batch_ramp", self.batch_ramp, self.steps, "train.batch_size")
        return found + self.optimizer.problems() + self.schedule.problems()

    def fills_batches(self, device_type: str) -> bool:
        """Whether batches are filled up to fixed shapes on a device: cuda or cpu."""
        return device_type != "cpu" if self.fixed_shapes is None else self.fixed_shapes

    def completed(self) -> Self:
        """The same with the defaults of its optimizer and its schedule filled in."""
        return replace(self, optimizer=self.optimizer.completed(), schedule=self.schedule.completed())

    def stage(self, seq_length: int, length_ramp: dict[int, int]) -> Stage:
        """The whole run as one stage."""
        return Stage(
            steps=self.steps,
            seq_length=seq_length,
            length_ramp=length_ramp,
            batch_size=self.batch_size,
            batch_ramp=self.batch_ramp,
            micro_batch_size=self.micro_batch_size,
            optimizer=self.optimizer,
            schedule=self.schedule,
        )


def _wandb_problems(project: str | None) -> list[str]:
    if project is None:
        return []
    if not all(project.split("/")) or project.count("/") > 1:
        return [f"train.wandb is {project!r}; it must be PROJECT or ENTITY/PROJECT"]
    library = find_spec("wandb")
    if library is None or library.origin is None:  # a folder wandb/ of some run's files is no library
        return ["train.wandb needs the library of Weights & Biases: pip install wandb; or leave train.wandb out"]
    return []


@dataclass(frozen=True)
class BatchShape:
    """How the rows of one optimizer step are dealt to micro-batches and ranks; ``setting`` is its name in messages."""

    batch_size: int
    micro_batch_size: int
    world_size: int
    setting: str = "train.batch_size"

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and step."""
        return self.batch_size // max(1, self.micro_batch_size * self.world_size)

    def problems(self) -> list[str]:
        """Empty where batch_size is a multiple of micro_batch_size x ranks; else the nearest legal values."""
        unit = self.micro_batch_size * self.world_size
        if self.micro_batch_size < 1 or self.batch_size < 1 or self.batch_size % unit == 0:
            return []
        below = self.batch_size // unit * unit
        sizes = [str(size) for size in (below, below + unit) if size > 0]
        message = (
            f"{self.setting} ({self.batch_size}) must be a multiple of train.micro_batch_size x ranks "
            f"({self.micro_batch_size} x {self.world_size} = {unit}); "
            f"nearest legal {self.setting}: {' or '.join(sizes)}"
        )
        if self.batch_size % self.world_size == 0:
            per_rank = self.batch_size // self.world_size
            divisors = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
            nearest = sorted(divisors, key=lambda size: (abs(size - self.micro_batch_size), size))[:2]
            message += f"; or keep it and set train.micro_batch_size to {' or '.join(map(str, sorted(nearest)))}"
        return [message]
