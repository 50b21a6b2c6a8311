"""A labelled file as examples in an endless order: a permutation for each epoch, keyed by (seed, epoch)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.data.batch import PackedBatch
from engine.data.draws import Draw
from engine.data.order import permutation, philox
from engine.train.timeline import StepSettings
from finetune.sequences import SequenceBuilder, TokenSequence
from finetune.tables import Row, Table
from finetune.tasks.base import Task

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Examples:
    """A labelled file, tokenized.

    Attributes:
        sequences: n token sequences.
        targets: [n] what the model should answer.
        num_truncated: how many were longer than the longest sequence allowed.
    """

    sequences: list[TokenSequence]
    targets: Int64
    num_truncated: int

    def digest(self) -> str:
        """sha256 (hex) of all that a model learns from the file."""
        digest = hashlib.sha256(self.targets.tobytes())
        for sequence in self.sequences:
            digest.update(f"{len(sequence.tokens)},{sequence.second};".encode())
            digest.update(sequence.tokens.astype(np.uint32).tobytes())
        return digest.hexdigest()


def build_sequences(
    builder: SequenceBuilder, task: Task, table: Table, rows: Sequence[Row]
) -> tuple[list[TokenSequence], int]:
    """Token sequences of a task's texts, and how many of them were cut."""
    return builder.build(*([row.cells[table.column(name)] for row in rows] for name in task.columns))


class ExampleSource:
    """The examples of a file as batches of a task; a batch is a pure function of the positions asked for."""

    def __init__(self, task: Task, builder: SequenceBuilder, examples: Examples, seed: int) -> None:
        self.task, self.builder, self.examples, self.seed = task, builder, examples, seed
        self.num_samples = len(examples.sequences)
        self._orders: dict[int, Int64] = {}

    def batch(self, positions: range, step: StepSettings) -> PackedBatch:
        """The examples at positions of the endless stream of shuffled epochs."""
        return self._batch(self._numbers(positions))

    def describe(self, positions: range, step: StepSettings) -> str:
        """The examples by their numbers in the file, from 0."""
        return f"examples {', '.join(map(str, self._numbers(positions)))}"

    def _numbers(self, positions: range) -> list[int]:
        places = [divmod(position, self.num_samples) for position in positions]
        return [int(self._order(epoch)[place]) for epoch, place in places]

    def held_out(self, samples: range) -> PackedBatch:
        """Examples by number in the file's order."""
        return self._batch(samples)

    def _batch(self, indices: Sequence[int]) -> PackedBatch:
        batch = self.builder.pack([self.examples.sequences[index] for index in indices])
        return self.task.with_targets(batch, self.examples.targets[list(indices)])

    def _order(self, epoch: int) -> Int64:
        if epoch not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k == epoch - 1}  # at most two stay in memory
            self._orders[epoch] = permutation(self.num_samples, philox(self.seed, epoch, 0, Draw.EXAMPLES))
        return self._orders[epoch]
