"""Classification of one text or of a pair of texts into any number of classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, Targets
from engine.models.heads import SequenceClassificationHead
from engine.models.model import Model
from engine.objectives.base import LossTerm, cross_entropy_term, encode
from finetune.columns import LABEL, TEXT_A, TEXT_B
from finetune.tables import Row, Table, looks_like_header, other_columns
from finetune.tasks.base import Float64, Int64

_INTEGER = re.compile(r"[+-]?[0-9]+")
_SHOWN_LABELS = 20
_DOUBTFUL_LABELS = 20  # more classes than this, and than half of the rows, and the labels are something else


class Classification:
    """A class for each sequence, by cross-entropy over all classes."""

    name = "classification"

    def __init__(self, labels: Sequence[str], pair: bool) -> None:
        """Name the classes in the order of the logits, and say whether two texts make an example."""
        self.labels = tuple(labels)
        self.columns: tuple[str, ...] = (TEXT_A, TEXT_B) if pair else (TEXT_A,)
        self._numbers = {label: number for number, label in enumerate(self.labels)}

    @classmethod
    def for_training(cls, table: Table, rows: Sequence[Row]) -> Self:
        """Take the classes from a training file; a column text_b makes it a task of pairs.

        Raises:
            ValueError: if a label is empty, there are fewer than two classes, or the labels look like no labels.
        """
        column = table.column(LABEL)
        labels = sorted_labels(label_of(table, row, column) for row in rows)
        if len(labels) < 2:
            raise ValueError(f"{table.path}: all {len(rows):,} examples have the label {labels[0]!r}; two are needed")
        if len(labels) > _DOUBTFUL_LABELS and 2 * len(labels) > len(rows):
            raise ValueError(
                f"{table.path}: {len(labels):,} classes for {len(rows):,} examples; column {column + 1} of "
                f"{len(table.names)} was taken as the label; if that is wrong, {other_columns(table, rows)}; if it is "
                "right, leave out the classes with few examples"
            )
        check_first_line(table, rows, column)
        return cls(labels, pair=TEXT_B in table.names)

    @classmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The task that a model was trained for."""
        return cls(labels, pair=bool(settings["pair"]))

    def settings(self) -> dict[str, Any]:
        """Whether two texts make an example."""
        return {"pair": TEXT_B in self.columns}

    def make_head(self, arch: ArchConfig) -> nn.Module:
        """The pooled first token's class (BERT), or the last token's (GPT-2)."""
        return SequenceClassificationHead(arch, len(self.labels))

    def targets(self, table: Table, rows: Sequence[Row]) -> Int64:
        """Numbers of the rows' classes: [n].

        Raises:
            ValueError: naming file and line of a label that the training file does not have.
        """
        column = table.column(LABEL)
        targets = [self._numbers.get(label_of(table, row, column)) for row in rows]
        if None in targets:
            row = rows[targets.index(None)]
            known = ", ".join(self.labels[:_SHOWN_LABELS]) + (", ..." if len(self.labels) > _SHOWN_LABELS else "")
            raise ValueError(
                f"{table.path}, line {row.line:,}: the label {row.cells[column]!r} is not in the training file, "
                f"which has {known}" + ("" if table.has_header or row.line > 1 else f"; {looks_like_header(table)}")
            )
        return np.array(targets, np.int64)

    def with_targets(self, batch: PackedBatch, targets: Int64) -> PackedBatch:
        """The batch with its sequences' classes: [S]."""
        target = Targets(torch.arange(len(targets)), torch.from_numpy(targets))
        return replace(batch, targets={self.name: target}, counts={self.name: len(targets)})

    def logits(self, model: Model, batch: PackedBatch) -> Tensor:
        """Logits of each sequence: [S, number of classes]."""
        logits: Tensor = model.heads[self.name](encode(model, batch), batch.layout)
        return logits

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Cross-entropy of the classes."""
        target, count = batch.targets[self.name], batch.counts[self.name]
        logits = self.logits(model, batch)[target.index]  # [M, number of classes]
        return {self.name: cross_entropy_term(logits, target.labels, count, with_accuracy)}

    def measure(self, model: Model, batch: PackedBatch) -> Float64:
        """Cross-entropy and predicted class of each example: [S, 2]."""
        logits = self.logits(model, batch).float()
        losses = F.cross_entropy(logits, batch.targets[self.name].labels, reduction="none")
        return torch.stack([losses.double(), logits.argmax(-1).double()], -1).cpu().numpy()

    def figures(self, measured: Float64, targets: Int64) -> dict[str, float]:
        """Mean loss, accuracy and macro F1."""
        predicted = measured[:, 1].astype(np.int64)
        return {
            "loss": float(measured[:, 0].mean()),
            "accuracy": float((predicted == targets).mean()),
            "macro_f1": macro_f1(predicted, targets, len(self.labels)),
        }

    def answer_header(self, probabilities: bool) -> list[str]:
        """``label``, and a column for each class."""
        return [LABEL, *(f"probability_{label}" for label in self.labels if probabilities)]

    def answers(self, model: Model, batch: PackedBatch, probabilities: bool) -> list[list[str]]:
        """The most probable class of each sequence, and the probabilities of all."""
        logits = self.logits(model, batch).double()
        best = [[self.labels[number]] for number in logits.argmax(-1).tolist()]
        if not probabilities:
            return best
        rows = logits.softmax(-1).tolist()
        return [[*label, *(f"{value:.6f}" for value in row)] for label, row in zip(best, rows, strict=True)]


def label_of(table: Table, row: Row, column: int) -> str:
    """The label of a row, without spaces around it; ValueError where it is empty."""
    label = row.cells[column].strip()
    if not label:
        raise ValueError(f"{table.path}, line {row.line:,}: the label is empty")
    return label


def check_first_line(table: Table, rows: Sequence[Row], column: int) -> None:
    """Refuse a first line that was taken as an example and whose class no other line has, unless all are integers."""
    first, *others = (label_of(table, row, column) for row in rows)
    if table.has_header or first in others or all(map(_INTEGER.fullmatch, (first, *others))):
        return
    raise ValueError(f"{table.path}, line 1: no other line has the label {first!r}; {looks_like_header(table)}")


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """The distinct labels in order: of numbers where all are integers, else of code points."""
    distinct = sorted(set(labels))
    return sorted(distinct, key=int) if all(map(_INTEGER.fullmatch, distinct)) else distinct


def macro_f1(predicted: Int64, targets: Int64, num_labels: int) -> float:
    """F1, the harmonic mean of precision and recall, averaged over the classes that occur in either: [n], [n]."""
    right = np.bincount(targets[predicted == targets], minlength=num_labels)
    both = np.bincount(predicted, minlength=num_labels) + np.bincount(targets, minlength=num_labels)
    occurs = both > 0
    return float((2 * right[occurs] / both[occurs]).mean())
