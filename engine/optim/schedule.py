"""Learning rates as a pure function of the step, so that there is no scheduler state to lose."""

from __future__ import annotations

import math
from collections.abc import Callable

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
    return FACTORS[config.name](config, step + 1 - warmup, max(1, steps + 1 - warmup), warmup)


# Each takes the schedule, steps since the warmup (from 1), how many there are with the one just after the last, and
# the steps of warmup.


def _between(config: ScheduleConfig, shape: float) -> float:
    """From 1 where the shape is 1 to the final ratio where it is 0."""
    return config.final_ratio + (1.0 - config.final_ratio) * shape


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _polynomial_decay(config: ScheduleConfig, past: int, after: int, warmup: int) -> float:
    power = config.power if config.name == "polynomial" else 1.0
    return _between(config, max(0.0, 1.0 - past / after) ** power)


def _cosine_decay(config: ScheduleConfig, past: int, after: int, warmup: int) -> float:
    return _between(config, _cosine(past / after))


def _cosine_restarts(config: ScheduleConfig, past: int, after: int, warmup: int) -> float:
    """SGDR (arXiv:1608.03983) with cycles of equal length, each beginning at its own peak."""
    position = min((past - 1) / (after - 1) if after > 1 else 0.0, 1.0) * config.cycles
    cycle = min(int(position), config.cycles - 1)
    peak = config.cycle_decay**cycle
    return config.final_ratio + (peak - config.final_ratio) * _cosine(position - cycle)


def _constant(config: ScheduleConfig, past: int, after: int, warmup: int) -> float:
    return 1.0


def _inverse_sqrt(config: ScheduleConfig, past: int, after: int, warmup: int) -> float:
    """Vaswani et al. 2017, section 5.3, scaled to 1 at the end of the warmup."""
    return max(config.final_ratio, math.sqrt(max(1, warmup) / (max(1, warmup) + past)))


def _tri_stage(config: ScheduleConfig, past: int, after: int, warmup: int) -> float:
    """Warmup, hold, exponential decay (SpecAugment, arXiv:1904.08779, section 3)."""
    hold = math.ceil(config.hold_ratio * (after - 1 + warmup))
    if past <= hold:
        return 1.0
    return math.exp(math.log(config.final_ratio) * min(1.0, (past - hold) / max(1, after - hold)))


def _warmup_stable_decay(config: ScheduleConfig, past: int, after: int, warmup: int) -> float:
    decay = min(math.ceil(config.decay_ratio * (after - 1 + warmup)), after - 1)
    progress = min(1.0, max(0, past - (after - 1 - decay)) / (decay + 1))
    shapes = {"linear": 1.0 - progress, "cosine": _cosine(progress), "sqrt": 1.0 - math.sqrt(progress)}
    return _between(config, shapes[config.decay_shape])


FACTORS: dict[str, Callable[[ScheduleConfig, int, int, int], float]] = {
    "linear": _polynomial_decay,
    "cosine": _cosine_decay,
    "cosine_restarts": _cosine_restarts,
    "polynomial": _polynomial_decay,
    "constant": _constant,
    "inverse_sqrt": _inverse_sqrt,
    "tri_stage": _tri_stage,
    "wsd": _warmup_stable_decay,
}
