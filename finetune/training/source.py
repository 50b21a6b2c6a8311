"""A labelled file as examples in an endless order: a permutation for each epoch, keyed by (seed, epoch)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.batch import PackedBatch
from engine.data.draws import Draw
from engine.data.order import permutation, philox
from engine.train.timeline import StepSettings
from finetune.features.sequences import SequenceBuilder
from finetune.tasks.base import Example, Task

Int64 = NDArray[np.int64]


def digest_of(examples: Sequence[Example]) -> str:
    """sha256 (hex) of all that a model learns from examples."""
    digest = hashlib.sha256()
    for example in examples:
        if example.target is not None:
            digest.update(f"{example.target.dtype},{example.target.shape};".encode())
            digest.update(np.ascontiguousarray(example.target).tobytes())
        for sequence in example.sequences:
            digest.update(f"{len(sequence.tokens)},{sequence.second};".encode())
            digest.update(sequence.tokens.astype(np.uint32).tobytes())
    return digest.hexdigest()


class ExampleSource:
    """Examples as batches of a task; a batch is a pure function of the positions asked for."""

    def __init__(
        self, task: Task[Any], builder: SequenceBuilder, examples: Sequence[Example], seed: int, stream: int = 0
    ) -> None:
        """Take the examples.

        Args:
            task: collates them.
            builder: makes batches of their sequences.
            examples: in the file's order.
            seed: of their order.
            stream: tells the orders of several sources with one seed apart.
        """
        self.task, self.builder, self.examples, self.seed = task, builder, examples, seed
        self._stream = stream
        self.num_samples = len(examples)
        self._orders: dict[int, Int64] = {}

    def batch(self, positions: range, step: StepSettings) -> PackedBatch:
        """The examples at positions of the endless stream of shuffled epochs."""
        return self.task.collate(self.builder, [self.examples[number] for number in self._numbers(positions)])

    def describe(self, positions: range, step: StepSettings) -> str:
        """The examples by their numbers in the file, from 0."""
        return f"examples {', '.join(map(str, self._numbers(positions)))}"

    def _numbers(self, positions: range) -> list[int]:
        places = [divmod(position, self.num_samples) for position in positions]
        return [int(self._order(epoch)[place]) for epoch, place in places]

    def held_out(self, samples: range) -> PackedBatch:
        """Examples by number in the file's order."""
        return self.task.collate(self.builder, self.examples[samples.start : samples.stop])

    def first(self, num_records: int) -> Sequence[Example]:
        """All examples of the first records; those of all records where ``num_records`` is 0."""
        records = list(dict.fromkeys(example.record for example in self.examples))
        if not num_records or num_records >= len(records):
            return self.examples
        behind = records[num_records]
        return self.examples[: next(n for n, example in enumerate(self.examples) if example.record == behind)]

    def parts(self) -> list[ExampleSource]:
        """Sources to evaluate one by one: those whose examples can be in a batch together."""
        return [self]

    def _order(self, epoch: int) -> Int64:
        if epoch not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k == epoch - 1}  # at most two stay in memory
            self._orders[epoch] = permutation(self.num_samples, philox(self.seed, epoch, self._stream, Draw.EXAMPLES))
        return self._orders[epoch]
