"""Training examples of several tasks: one task for a whole optimizer step, on all ranks.

The tasks of the steps are a pure function of (seed, step). A round has as many steps as an epoch over all tasks, of
each task in proportion to its size (or to a power of it), in an order that is permuted anew for each round; within a
task, its examples come in shuffled epochs of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.data.batch import PackedBatch
from engine.data.draws import Draw
from engine.data.order import permutation, philox
from engine.train.timeline import StepSettings
from finetune.features.sequences import SequenceBuilder
from finetune.tasks.base import Example
from finetune.tasks.multitask import Multitask
from finetune.training.source import ExampleSource

Int64 = NDArray[np.int64]


def steps_of_round(sizes: Sequence[int], batch_size: int, power: float) -> list[int]:
    """Steps of each task in a round: with power 1 those of an epoch, else as many in all, at least one of each.

    Args:
        sizes: examples of each task.
        batch_size: examples of a step.
        power: of the sizes.
    """
    steps = [math.ceil(size / batch_size) for size in sizes]
    if power == 1:
        return steps
    weights = [size**power for size in sizes]
    return [max(1, round(sum(steps) * weight / sum(weights))) for weight in weights]


class TaskOrder:
    """Which task each step learns."""

    def __init__(self, steps: Sequence[int], seed: int) -> None:
        """Take the number of steps of each task in a round."""
        self.steps, self.seed = list(steps), seed
        self._rounds: dict[int, Int64] = {}

    def at(self, step: int) -> tuple[int, int]:
        """The task of a step, by number, and how many earlier steps were of this task."""
        number, place = divmod(step, sum(self.steps))
        tasks = self._round(number)
        task = int(tasks[place])
        return task, number * self.steps[task] + int((tasks[:place] == task).sum())

    def _round(self, number: int) -> Int64:
        if number not in self._rounds:
            self._rounds = {k: v for k, v in self._rounds.items() if k == number - 1}  # at most two stay in memory
            order = permutation(sum(self.steps), philox(self.seed, number, 0, Draw.TASKS))
            self._rounds[number] = np.repeat(np.arange(len(self.steps)), self.steps)[order]
        return self._rounds[number]


class MultitaskSource(ExampleSource):
    """Examples of several tasks; the micro-batches of a step are of the same task."""

    def __init__(
        self,
        task: Multitask,
        builder: SequenceBuilder,
        examples: Sequence[Example],
        seed: int,
        batch_size: int,
        size_power: float,
    ) -> None:
        """Divide the examples by their tasks.

        Args:
            task: of all of them.
            builder: makes batches of their sequences.
            examples: in the order of their tasks.
            seed: of the orders.
            batch_size: examples of every step.
            size_power: a task is chosen in proportion to this power of its size.
        """
        super().__init__(task, builder, examples, seed)
        own = {name: [example for example in examples if task.part_of(example) == name] for name in task.tasks}
        self._parts = [
            ExampleSource(task, builder, made, seed, stream=number)
            for number, made in enumerate(own.values())
            if made  # a file of evaluation may lack some tasks
        ]
        sizes = [part.num_samples for part in self._parts]
        self._order_of_tasks = TaskOrder(steps_of_round(sizes, batch_size, size_power), seed)

    def _place(self, positions: range, step: StepSettings) -> tuple[ExampleSource, range]:
        """The task's source, and where in its own stream these positions of a step are."""
        task, before = self._order_of_tasks.at(step.step)
        first = before * step.batch_size + positions.start - step.first_row
        return self._parts[task], range(first, first + len(positions))

    def batch(self, positions: range, step: StepSettings) -> PackedBatch:
        """Examples of the step's task."""
        part, own = self._place(positions, step)
        return part.batch(own, step)

    def describe(self, positions: range, step: StepSettings) -> str:
        """The task, and the examples by their numbers in its file, from 0."""
        part, own = self._place(positions, step)
        return f"{part.task.part_of(part.examples[0])}: {part.describe(own, step)}"

    def parts(self) -> list[ExampleSource]:
        """A source of each task: a batch must not mix them."""
        return self._parts
