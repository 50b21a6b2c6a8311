"""Learning rates as a pure function of the step, so that there is no scheduler state to lose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from engine.config.schedule import ScheduleConfig


def warmup_steps(config: ScheduleConfig, steps: int) -> int:
    """Steps of warmup of a run of ``steps`` steps."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * steps)


def rate_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Share of the peak rate at a step.

    Args:
        config: the schedule.
        step: counted from 0.
        steps: steps of the whole run.

    Returns:
        Rises linearly from 1 / warmup at step 0 to 1, then follows the schedule, which reaches ``final_ratio`` just
        after the last step; above 0 at every step of the run.
    """
    warmup = warmup_steps(config, steps)
    if step < warmup:
        return (step + 1) / warmup
    settings = {name: value for name, value in vars(config.completed()).items() if name in _SETTINGS}
    return FACTORS[config.name](
        Place(past=step + 1 - warmup, after=max(1, steps + 1 - warmup), warmup=warmup, **settings)
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """A step of a schedule, and the schedule's settings.

    Attributes:
        past: steps since the warmup, from 1.
        after: how many there are with the one just after the last.
        warmup: steps of warmup.
    """

    past: int
    after: int
    warmup: int
    final_ratio: float
    power: float
    cycles: int
    cycle_decay: float
    hold_ratio: float
    decay_ratio: float
    decay_shape: str
    decay_from: str

    @property
    def progress(self) -> float:
        """From 0, where the decay begins, to 1 just after the last step; more beyond.

        BERT's optimization.py and NVIDIA's PolyWarmUpScheduler decay from the first step on, and the warmup covers the
        beginning of it.
        """
        if self.decay_from == "start":
            return (self.past + self.warmup - 1) / (self.after + self.warmup - 1)
        return self.past / self.after

    def between(self, shape: float) -> float:
        """From 1 where the shape is 1 to the final ratio where it is 0."""
        return self.final_ratio + (1.0 - self.final_ratio) * shape


_SETTINGS = {field.name for field in fields(Place)}


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _linear_decay(place: Place) -> float:
    return place.between(max(0.0, 1.0 - place.progress))


def _polynomial_decay(place: Place) -> float:
    return place.between(max(0.0, 1.0 - place.progress) ** place.power)


def _cosine_decay(place: Place) -> float:
    return place.between(_cosine(place.progress))


def _cosine_restarts(place: Place) -> float:
    """SGDR (arXiv:1608.03983) with cycles of equal length, each beginning at its own peak."""
    position = min((place.past - 1) / (place.after - 1) if place.after > 1 else 0.0, 1.0) * place.cycles
    cycle = min(int(position), place.cycles - 1)
    peak = place.cycle_decay**cycle
    return place.final_ratio + (peak - place.final_ratio) * _cosine(position - cycle)


def _constant(place: Place) -> float:
    return 1.0


def _inverse_sqrt(place: Place) -> float:
    """Vaswani et al. 2017, section 5.3, scaled to 1 at the end of the warmup."""
    return max(place.final_ratio, math.sqrt(max(1, place.warmup) / (max(1, place.warmup) + place.past)))


def _tri_stage(place: Place) -> float:
    """Warmup, hold, exponential decay (SpecAugment, arXiv:1904.08779, section 3)."""
    hold = math.ceil(place.hold_ratio * (place.after - 1 + place.warmup))
    if place.past <= hold:
        return 1.0
    return math.exp(math.log(place.final_ratio) * min(1.0, (place.past - hold) / max(1, place.after - hold)))


def _warmup_stable_decay(place: Place) -> float:
    decay = min(math.ceil(place.decay_ratio * (place.after - 1 + place.warmup)), place.after - 1)
    progress = min(1.0, max(0, place.past - (place.after - 1 - decay)) / (decay + 1))
    shapes = {"linear": 1.0 - progress, "cosine": _cosine(progress), "sqrt": 1.0 - math.sqrt(progress)}
    return place.between(shapes[place.decay_shape])


FACTORS: dict[str, Callable[[Place], float]] = {
    "linear": _linear_decay,
    "cosine": _cosine_decay,
    "cosine_restarts": _cosine_restarts,
    "polynomial": _polynomial_decay,
    "constant": _constant,
    "inverse_sqrt": _inverse_sqrt,
    "tri_stage": _tri_stage,
    "wsd": _warmup_stable_decay,
}
