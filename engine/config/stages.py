"""Settings of one of several stages of a run, such as length 128 and then 512. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from engine.config.optimizer import OptimizerConfig
from engine.config.schedule import ScheduleConfig

MIN_LENGTH = 8  # tokens of a row


@dataclass(frozen=True, kw_only=True)
class StageOptimizer:
    """Settings of the optimizer that replace the run's in a stage.

    Args:
        lr: peak learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
    """

    lr: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stage of a run; what it does not give is the run's own setting.

    Args:
        steps: optimizer steps of the stage.
        seq_length: tokens of a row.
        length_ramp: as data.length_ramp, counted within the stage.
        batch_size: rows per optimizer step over all ranks.
        batch_ramp: as train.batch_ramp, counted within the stage.
        micro_batch_size: rows per forward pass of one rank.
        optimizer: settings of the optimizer.
        schedule: the learning rate over the stage, with its own warmup.
    """

    steps: int
    seq_length: int | None = None
    length_ramp: dict[int, int] | None = None
    batch_size: int | None = None
    batch_ramp: dict[int, int] | None = None
    micro_batch_size: int | None = None
    optimizer: StageOptimizer = field(default_factory=StageOptimizer)
    schedule: ScheduleConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage with all its settings filled in."""

    steps: int
    seq_length: int
    length_ramp: dict[int, int]
    batch_size: int
    batch_ramp: dict[int, int]
    micro_batch_size: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words, whether completed or not."""
        found = [
            f"{name} is {getattr(self, name)}; it must be at least 1"
            for name in ("steps", "batch_size", "micro_batch_size")
            if getattr(self, name) < 1
        ]
        if self.seq_length < MIN_LENGTH:
            found.append(f"seq_length is {self.seq_length}; it must be at least {MIN_LENGTH}")
        found += ramp_problems("batch_ramp", self.batch_ramp, self.batch_size, "batch_size", least=1)
        found += ramp_problems("length_ramp", self.length_ramp, self.seq_length, "seq_length", least=MIN_LENGTH)
        for name, ramp, last in (
            ("batch_ramp", self.batch_ramp, "batch_size"), ("length_ramp", self.length_ramp, "seq_length"),
        ):  # fmt: skip
            found += endless_ramp(name, ramp, self.steps, last)
        return found + self.optimizer.wrong_values() + self.schedule.wrong_values()

    def overridden(self, config: StageConfig) -> Stage:
        """This stage with the settings that a stage of the run gives."""
        given = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ("optimizer", "length_ramp")}
        changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        changed["length_ramp"] = config.length_ramp or {}  # ramps count the steps of their own stage
        changed["batch_ramp"] = config.batch_ramp or {}
        optimizer = {name: value for name, value in vars(config.optimizer).items() if value is not None}
        return replace(self, **changed, optimizer=replace(self.optimizer, **optimizer))


def ramp_problems(name: str, ramp: dict[int, int], final: int, final_name: str, least: int) -> list[str]:
    """What is wrong with a ramp: {step: value until that step}, steps ascending from 1, values from ``least`` on."""
    found = []
    if any(step < 1 for step in ramp) or list(ramp) != sorted(ramp):
        found.append(f"{name} {ramp} maps the step until which a value holds to the value: steps ascending, from 1 on")
    if any(value < least for value in ramp.values()):
        found.append(f"{name} {ramp} has values below {least}; the last value, from then on, is {final_name} ({final})")
    return found


def endless_ramp(name: str, ramp: dict[int, int], steps: int, final_name: str) -> list[str]:
    """What is wrong with a ramp that lasts to the end: the value that it leads to would not be used."""
    if not ramp or max(ramp) < steps:
        return []
    return [f"{name} lasts until step {max(ramp)} of {steps}, so {final_name} is never reached; end it before"]
