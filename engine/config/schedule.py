"""Settings of the learning rate over a run. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

# What each schedule has beside its warmup, and what that is where it is not given.
OWN: dict[str, dict[str, Any]] = {
    "linear": {"final_ratio": 0.0, "decay_from": "peak"},
    "cosine": {"final_ratio": 0.0, "decay_from": "peak"},
    "cosine_restarts": {"final_ratio": 0.0, "cycles": 4, "cycle_decay": 1.0},
    "polynomial": {"final_ratio": 0.0, "power": 1.0, "decay_from": "peak"},
    "constant": {},
    "inverse_sqrt": {"final_ratio": 0.0},
    "tri_stage": {"final_ratio": 0.05, "hold_ratio": 0.4},
    "wsd": {"final_ratio": 0.0, "decay_ratio": 0.1, "decay_shape": "linear"},
}
SCHEDULES = tuple(OWN)
DECAY_SHAPES = ("linear", "cosine", "sqrt")
DECAY_FROM = ("peak", "start")
# What stands in the record of a run for the settings that its schedule does not have: the first values of all.
_FIRST = {name: value for own in reversed(OWN.values()) for name, value in own.items()}


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run, as a share of the peak rate.

    A setting that the schedule does not have is refused where it is given.

    Args:
        name: linear, cosine, cosine_restarts, polynomial, constant, inverse_sqrt, tri_stage or wsd
            (warmup-stable-decay), each after a linear warmup; docs/training.md has the formulas.
        warmup_steps: steps of linear warmup; the first step already has a rate above 0.
        warmup_ratio: warmup as a share of all steps, used where warmup_steps is 0.
        final_ratio: all but constant: rate after the last step as a share of the peak, 0 where not given, of tri_stage
            0.05; for inverse_sqrt the least share.
        power: polynomial: the exponent; 1 where not given.
        cycles: cosine_restarts: equal cycles after the warmup; 4 where not given.
        cycle_decay: cosine_restarts: peak of a cycle as a share of the peak before it; 1 where not given.
        hold_ratio: tri_stage: share of all steps at the peak, between warmup and exponential decay; 0.4 where not
            given.
        decay_ratio: wsd: share of all steps, the last ones, in which the rate decays; 0.1 where not given.
        decay_shape: wsd: linear, cosine or sqrt (1 - sqrt of the progress, arXiv:2405.18392); linear where not given.
        decay_from: linear, cosine and polynomial: where the decay begins: peak, the end of the warmup, or start, the
            first step, so that the rate drops from the peak onto the decay when the warmup ends (as in BERT's own code
            and NVIDIA's LAMB); peak where not given.
    """

    name: str = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.1
    final_ratio: float | None = None
    power: float | None = None
    cycles: int | None = None
    cycle_decay: float | None = None
    hold_ratio: float | None = None
    decay_ratio: float | None = None
    decay_shape: str | None = None
    decay_from: str | None = None

    def completed(self) -> ScheduleConfig:
        """The same with the schedule's own defaults in place of what was not given."""
        own = {**_FIRST, **OWN.get(self.name, {})}
        return replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        return self.wrong_values() + self.unused()

    def unused(self) -> list[str]:
        """Settings that are given, and that the schedule does not have; only before ``completed``."""
        if self.name not in OWN:
            return []
        return [
            f"train.schedule.{name} is given, and {self.name} has none; remove it, or choose "
            f"{' or '.join(other for other in SCHEDULES if name in OWN[other])}"
            for name in _FIRST
            if getattr(self, name) is not None and name not in OWN[self.name]
        ]

    def wrong_values(self) -> list[str]:
        """Everything wrong with the values themselves."""
        found, whole = [], self.completed()
        if self.name not in SCHEDULES:
            found.append(f"train.schedule.name is {self.name!r}; it must be one of {', '.join(SCHEDULES)}")
        found += [
            f"train.schedule.{name} is {getattr(self, name)!r}; it must be one of {', '.join(words)}"
            for name, words in (("decay_shape", DECAY_SHAPES), ("decay_from", DECAY_FROM))
            if getattr(whole, name) not in words
        ]
        if self.warmup_steps < 0:
            found.append(f"train.schedule.warmup_steps is {self.warmup_steps}; it must not be negative")
        found += [
            f"train.schedule.{name} is {getattr(self, name)}; it must be in [0, 1]"
            for name in ("warmup_ratio", "final_ratio", "hold_ratio", "decay_ratio")
            if not 0 <= getattr(whole, name) <= 1
        ]
        found += [
            f"train.schedule.{name} is {getattr(self, name)}; it must be above 0"
            for name in ("power", "cycles", "cycle_decay")
            if not 0 < getattr(whole, name) < float("inf")
        ]
        return found + whole._problems_of_shape()

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
