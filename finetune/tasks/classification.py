"""Classification of one text or of a pair of texts into any number of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, Targets
from engine.models.model import Model
from engine.objectives.base import LossTerm
from finetune.config.tasks import ClassificationConfig, FileConfig
from finetune.readers.columns import LABEL, TEXT_A, TEXT_B, parse_columns
from finetune.readers.tables import Row, Table, open_table
from finetune.tasks.base import Answer, Example, RecordFile
from finetune.tasks.goals import PROBABILITY, goal_of, label_of, log_softmax, sorted_labels
from finetune.tasks.sequence_task import SequenceTask
from finetune.training.class_weights import class_weights

__all__ = ["Classification", "label_of", "log_softmax", "sorted_labels"]


class Classification(SequenceTask):
    """A class for each sequence, a distribution over the classes to learn from, or any number of classes."""

    kind = "classification"

    def __init__(self, labels: Sequence[str], pair: bool, config: ClassificationConfig | None = None) -> None:
        """Name the classes in the order of the logits, and say whether two texts make an example."""
        self.config = config or ClassificationConfig()
        super().__init__(pair, self.config.pooling)
        self.labels, self.num_outputs = tuple(labels), len(labels)
        self.main_figure = self.config.main_figure
        self.goal = goal_of(self.config)(labels, self.config)
        self._weights: Tensor | None = None

    @classmethod
    def open_training(cls, path: str, files: FileConfig, config: Any) -> Table:
        """Open a table with texts and labels; soft targets alone need no labels."""
        needed = (TEXT_A,) if config.soft_targets == 1 else (LABEL, TEXT_A)
        return open_table(path, parse_columns(files.columns, cls.known_columns), needed, files)

    @classmethod
    def for_training(cls, file: RecordFile[Row], records: Sequence[Row], config: Any) -> Self:
        """Take the classes from a training file; a column text_b makes it a task of pairs.

        Raises:
            ValueError: if there are no classes to learn, or no two for the figure F1.
        """
        assert isinstance(file, Table)
        labels = goal_of(config).classes(file, records, config)
        if config.main_figure == "f1" and len(labels) != 2:
            raise ValueError(
                f"classification.main_figure is f1, of the second of two classes, but {file.path} has {len(labels):,}; "
                "take macro_f1 or micro_f1"
            )
        return cls(labels, TEXT_B in file.names, config)

    @classmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The task that a model was trained for."""
        names = ("pooling", "multi_label", "separator", "threshold")
        config = ClassificationConfig(**{name: settings[name] for name in names if name in settings})
        return cls(labels, bool(settings["pair"]), config)

    def settings(self) -> dict[str, Any]:
        """Whether two texts make an example, the pooling, and how several labels are told."""
        names = ("multi_label", "separator", "threshold") if self.config.multi_label else ()
        return {**super().settings(), **{name: getattr(self.config, name) for name in names}}

    def config_keys(self, arch: ArchConfig) -> dict[str, Any]:
        """The problem_type where it is not the usual one."""
        return {"problem_type": "multi_label_classification"} if self.config.multi_label else {}

    def unused_columns(self, file: Table) -> list[str]:
        """Those that are neither texts nor labels nor their probabilities."""
        unused = super().unused_columns(file)
        return [name for name in unused if not (self.config.soft_targets and name.startswith(PROBABILITY))]

    def weigh_classes(self, given: Mapping[str, float] | str, targets: Sequence[Any]) -> None:
        """Let the examples of some classes count more in training."""
        weights = class_weights(given, self.labels, self.goal.counts(targets))
        self._weights = None if weights is None else torch.from_numpy(weights.astype(np.float32))

    def targets(self, file: RecordFile[Row], records: Sequence[Row]) -> list[Any]:
        """What the model should answer for each row, as ``goal`` has it."""
        assert isinstance(file, Table)
        return self.goal.targets(file, records)

    def with_targets(self, batch: PackedBatch, examples: Sequence[Example]) -> PackedBatch:
        """The batch with what the model should answer for its sequences: [S] or [S, ...]."""
        labels = self.goal.tensor([example.target for example in examples])
        target = Targets(torch.arange(len(labels)), labels)
        return replace(batch, targets={self.name: target}, counts={self.name: len(labels)})

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Cross-entropy of the classes, weighed."""
        target, count = batch.targets[self.name], batch.counts[self.name]
        logits = self.logits(model, batch)[target.index].float()  # [M, number of classes]
        if self._weights is not None:
            self._weights = self._weights.to(logits.device)  # copied once
        losses = self.goal.losses(logits, target.labels, self._weights if model.training else None)
        correct = self.goal.right(logits, target.labels).sum() if with_accuracy else None
        return {self.name: LossTerm(losses.sum(), count, correct=correct)}

    def figures(self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Row]) -> dict[str, float]:
        """Mean loss without class weights, accuracy, F1 and Matthews' coefficient."""
        return self.goal.figures(np.array(outputs), [example.target for example in examples])

    def answer_columns(self, probabilities: bool) -> list[str]:
        """``label``, and a column for each class."""
        return [LABEL, *(f"{PROBABILITY}{label}" for label in self.labels if probabilities)]

    def answers(
        self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Row], probabilities: bool
    ) -> list[Answer]:
        """The predicted class or classes of each sequence, and the probabilities of all."""
        logits = np.array(outputs)
        answers: list[Answer] = [{LABEL: label} for label in self.goal.answers(logits)]
        if probabilities:
            columns = self.answer_columns(True)[1:]
            for answer, shares in zip(answers, self.goal.probabilities(logits), strict=True):
                answer.update(zip(columns, shares.tolist(), strict=True))
        return answers
