"""Sentence vectors by two towers of one encoder: texts that mean the same get near vectors.

The folder that is written loads in sentence-transformers. Each text is a sequence of its own; of a pair, they stand one
behind the other in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, Targets
from engine.models.model import Model
from engine.objectives.base import LossTerm, encode
from finetune.config.tasks import FileConfig, SimilarityConfig
from finetune.features.sequences import SequenceBuilder
from finetune.metrics.correlation import correlations
from finetune.readers.columns import LABEL, NAMES, TEXT_A, TEXT_B, parse_columns
from finetune.readers.tables import Row, Table, open_table
from finetune.sentence_folder import SentenceSettings, read_sentence_settings, write_sentence_settings
from finetune.tasks.base import Answer, Example, Float64, RecordFile
from finetune.tasks.goals import label_of, log_softmax, sorted_labels
from finetune.tasks.similarity_loss import SentenceHead, contrastive_losses, cosine_losses
from finetune.tasks.table_task import TableTask, score_of
from kernels.cross_entropy import IGNORE_INDEX

SIMILARITY = "similarity"
IN_BATCH = ("contrastive", "unsupervised")  # losses that need no labels


@dataclass(frozen=True)
class Output:
    """What is kept of a pair: the cosine, and by the loss the logits [C], or its loss among those of its batch."""

    cosine: float
    logits: Float64 | None = None
    loss: float = 0.0
    right: bool = False


class Similarity(TableTask):
    """The cosine of two texts' vectors, by one of four losses; predictions are cosines."""

    kind = "similarity"
    columns = (TEXT_A, TEXT_B)

    def __init__(self, config: SimilarityConfig, labels: Sequence[str] = ()) -> None:
        """Take the settings, ``best_score`` among them, and for softmax the classes."""
        self.name = self.kind
        self.config, self.labels = filled_in(config, SentenceSettings()), tuple(labels)
        self.sentence = SentenceSettings(str(self.config.pooling), bool(self.config.normalize))
        self.main_figure = "spearman" if config.loss == "cosine" else "accuracy"
        self._numbers = {label: number for number, label in enumerate(self.labels)}
        self._training_file: RecordFile[Row] | None = None

    # -- files

    @classmethod
    def open_training(cls, path: str, files: FileConfig, config: SimilarityConfig) -> Table:
        """Open a table with text_a, for three of the losses text_b, and for two of them the label."""
        needed = [LABEL] * (config.loss not in IN_BATCH) + [TEXT_A] + [TEXT_B] * (config.loss != "unsupervised")
        optional = [name for name in NAMES if name not in needed]  # that --columns names for the other files
        return open_table(path, parse_columns(files.columns), needed, files, optional)

    def open(self, path: str, files: FileConfig, labelled: bool) -> Table:
        """Open a table of pairs, with labels but for the loss contrastive, which can do without."""
        needed = [LABEL] * (labelled and self.config.loss != "contrastive") + [TEXT_A, TEXT_B]
        return open_table(path, parse_columns(files.columns), needed, files, optional=(LABEL,))

    def has_answers(self, file: RecordFile[Row], records: Sequence[Row]) -> bool:
        """Whether there are labels; for the loss contrastive a pair is its own answer."""
        return self.config.loss == "contrastive" or super().has_answers(file, records)

    @classmethod
    def settings_for(cls, config: SimilarityConfig, folder: Path) -> SimilarityConfig:
        """Pooling and normalisation as a folder of sentence-transformers has them; ValueError for one not supported."""
        return filled_in(config, read_sentence_settings(folder) or SentenceSettings())

    @classmethod
    def for_training(cls, file: RecordFile[Row], records: Sequence[Row], config: SimilarityConfig) -> Self:
        """Take the classes or the best score from a training file.

        Raises:
            ValueError: if a label is no number, none is above 0, or pairs of different labels are to be contrasted.
        """
        assert isinstance(file, Table)
        if config.loss == "softmax":
            task = cls(config, classes_of(file, records))
        elif config.loss == "cosine" and config.best_score is None:
            task = cls(replace(config, best_score=best_score(file, records)))
        else:
            task = cls(config)
        if config.loss == "contrastive" and LABEL in file.names:
            check_one_label(file, records)
        task._training_file = file
        return task

    @classmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The task that a model was trained for; of a model of sentence-transformers only the pooling is known."""
        known = asdict(SimilarityConfig())
        return cls(SimilarityConfig(**{name: settings.get(name, known[name]) for name in known}), labels)

    def settings(self) -> dict[str, Any]:
        """Those of the command line, with the best score."""
        return asdict(self.config)

    def targets(self, file: RecordFile[Row], records: Sequence[Row]) -> list[Any]:
        """Classes (int64) for softmax, else scores (float64), NaN where the file has none."""
        assert isinstance(file, Table)
        if self.config.loss == "softmax":
            return [self._number(file, row) for row in records]
        unlabelled = self.config.loss == "contrastive" and not super().has_answers(
            file, records
        )  # no label in any line
        if unlabelled or LABEL not in file.names or (file is self._training_file and self.config.loss in IN_BATCH):
            return [np.float64(np.nan)] * len(records)
        self.main_figure = "spearman"  # as for all files with scores
        scores = np.array([score_of(file, row) for row in records])
        scores /= self.config.best_score or max(1.0, scores.max())
        if self.config.loss == "cosine" and len(outside := np.flatnonzero(np.abs(scores) > 1)):
            row = records[int(outside[0])]
            raise ValueError(
                f"{file.path}, line {row.line:,}: the score is {row.cells[file.column(LABEL)]}; it must lie within "
                f"+-{self.config.best_score:g}, the best score: give --similarity.best_score"
            )
        return list(scores)

    def _number(self, file: Table, row: Row) -> np.int64:
        label = label_of(file, row, file.column(LABEL))
        if label not in self._numbers:
            raise ValueError(
                f"{file.path}, line {row.line:,}: the label {label!r} is not in the training file, which has "
                f"{', '.join(self.labels[:20])}{', ...' if len(self.labels) > 20 else ''}"
            )
        return np.int64(self._numbers[label])

    def notes(self, file: RecordFile[Row]) -> list[str]:
        """Which columns are not used."""
        assert isinstance(file, Table)
        used = {LABEL, TEXT_A, TEXT_B}
        if file is self._training_file:
            used -= {"contrastive": {LABEL}, "unsupervised": {LABEL, TEXT_B}}.get(self.config.loss, set())
        unused = [name for name in file.names if name not in used]
        return [*file.notes(), *([f"{file.path}: column(s) not used: {', '.join(unused)}"] if unused else [])]

    # -- features

    def examples(
        self, builder: SequenceBuilder, file: RecordFile[Row], records: Sequence[Row], targets: Sequence[Any] | None
    ) -> list[Example]:
        """Two sequences for each line; the same one twice in the training file of the loss unsupervised."""
        assert isinstance(file, Table)
        towers = [builder.build([row.cells[file.column(TEXT_A)] for row in records])]
        if file is self._training_file and self.config.loss == "unsupervised":
            towers *= 2
        else:
            towers.append(builder.build([row.cells[file.column(TEXT_B)] for row in records]))
        (first, cut_first), (second, cut_second) = towers
        return [
            Example(pair, None if targets is None else targets[number], number, cuts[0] or cuts[1])
            for number, (pair, cuts) in enumerate(
                zip(zip(first, second, strict=True), zip(cut_first, cut_second, strict=True), strict=True)
            )
        ]

    def with_targets(self, batch: PackedBatch, examples: Sequence[Example]) -> PackedBatch:
        """The batch with the pairs' numbers and their classes or scores: [P], int64 or fp32."""
        labels = np.array([example.target for example in examples])
        labels = labels if labels.dtype == np.int64 else np.nan_to_num(labels).astype(np.float32)
        target = Targets(torch.arange(len(labels)), torch.from_numpy(labels))
        return replace(batch, targets={self.name: target}, counts={self.name: len(labels)})

    # -- model

    def make_head(self, arch: ArchConfig) -> nn.Module:
        """The pooling, and for softmax the classes of (u, v, |u - v|)."""
        return SentenceHead(arch, self.sentence.pooling, self.sentence.normalize, len(self.labels))

    def finish_folder(self, folder: Any, arch: ArchConfig, builder: SequenceBuilder) -> None:
        """Write what sentence-transformers reads."""
        write_sentence_settings(folder, replace(self.sentence, max_length=builder.max_length), arch.hidden_size)

    def head(self, model: Model) -> SentenceHead:
        """The model's head of this task."""
        head = model.heads[self.name]
        assert isinstance(head, SentenceHead)
        return head

    def pair_vectors(self, model: Model, batch: PackedBatch, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the first and of the second texts of pairs: [P] int64 to [P, D], [P, D]."""
        vectors: Tensor = model.heads[self.name](encode(model, batch), batch.layout)  # [S, D]
        return vectors[2 * pairs], vectors[2 * pairs + 1]

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """The loss of the pairs; those in a batch are the choices of the contrastive ones."""
        target, count = batch.targets[self.name], batch.counts[self.name]
        first, second = self.pair_vectors(model, batch, target.index)
        correct = None
        if self.config.loss == "softmax":
            logits = self.head(model).classify(first, second).float()
            losses = F.cross_entropy(logits, target.labels, reduction="none", ignore_index=IGNORE_INDEX)
            right = logits.argmax(-1) == target.labels
        elif self.config.loss == "cosine":
            cosines = F.cosine_similarity(first.float(), second.float())
            losses = cosine_losses(cosines, target.labels)
            right = None
        else:
            ignored = target.labels == IGNORE_INDEX
            losses, right = contrastive_losses(first, second, ignored, self.config.temperature)
        if with_accuracy and right is not None:
            correct = right.sum()
        return {self.name: LossTerm(losses.sum(), count, correct=correct)}

    def outputs(self, model: Model, batch: PackedBatch, examples: Sequence[Example]) -> list[Any]:
        """Cosine of each pair, and what the loss needs beside."""
        pairs = torch.arange(len(examples), device=batch.tokens.device)
        first, second = self.pair_vectors(model, batch, pairs)
        cosines = F.cosine_similarity(first.float(), second.float()).double().tolist()
        if self.config.loss == "softmax":
            logits = self.head(model).classify(first, second).double().cpu().numpy()
            return [Output(cosine, row) for cosine, row in zip(cosines, logits, strict=True)]
        if self.config.loss == "cosine" or not len(examples):
            return [Output(cosine) for cosine in cosines]
        losses, right = contrastive_losses(first, second, pairs < 0, self.config.temperature)
        return [
            Output(*row) for row in zip(cosines, [None] * len(cosines), losses.tolist(), right.tolist(), strict=True)
        ]

    # -- results

    def figures(self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Row]) -> dict[str, float]:
        """Loss; correlations of cosines and scores where there are scores, accuracy for classes and unscored pairs.

        The loss of pairs with scores is the squared difference of cosine and score, whatever was trained. The accuracy
        of unscored pairs is the share whose second text is nearest to the first among those of the batch.
        """
        targets = np.array([example.target for example in examples])
        if self.config.loss == "softmax":
            logits = np.array([output.logits for output in outputs])
            losses = -log_softmax(logits)[np.arange(len(targets)), targets]
            return {"loss": float(losses.mean()), "accuracy": float((logits.argmax(-1) == targets).mean())}
        if not np.isnan(targets).any():
            cosines = np.array([output.cosine for output in outputs])
            return {"loss": float(np.square(cosines - targets).mean()), **correlations(cosines, targets)}
        losses, right = (np.array([getattr(output, name) for output in outputs]) for name in ("loss", "right"))
        return {"loss": float(losses.mean()), "accuracy": float(right.mean())}

    def answer_columns(self, probabilities: bool) -> list[str]:
        """``similarity``; for softmax ``label`` and its probabilities too."""
        return [SIMILARITY, *([LABEL] if self.labels else []), *self._probabilities(probabilities)]

    def _probabilities(self, probabilities: bool) -> list[str]:
        return [f"probability_{label}" for label in self.labels if probabilities]

    def answers(
        self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Row], probabilities: bool
    ) -> list[Answer]:
        """The cosine of each pair, and its class where the model has classes."""
        answers: list[Answer] = [{SIMILARITY: output.cosine} for output in outputs]
        for answer, output in zip(answers, outputs, strict=True):
            if self.labels:
                answer[LABEL] = self.labels[int(output.logits.argmax())]
                answer.update(
                    zip(self._probabilities(probabilities), np.exp(log_softmax(output.logits)).tolist(), strict=False)
                )
        return answers


def filled_in(config: SimilarityConfig, found: SentenceSettings) -> SimilarityConfig:
    """The settings with a folder's pooling and normalisation where they are left open."""
    normalize = found.normalize if config.normalize is None else config.normalize
    return replace(config, pooling=config.pooling or found.pooling, normalize=normalize)


def classes_of(file: Table, records: Sequence[Row]) -> list[str]:
    """The distinct labels of a training file; ValueError where there are fewer than two."""
    labels = sorted_labels(label_of(file, row, file.column(LABEL)) for row in records)
    if len(labels) < 2:
        raise ValueError(f"{file.path}: all {len(records):,} pairs have the label {labels[0]!r}; two are needed")
    return labels


def best_score(file: Table, records: Sequence[Row]) -> float:
    """The largest score of a file; ValueError where it is not above 0."""
    best = max(score_of(file, row) for row in records)
    if best <= 0:
        raise ValueError(f"{file.path}: the largest score is {best:g}; give --similarity.best_score, above 0")
    return best


def check_one_label(file: Table, records: Sequence[Row]) -> None:
    """Refuse pairs of different labels: contrastive learns from each pair that its texts mean the same."""
    labels = sorted({row.cells[file.column(LABEL)] for row in records})
    if len(labels) > 1:
        raise ValueError(
            f"{file.path}: with --similarity.loss contrastive all pairs mean the same, but there are the labels "
            f"{', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}; keep only the lines of texts that mean the "
            "same, or take the loss cosine or softmax"
        )
