"""Where a trainer's micro-batches come from, and the thread that prepares them ahead of the step."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.data.batch import PackedBatch
from engine.data.filler import filled
from engine.data.rows import Row
from engine.objectives.base import PretrainingObjective
from engine.train.timeline import StepSettings, Timeline

PREFETCHED_STEPS = 2
WORD_ROWS = 100  # rows looked at to tell whether word boundaries are known


class BatchSource(Protocol):
    """Samples in a fixed endless order; a batch is a pure function of the positions and settings asked for."""

    def batch(self, positions: range, step: StepSettings) -> PackedBatch:
        """The samples at positions of the endless order."""
        ...

    def describe(self, positions: range, step: StepSettings) -> str:
        """What a user can find these samples by."""
        ...


class HeldOutSource(Protocol):
    """Samples to evaluate on."""

    num_samples: int

    def held_out(self, samples: range) -> PackedBatch:
        """Samples by number in stored order."""
        ...


class Rows(Protocol):
    """Rows of one length."""

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        ...

    def in_order(self, positions: range) -> list[Row]:
        """Rows at positions of the endless stream."""
        ...

    def describe(self, positions: range) -> str:
        """What a user can find the rows at positions by."""
        ...

    def row(self, index: int) -> Row:
        """A row by its number, in stored order."""
        ...


class RowSource:
    """Rows of shards, collated for an objective."""

    def __init__(self, readers: Mapping[int, Rows], objective: PretrainingObjective) -> None:
        """Put readers and an objective together.

        Args:
            readers: of the same shards, by the length of their rows.
            objective: collates the rows.
        """
        self._readers, self._objective = readers, objective

    def num_rows(self, seq_length: int) -> int:
        """Rows of an epoch."""
        return self._readers[seq_length].num_rows

    def batch(self, positions: range, step: StepSettings) -> PackedBatch:
        """The rows at positions of the endless stream of shuffled epochs."""
        rows = self._readers[step.seq_length].in_order(positions)
        assert len(rows) == len(positions), f"{len(rows)} rows at positions {positions.start} to {positions.stop - 1}"
        return self._objective.collate(rows, step.masking_rate)

    def describe(self, positions: range, step: StepSettings) -> str:
        """The rows by their numbers in the plan."""
        return f"rows of {step.seq_length} tokens: {self._readers[step.seq_length].describe(positions)}"

    def knows_words(self, continuation: NDArray[np.bool_]) -> bool:
        """Whether any token of the first rows continues a word: by the stored word starts, else by its id.

        Args:
            continuation: [vocab_size], tokens that continue the word before them.
        """
        reader = next(iter(self._readers.values()))
        for index in range(min(reader.num_rows, WORD_ROWS)):
            for piece in reader.row(index).pieces:
                starts = ~continuation[piece.tokens] if piece.word_starts is None else piece.word_starts
                if not starts[1:].all():
                    return True
        return False

    def of_length(self, seq_length: int) -> HeldOutRows:
        """The rows of one length in stored order."""
        return HeldOutRows(self._readers[seq_length], self._objective)


class HeldOutRows:
    """Rows of one plan in stored order, always masked alike."""

    def __init__(self, reader: Rows, objective: PretrainingObjective) -> None:
        self._reader, self._objective = reader, objective
        self.num_samples = reader.num_rows

    def held_out(self, samples: range) -> PackedBatch:
        """Rows by number, masked at the configured rate."""
        return self._objective.collate([self._reader.row(index) for index in samples])


@dataclass(frozen=True)
class StepBatches:
    """The micro-batches of one rank for one step.

    Attributes:
        step: what the step computes with.
        numbers: number g of each micro-batch within the step, over all ranks.
        batches: the micro-batches.
        waited: seconds that the trainer waited for them.
    """

    step: StepSettings
    numbers: list[int]
    batches: list[PackedBatch]
    waited: float = 0.0


def step_batches(
    source: BatchSource, step: StepSettings, rank: int, world_size: int, fixed_shapes: bool = False
) -> StepBatches:
    """Micro-batches of a rank: number g holds positions [g m, (g + 1) m) of the step and runs on rank g mod ranks.

    Args:
        source: the samples.
        step: what the step takes.
        rank: this process.
        world_size: ranks.
        fixed_shapes: whether to fill each up to a shape that few others differ from.
    """
    numbers = list(range(rank, step.batch_size // step.micro_batch_size, world_size))
    if len(numbers) != step.shape(world_size).accumulation:  # this rank would leave the others waiting for it
        raise ValueError(f"step {step.step + 1} gives rank {rank} of {world_size} {len(numbers)} micro-batches")
    batches = [source.batch(positions_of(step, number), step) for number in numbers]
    if fixed_shapes:
        most = step.micro_batch_size * step.seq_length
        batches = [filled(batch, most or None, step.seq_length or None) for batch in batches]
    return StepBatches(step, numbers, batches)


def positions_of(step: StepSettings, number: int) -> range:
    """Positions of micro-batch ``number`` of a step in the stream of rows of its length."""
    first = step.first_row + number * step.micro_batch_size
    return range(first, first + step.micro_batch_size)


def _prepared(work: StepBatches, device: torch.device | None) -> StepBatches:
    """Batches for a GPU in pinned memory, from which copies do not hold up the host."""
    if device is None or device.type != "cuda":
        return work
    return replace(work, batches=[batch.each(Tensor.pin_memory) for batch in work.batches])


class Prefetcher:
    """Step batches in order, prepared by a thread; an error there is raised where the batch is asked for."""

    def __init__(
        self,
        source: BatchSource,
        timeline: Timeline,
        first_step: int,
        rank: int,
        world_size: int,
        fixed_shapes: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """Start the thread.

        Args:
            source: the samples.
            timeline: what each step takes.
            first_step: the step to begin with; the timeline's last one is the last.
            rank: this process.
            world_size: ranks.
            fixed_shapes: whether to fill batches up.
            device: where the batches will be copied to; for a GPU they are put into pinned memory.
        """
        self._queue: queue.Queue[StepBatches | BaseException] = queue.Queue(maxsize=PREFETCHED_STEPS)
        self._stop = threading.Event()
        work = (
            _prepared(step_batches(source, timeline.at(step), rank, world_size, fixed_shapes), device)
            for step in range(first_step, timeline.steps)
        )
        self._thread = threading.Thread(
            target=self._work, args=(work, timeline.steps, device), name="prefetch", daemon=True
        )
        self._thread.start()

    def _work(self, work: Iterator[StepBatches], steps: int, device: torch.device | None) -> None:
        try:
            if device is not None and device.type == "cuda":
                torch.cuda.set_device(device)  # of this thread
            for item in work:
                if not self._put(item):
                    return
            self._put(IndexError(f"there are no batches beyond step {steps}"))
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
        return replace(item, waited=time.perf_counter() - begun)

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()
