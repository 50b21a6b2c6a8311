"""A number for one text or for a pair of texts, such as how alike they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, Targets
from engine.models.model import Model
from engine.objectives.base import LossTerm
from finetune.config.tasks import RegressionConfig
from finetune.metrics.correlation import correlations
from finetune.readers.columns import TEXT_B
from finetune.readers.tables import Row, Table
from finetune.tasks.base import Answer, Example, RecordFile
from finetune.tasks.sequence_task import SequenceTask
from finetune.tasks.table_task import score_of
from kernels.cross_entropy import IGNORE_INDEX

SCORE = "score"


class Regression(SequenceTask):
    """The squared difference of one number and the label, as transformers' problem_type regression."""

    kind = "regression"
    main_figure = "spearman"
    num_outputs = 1

    @classmethod
    def for_training(cls, file: RecordFile[Row], records: Sequence[Row], config: RegressionConfig) -> Self:
        """A column text_b makes it a task of pairs; ValueError where all labels are the same number."""
        assert isinstance(file, Table)
        scores = {score_of(file, row) for row in records}
        correlations(np.zeros(0), np.zeros(0))  # says now, and not after an epoch, that a package is missing
        if len(scores) < 2:
            raise ValueError(f"{file.path}: all {len(records):,} examples have the label {scores.pop():g}")
        return cls(TEXT_B in file.names, config.pooling)

    @classmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The task that a model was trained for."""
        return cls(bool(settings["pair"]), settings.get("pooling"))

    def config_keys(self, arch: ArchConfig) -> dict[str, Any]:
        """What tells transformers that it is no classifier."""
        return {"problem_type": "regression"}

    def targets(self, file: RecordFile[Row], records: Sequence[Row]) -> list[np.float64]:
        """The numbers of the rows; ValueError naming file and line where one is none."""
        assert isinstance(file, Table)
        return [np.float64(score_of(file, row)) for row in records]

    def with_targets(self, batch: PackedBatch, examples: Sequence[Example]) -> PackedBatch:
        """The batch with [S, 2] fp32: 0, which filler has IGNORE_INDEX for, and the number."""
        labels = torch.tensor([[0.0, float(example.target)] for example in examples])  # type: ignore[arg-type]
        target = Targets(torch.arange(len(labels)), labels)
        return replace(batch, targets={self.name: target}, counts={self.name: len(labels)})

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Squared differences."""
        target, count = batch.targets[self.name], batch.counts[self.name]
        predicted = self.logits(model, batch)[target.index, 0].float()  # [M]
        squares = (predicted - target.labels[:, 1]).square()
        return {self.name: LossTerm(torch.where(target.labels[:, 0] == IGNORE_INDEX, 0.0, squares).sum(), count)}

    def figures(self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Row]) -> dict[str, float]:
        """Mean squared difference, and the correlations of the numbers and of their ranks."""
        predicted = np.array(outputs)[:, 0]
        right = np.array([example.target for example in examples], np.float64)
        return {"loss": float(np.square(predicted - right).mean()), **correlations(predicted, right)}

    def answer_columns(self, probabilities: bool) -> list[str]:
        """``score``."""
        return [SCORE]

    def answers(
        self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Row], probabilities: bool
    ) -> list[Answer]:
        """The predicted number of each sequence."""
        return [{SCORE: float(output[0])} for output in outputs]
