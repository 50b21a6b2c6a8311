"""Settings of the learning rate over a run. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass

SCHEDULES = (
    "linear", "cosine", "cosine_restarts", "polynomial", "constant", "inverse_sqrt", "tri_stage", "wsd",
)  # fmt: skip
DECAY_SHAPES = ("linear", "cosine", "sqrt")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run, as a share of the peak rate.

    Args:
        name: linear, cosine, cosine_restarts, polynomial, constant, inverse_sqrt, tri_stage or wsd
            (warmup-stable-decay), each after a linear warmup; docs/training.md has the formulas.
        warmup_steps: steps of linear warmup; the first step already has a rate above 0.
        warmup_ratio: warmup as a share of all steps, used where warmup_steps is 0.
        final_ratio: rate after the last step as a share of the peak; for inverse_sqrt the least share.
        power: exponent of polynomial.
        cycles: cosine_restarts: equal cycles after the warmup.
        cycle_decay: cosine_restarts: peak of a cycle as a share of the peak before it.
        hold_ratio: tri_stage: share of all steps at the peak, between warmup and exponential decay.
        decay_ratio: wsd: share of all steps, the last ones, in which the rate decays.
        decay_shape: wsd: linear, cosine or sqrt (1 - sqrt of the progress, arXiv:2405.18392).
    """

    name: str = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.1
    final_ratio: float = 0.0
    power: float = 1.0
    cycles: int = 4
    cycle_decay: float = 1.0
    hold_ratio: float = 0.4
    decay_ratio: float = 0.1
    decay_shape: str = "linear"

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = []
        if self.name not in SCHEDULES:
            found.append(f"train.schedule.name is {self.name!r}; it must be one of {', '.join(SCHEDULES)}")
        if self.decay_shape not in DECAY_SHAPES:
            found.append(
                f"train.schedule.decay_shape is {self.decay_shape!r}; it must be one of {', '.join(DECAY_SHAPES)}"
            )
        if self.warmup_steps < 0:
            found.append(f"train.schedule.warmup_steps is {self.warmup_steps}; it must not be negative")
        found += [
            f"train.schedule.{name} is {getattr(self, name)}; it must be in [0, 1]"
            for name in ("warmup_ratio", "final_ratio", "hold_ratio", "decay_ratio")
            if not 0 <= getattr(self, name) <= 1
        ]
        found += [
            f"train.schedule.{name} is {getattr(self, name)}; it must be above 0"
            for name in ("power", "cycles", "cycle_decay")
            if not 0 < getattr(self, name) < float("inf")
        ]
        return found + self._problems_of_shape()

    def _problems_of_shape(self) -> list[str]:
        found = []
        if self.name == "tri_stage" and self.final_ratio == 0:
            found.append(
                "train.schedule.final_ratio is 0.0, which an exponential decay never reaches: give tri_stage one above "
                "0, such as 0.05"
            )
        warmup = 0.0 if self.warmup_steps else self.warmup_ratio
        for schedule, name in (("tri_stage", "hold_ratio"), ("wsd", "decay_ratio")):
            if self.name == schedule and warmup + getattr(self, name) > 1:
                found.append(
                    f"train.schedule.warmup_ratio ({warmup}) and {name} ({getattr(self, name)}) must sum to 1 at most"
                )
        return found
