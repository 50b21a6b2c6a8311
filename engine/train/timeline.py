"""What each optimizer step computes with, as a pure function of the settings: stages, ramps, schedules.

Rows are counted for each row length on its own: a stage that goes back to a length goes on where the last one with that
length ended, and so no row is seen twice before all were seen once.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from engine.config.optimizer import OptimizerConfig
from engine.config.stages import Stage
from engine.config.train import BatchShape
from engine.optim.schedule import rate_factor


@dataclass(frozen=True)
class StepSettings:
    """What one optimizer step computes with.

    Attributes:
        step: counted from 0 over the whole run.
        stage: number of the stage, from 0.
        seq_length: tokens of a row; 0 where samples are not rows.
        batch_size: rows of the step over all ranks.
        micro_batch_size: rows of a forward pass of one rank.
        first_row: rows of this length that earlier steps consumed.
        lr: learning rate.
        optimizer: settings of the stage's optimizer.
        masking_rate: share of tokens that become targets; None where nothing is masked.
    """

    step: int
    stage: int
    seq_length: int
    batch_size: int
    micro_batch_size: int
    first_row: int
    lr: float
    optimizer: OptimizerConfig
    masking_rate: float | None = None

    def shape(self, world_size: int) -> BatchShape:
        """How the rows are dealt to micro-batches and ranks."""
        return BatchShape(self.batch_size, self.micro_batch_size, world_size)


@dataclass(frozen=True)
class _Phase:
    """Steps in a row that differ in their rates alone."""

    first_step: int
    stage: int
    seq_length: int
    batch_size: int
    first_row: int


class Timeline:
    """All steps of a run."""

    def __init__(self, stages: Sequence[Stage], masking_rate: Callable[[float], float] | None = None) -> None:
        """Lay the stages out one after another.

        Args:
            stages: at least one, without problems.
            masking_rate: share of masked tokens by the run's progress in [0, 1).
        """
        self._stages = tuple(stages)
        self._masking_rate = masking_rate
        self._stage_starts = [sum(stage.steps for stage in stages[:number]) for number in range(len(stages))]
        self.steps = sum(stage.steps for stage in stages)
        self._phases: list[_Phase] = []
        rows: dict[int, int] = {}
        for number, stage in enumerate(self._stages):
            ends = [*_phase_starts(stage)[1:], stage.steps]
            for start, end in zip(_phase_starts(stage), ends, strict=True):
                length = _value(stage.length_ramp, start, stage.seq_length)
                batch = _value(stage.batch_ramp, start, stage.batch_size)
                first = self._stage_starts[number] + start
                self._phases.append(_Phase(first, number, length, batch, rows.get(length, 0)))
                rows[length] = rows.get(length, 0) + (end - start) * batch
        self._starts = [phase.first_step for phase in self._phases]

    def at(self, step: int) -> StepSettings:
        """The settings of a step, counted from 0; those of a step beyond the end go on as the last stage would."""
        phase = self._phases[bisect.bisect_right(self._starts, step) - 1]
        stage = self._stages[phase.stage]
        within = step - self._stage_starts[phase.stage]
        rate = stage.optimizer.lr * rate_factor(stage.schedule, within, stage.steps)
        masking = None if self._masking_rate is None else self._masking_rate(min(1.0, step / self.steps))
        return StepSettings(
            step=step,
            stage=phase.stage,
            seq_length=phase.seq_length,
            batch_size=phase.batch_size,
            micro_batch_size=stage.micro_batch_size,
            first_row=phase.first_row + (step - phase.first_step) * phase.batch_size,
            lr=rate,
            optimizer=stage.optimizer,
            masking_rate=masking,
        )

    def rows_before(self, step: int) -> dict[int, int]:
        """Rows that the steps before this one consume, by their length."""
        rows: dict[int, int] = {}
        for phase, end in zip(self._phases, [*self._starts[1:], self.steps], strict=True):
            taken = min(step, end) - phase.first_step
            if taken > 0:
                rows[phase.seq_length] = phase.first_row + taken * phase.batch_size
        return rows

    def lengths(self) -> list[int]:
        """Row lengths in the order of their first use."""
        return list(dict.fromkeys(phase.seq_length for phase in self._phases))

    def phases(self) -> list[tuple[StepSettings, StepSettings, int]]:
        """Runs of steps with the same rows and the same batch: the first and the last step of each, and how many."""
        ends = [*self._starts[1:], self.steps]
        return [(self.at(start), self.at(end - 1), end - start) for start, end in zip(self._starts, ends, strict=True)]

    def shapes(self, world_size: int) -> list[BatchShape]:
        """Every batch of the run, once each, in the order of first use."""
        first: dict[tuple[int, int], int] = {}
        for phase in self._phases:
            first.setdefault((phase.batch_size, self._stages[phase.stage].micro_batch_size), phase.first_step)
        if len(first) == 1:
            return [BatchShape(*sizes, world_size) for sizes in first]
        return [BatchShape(*sizes, world_size, f"the batch of step {step + 1}") for sizes, step in first.items()]

    def varying(self, step: StepSettings) -> dict[str, float | int | None]:
        """Of a step's settings those that are not the same at all steps, for its log line."""
        figures: dict[str, float | int | None] = {}
        for name in ("stage", "seq_length", "batch_size"):
            if len({getattr(phase, name) for phase in self._phases}) > 1:
                figures[name] = getattr(step, name)
        if self._masking_rate is not None and self._masking_rate(0.0) != self._masking_rate(1.0):
            figures["masking_rate"] = step.masking_rate
        return figures

    def __iter__(self) -> Iterator[StepSettings]:
        return (self.at(step) for step in range(self.steps))


def _phase_starts(stage: Stage) -> list[int]:
    """Steps of a stage at which its batch or its rows change, the first one included."""
    changes = {0, *stage.batch_ramp, *stage.length_ramp}
    return sorted(step for step in changes if step < stage.steps)


def _value(ramp: dict[int, int], step: int, final: int) -> int:
    """What a ramp {until: value} gives at a step."""
    return next((value for until, value in sorted(ramp.items()) if step < until), final)
