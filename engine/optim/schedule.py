"""Learning rates as a pure function of the step, so that there is no scheduler state to lose."""

from __future__ import annotations

import math

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
        Rises linearly from 1 / warmup at step 0 to 1, then falls to ``final_ratio`` just after the last step; above 0
        at every step of the run.
    """
    warmup = warmup_steps(config, steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.name == "constant":
        return 1.0
    progress = min(1.0, (step + 1 - warmup) / (steps + 1 - warmup))
    shape = 1.0 - progress if config.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_ratio + (1.0 - config.final_ratio) * shape
