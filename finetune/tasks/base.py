"""What a run and a prediction ask of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch
from engine.models.model import Model
from engine.objectives.base import Objective
from finetune.tables import Row, Table

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


class Task(Objective, Protocol):
    """One kind of fine-tuning; its name is that of its head.

    Attributes:
        labels: names of the classes in the order of the logits.
        columns: the columns of a table that hold the texts, one or two.
    """

    labels: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def for_training(cls, table: Table, rows: Sequence[Row]) -> Self:
        """The task that a training file sets."""
        ...

    @classmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The task that a model was trained for, from what ``settings`` returned then."""
        ...

    def settings(self) -> dict[str, Any]:
        """What a prediction must know beside the labels: a JSON object."""
        ...

    def targets(self, table: Table, rows: Sequence[Row]) -> Int64:
        """What the model should answer for each row: [n]."""
        ...

    def make_head(self, arch: ArchConfig) -> nn.Module:
        """The head that the task trains."""
        ...

    def with_targets(self, batch: PackedBatch, targets: Int64) -> PackedBatch:
        """The batch with what the model should answer: targets [S]."""
        ...

    def measure(self, model: Model, batch: PackedBatch) -> Float64:
        """What ``figures`` needs of a batch: [S, k], a row for each sequence."""
        ...

    def figures(self, measured: Float64, targets: Int64) -> dict[str, float]:
        """``loss`` and the metrics of a file from its measured examples [n, k] and their targets [n]."""
        ...

    def answer_header(self, probabilities: bool) -> list[str]:
        """Columns of the predictions."""
        ...

    def answers(self, model: Model, batch: PackedBatch, probabilities: bool) -> list[list[str]]:
        """The predictions for a batch: the cells of a line for each sequence."""
        ...
