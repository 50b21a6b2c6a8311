"""Where a trainer's micro-batches come from, and the thread that prepares them ahead of the step."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.config.train import BatchShape
from engine.data.batch import PackedBatch
from engine.data.rows import RowReader
from engine.objectives.base import PretrainingObjective

PREFETCHED_STEPS = 2
WORD_ROWS = 100  # rows looked at to tell whether word boundaries are known


class BatchSource(Protocol):
    """Samples in a fixed endless order; a batch is a pure function of the positions asked for."""

    num_samples: int

    def batch(self, positions: range) -> PackedBatch:
        """The samples at positions of the endless order."""
        ...

    def held_out(self, samples: range) -> PackedBatch:
        """Samples by number in stored order, for evaluation."""
        ...


class RowSource:
    """Rows of shards, collated for an objective."""

    def __init__(self, reader: RowReader, objective: PretrainingObjective) -> None:
        self._reader, self._objective = reader, objective
        self.num_samples = reader.num_rows

    def batch(self, positions: range) -> PackedBatch:
        """The rows at positions of the endless stream of shuffled epochs."""
        return self._objective.collate(self._reader.in_order(positions))

    def knows_words(self, continuation: NDArray[np.bool_]) -> bool:
        """Whether any token of the first rows continues a word: by the stored word starts, else by its id.

        Args:
            continuation: [vocab_size], tokens that continue the word before them.
        """
        for index in range(min(self.num_samples, WORD_ROWS)):
            for piece in self._reader.row(index).pieces:
                starts = ~continuation[piece.tokens] if piece.word_starts is None else piece.word_starts
                if not starts[1:].all():
                    return True
        return False

    def held_out(self, samples: range) -> PackedBatch:
        """Rows of the plan in stored order, always masked alike."""
        return self._objective.collate([self._reader.row(index) for index in samples])


@dataclass(frozen=True)
class StepBatches:
    """The micro-batches of one rank for one step.

    Attributes:
        numbers: number g of each micro-batch within the step, over all ranks.
        batches: the micro-batches.
        waited: seconds that the trainer waited for them.
    """

    numbers: list[int]
    batches: list[PackedBatch]
    waited: float = 0.0


def step_batches(source: BatchSource, first_position: int, shape: BatchShape, rank: int) -> StepBatches:
    """Micro-batches of a rank: number g holds positions [g m, (g + 1) m) of the step and runs on rank g mod ranks."""
    size = shape.micro_batch_size
    numbers = list(range(rank, shape.batch_size // size, shape.world_size))
    starts = [first_position + number * size for number in numbers]
    return StepBatches(numbers, [source.batch(range(start, start + size)) for start in starts])


class Prefetcher:
    """Step batches in order, prepared by a thread; an error there is raised where the batch is asked for."""

    def __init__(self, source: BatchSource, first_position: int, steps: int, shape: BatchShape, rank: int) -> None:
        """Start the thread.

        Args:
            source: the samples.
            first_position: samples consumed before the first step.
            steps: steps to prepare.
            shape: the batch of a step.
            rank: this process.
        """
        self._queue: queue.Queue[StepBatches | BaseException] = queue.Queue(maxsize=PREFETCHED_STEPS)
        self._stop = threading.Event()
        arguments = (source, first_position, steps, shape, rank)
        self._thread = threading.Thread(target=self._work, args=arguments, name="prefetch", daemon=True)
        self._thread.start()

    def _work(self, source: BatchSource, first_position: int, steps: int, shape: BatchShape, rank: int) -> None:
        try:
            for step in range(steps):
                if not self._put(step_batches(source, first_position + step * shape.batch_size, shape, rank)):
                    return
        except BaseException as error:  # handed to the trainer, whatever it is
            self._put(error)

    def _put(self, item: StepBatches | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[StepBatches]:
        return self

    def __next__(self) -> StepBatches:
        begun = time.perf_counter()
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return StepBatches(item.numbers, item.batches, time.perf_counter() - begun)

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()
