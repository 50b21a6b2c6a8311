"""Settings of the learning rate over a run. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass

SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run, as a share of the peak rate.

    Args:
        name: linear, cosine or constant, each after a linear warmup.
        warmup_steps: steps of linear warmup; the first step already has a rate above 0.
        warmup_ratio: warmup as a share of all steps, used where warmup_steps is 0.
        final_ratio: rate after the last step as a share of the peak.
    """

    name: str = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.1
    final_ratio: float = 0.0

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = []
        if self.name not in SCHEDULES:
            found.append(f"train.schedule.name is {self.name!r}; it must be one of {', '.join(SCHEDULES)}")
        if self.warmup_steps < 0:
            found.append(f"train.schedule.warmup_steps is {self.warmup_steps}; it must not be negative")
        if not 0 <= self.warmup_ratio <= 1:
            found.append(f"train.schedule.warmup_ratio is {self.warmup_ratio}; it must be in [0, 1]")
        if not 0 <= self.final_ratio <= 1:
            found.append(f"train.schedule.final_ratio is {self.final_ratio}; it must be in [0, 1]")
        return found
