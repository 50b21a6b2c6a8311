"""What a classifier learns: one class, a distribution over the classes, or any number of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from finetune.config.tasks import ClassificationConfig
from finetune.metrics.classes import class_figures, several_figures
from finetune.readers.columns import LABEL
from finetune.readers.tables import Row, Table, looks_like_header, other_columns
from finetune.tasks.base import Float64
from kernels.cross_entropy import IGNORE_INDEX

PROBABILITY = "probability_"
_INTEGER = re.compile(r"[+-]?[0-9]+")
_SHOWN_LABELS = 20
_DOUBTFUL_LABELS = 20  # more classes than this, and than half of the rows, and the labels are something else

# n examples, M targets of a batch, C classes


class OneLabel:
    """One class for each example. Targets are its number, int64."""

    needs_label = True

    def __init__(self, labels: Sequence[str], config: ClassificationConfig) -> None:
        self.labels, self.config = tuple(labels), config
        self.numbers = {label: number for number, label in enumerate(self.labels)}

    @classmethod
    def classes(cls, file: Table, records: Sequence[Row], config: ClassificationConfig) -> list[str]:
        """The classes of a training file.

        Raises:
            ValueError: if a label is empty, there are fewer than two classes, or the labels look like no labels.
        """
        column = file.column(LABEL)
        labels = sorted_labels(label_of(file, row, column) for row in records)
        if len(labels) < 2:
            raise ValueError(f"{file.path}: all {len(records):,} examples have the label {labels[0]!r}; two are needed")
        if len(labels) > _DOUBTFUL_LABELS and 2 * len(labels) > len(records):
            raise ValueError(
                f"{file.path}: {len(labels):,} classes for {len(records):,} examples; column {column + 1} of "
                f"{len(file.names)} was taken as the label; if that is wrong, {other_columns(file, records)}; if it is "
                "right, leave out the classes with few examples"
            )
        check_first_line(file, records, column)
        return labels

    def number(self, file: Table, row: Row, label: str) -> int:
        """The number of a class; ValueError naming file and line where the training file does not have it."""
        if label in self.numbers:
            return self.numbers[label]
        known = ", ".join(self.labels[:_SHOWN_LABELS]) + (", ..." if len(self.labels) > _SHOWN_LABELS else "")
        raise ValueError(
            f"{file.path}, line {row.line:,}: the label {label!r} is not in the training file, "
            f"which has {known}" + ("" if file.has_header or row.line > 1 else f"; {looks_like_header(file)}")
        )

    def targets(self, file: Table, records: Sequence[Row]) -> list[Any]:
        """The target of each row; ValueError naming file and line of one that is not possible."""
        column = file.column(LABEL)
        return [np.int64(self.number(file, row, label_of(file, row, column))) for row in records]

    def counts(self, targets: Sequence[Any]) -> Float64:
        """[C] examples of each class."""
        return np.bincount(np.array(targets, np.int64), minlength=len(self.labels)).astype(np.float64)

    def tensor(self, targets: Sequence[Any]) -> Tensor:
        """Targets as a batch has them: [M] int64."""
        return torch.from_numpy(np.array(targets, np.int64))

    def losses(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Loss of each target: fp32 [M, C] and what ``tensor`` gave to [M]; 0 for filler."""
        return F.cross_entropy(logits, labels, weights, reduction="none", ignore_index=IGNORE_INDEX)

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether each target is predicted: [M] bool."""
        return logits.argmax(-1) == labels

    def figures(self, logits: Float64, targets: Sequence[Any]) -> dict[str, float]:
        """Mean loss, without class weights, and metrics: [n, C]."""
        right = np.array(targets, np.int64)
        loss = float(-log_softmax(logits)[np.arange(len(right)), right].mean())
        return {"loss": loss, **class_figures(logits.argmax(-1), right, len(self.labels))}

    def probabilities(self, logits: Float64) -> Float64:
        """[n, C]."""
        return np.exp(log_softmax(logits))

    def answers(self, logits: Float64) -> list[str]:
        """The predicted label of each example."""
        return [self.labels[number] for number in logits.argmax(-1)]


class SoftLabels(OneLabel):
    """A distribution over the classes, such as a larger model's predictions (Hinton et al. 2015, arXiv:1503.02531).

    It stands in the columns probability_LABEL. Where there is a label too, the distribution learned is their mean with
    the weights soft_targets and 1 - soft_targets. Targets are [1 + C] float32: the class to measure by, and the
    distribution.
    """

    @classmethod
    def classes(cls, file: Table, records: Sequence[Row], config: ClassificationConfig) -> list[str]:
        """Those that have a column; ValueError where there are fewer than two."""
        labels = sorted_labels(name.removeprefix(PROBABILITY) for name in file.names if name.startswith(PROBABILITY))
        if len(labels) < 2:
            raise ValueError(
                f"{file.path}: classification.soft_targets is {config.soft_targets:g}, which needs a column "
                f"{PROBABILITY}LABEL for each class; found {', '.join(file.names)}. finetune.predict --probabilities "
                "writes such columns"
            )
        return labels

    def targets(self, file: Table, records: Sequence[Row]) -> list[Any]:
        """The class and the distribution of each row; a file with labels alone has them as its distributions."""
        columns = [file.names.index(PROBABILITY + label) for label in self.labels if PROBABILITY + label in file.names]
        label = file.column(LABEL) if LABEL in file.names else None
        targets = []
        for row in records:
            shares = self._shares(file, row, columns) if len(columns) == len(self.labels) else None
            if label is None:
                assert shares is not None
                targets.append(np.array([shares.argmax(), *shares], np.float32))
                continue
            number = self.number(file, row, label_of(file, row, label))
            hard = np.eye(len(self.labels))[number]
            soft = self.config.soft_targets
            targets.append(
                np.array([number, *(hard if shares is None else soft * shares + (1 - soft) * hard)], np.float32)
            )
        return targets

    def _shares(self, file: Table, row: Row, columns: Sequence[int]) -> Float64:
        cells = [row.cells[column] for column in columns]
        try:
            shares = np.array([float(cell) for cell in cells])
        except ValueError:
            shares = np.array([np.nan])
        if not (shares >= 0).all() or abs(shares.sum() - 1) > 0.01:
            raise ValueError(
                f"{file.path}, line {row.line:,}: the probabilities are {', '.join(map(repr, cells))}; they must be "
                "numbers from 0 to 1 that sum to 1"
            )
        result: Float64 = shares / shares.sum()
        return result

    def counts(self, targets: Sequence[Any]) -> Float64:
        """[C] examples of each class, in parts."""
        return np.sum([target[1:] for target in targets], axis=0).astype(np.float64)

    def tensor(self, targets: Sequence[Any]) -> Tensor:
        """Targets as a batch has them: [M, 1 + C] fp32."""
        return torch.from_numpy(np.array(targets, np.float32).reshape(len(targets), -1))

    def losses(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Cross-entropy of each distribution: [M]; 0 for filler."""
        terms = -labels[:, 1:] * logits.log_softmax(-1)  # [M, C]
        losses = (terms if weights is None else terms * weights).sum(-1)
        return torch.where(labels[:, 0] == IGNORE_INDEX, 0.0, losses)

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether each target's class is predicted: [M] bool."""
        return logits.argmax(-1) == labels[:, 0].long()

    def figures(self, logits: Float64, targets: Sequence[Any]) -> dict[str, float]:
        """Those of the classes; the loss is that of the distributions."""
        table = np.array(targets, np.float64)
        figures = super().figures(logits, table[:, 0].astype(np.int64).tolist())
        return figures | {"loss": float(-(table[:, 1:] * log_softmax(logits)).sum(-1).mean())}


class SeveralLabels(OneLabel):
    """Any number of classes for each example, none too: a yes or no for each. Targets are [C] float32 of 0 and 1.

    A cell holds labels between separators, or a JSON list of them.
    """

    @classmethod
    def classes(cls, file: Table, records: Sequence[Row], config: ClassificationConfig) -> list[str]:
        """The classes of a training file; ValueError where there is none."""
        column = file.column(LABEL)
        labels = sorted_labels(label for row in records for label in _labels_in(row.cells[column], config.separator))
        if not labels:
            raise ValueError(f"{file.path}: no example has a label")
        return labels

    def targets(self, file: Table, records: Sequence[Row]) -> list[Any]:
        """1 for each class of a row."""
        column = file.column(LABEL)
        targets = []
        for row in records:
            target = np.zeros(len(self.labels), np.float32)
            for label in _labels_in(row.cells[column], self.config.separator):
                target[self.number(file, row, label)] = 1
            targets.append(target)
        return targets

    def counts(self, targets: Sequence[Any]) -> Float64:
        """[C] examples of each class."""
        return np.sum(targets, axis=0).astype(np.float64)

    def tensor(self, targets: Sequence[Any]) -> Tensor:
        """Targets as a batch has them: [M, C] fp32."""
        return torch.from_numpy(np.array(targets, np.float32).reshape(len(targets), -1))

    def losses(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Binary cross-entropy of each target, the mean of its classes: [M]; 0 for filler."""
        terms = F.binary_cross_entropy_with_logits(logits, labels, weights, reduction="none")  # [M, C]
        return torch.where(labels[:, 0] == IGNORE_INDEX, 0.0, terms.mean(-1))

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether all classes of each target are predicted, and no other: [M] bool."""
        return (self._predicted(logits) == labels).all(-1)

    def _predicted(self, logits: Any) -> Any:
        return logits >= float(np.log(self.config.threshold / (1 - self.config.threshold)))

    def figures(self, logits: Float64, targets: Sequence[Any]) -> dict[str, float]:
        """Mean loss, without class weights, and metrics: [n, C]."""
        right = np.array(targets, np.float64)
        losses = np.logaddexp(0, logits) - right * logits
        return {"loss": float(losses.mean()), **several_figures(self._predicted(logits), right > 0)}

    def probabilities(self, logits: Float64) -> Float64:
        """[n, C], each for itself."""
        result: Float64 = np.exp(-np.logaddexp(0, -logits))
        return result

    def answers(self, logits: Float64) -> list[str]:
        """The predicted labels of each example, with separators between them."""
        chosen = self._predicted(logits)
        return [self.config.separator.join(np.array(self.labels, object)[row]) for row in chosen]


def goal_of(config: ClassificationConfig) -> type[OneLabel]:
    """What the settings ask for."""
    if config.multi_label:
        return SeveralLabels
    return SoftLabels if config.soft_targets else OneLabel


def log_softmax(logits: Float64) -> Float64:
    """Logarithms of the probabilities over the last dimension, of any shape."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: Float64 = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def label_of(table: Table, row: Row, column: int) -> str:
    """The label of a row, without spaces around it; ValueError where it is empty."""
    label = row.cells[column].strip()
    if not label:
        raise ValueError(f"{table.path}, line {row.line:,}: the label is empty")
    return label


def _labels_in(cell: str, separator: str) -> list[str]:
    """The labels of a cell, none of an empty one."""
    parts: list[Any] = cell.split(separator)
    if cell.lstrip().startswith("["):
        try:
            found = json.loads(cell)
            parts = found if isinstance(found, list) else parts
        except ValueError:
            pass  # a label that begins with a bracket
    labels = [part.strip() if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in parts]
    return [label for label in labels if label]


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
