"""Ranking the answers to a query, such as the sentences of a document: ``qid label text_a text_b``.

A line is a query and one of its answers; the label is 1 where the answer is right and 0 where it is not. Each pair is
learned by itself, as a classification; answers of a query are ranked by the probability of 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np

from finetune.config.tasks import ClassificationConfig, FileConfig, RankingConfig
from finetune.features.sequences import SequenceBuilder
from finetune.readers.columns import LABEL, NAMES, TEXT_A, TEXT_B, parse_columns
from finetune.readers.tables import Row, Table, open_table
from finetune.tasks.base import Answer, Example, Float64, Int64, RecordFile
from finetune.tasks.classification import Classification
from finetune.tasks.goals import label_of

QUERY, SCORE = "qid", "score"
WRONG_RIGHT = ("0", "1")


class Ranking(Classification):
    """Pairs of a query and an answer, right or wrong, measured query by query."""

    kind = "ranking"
    training_columns: ClassVar[tuple[str, ...]] = (QUERY, LABEL, TEXT_A, TEXT_B)
    known_columns: ClassVar[tuple[str, ...]] = (*NAMES, QUERY)

    def __init__(self, config: RankingConfig) -> None:
        super().__init__(WRONG_RIGHT, True, ClassificationConfig(pooling=config.pooling))
        self.main_figure = config.main_figure

    @classmethod
    def open_training(cls, path: str, files: FileConfig, config: Any) -> Table:
        """Open a table with queries, labels and texts."""
        return open_table(path, parse_columns(files.columns, cls.known_columns), cls.training_columns, files)

    def open(self, path: str, files: FileConfig, labelled: bool) -> Table:
        """Open a table; to be predicted, pairs need no query."""
        columns = parse_columns(files.columns, self.known_columns)
        needed = self.training_columns if labelled else self.columns
        return open_table(path, columns, needed, files, optional=() if labelled else (LABEL,))

    @classmethod
    def for_training(cls, file: RecordFile[Row], records: Sequence[Row], config: Any) -> Self:
        """Check the labels.

        Raises:
            ValueError: if one is neither 0 nor 1, or all are the same.
        """
        assert isinstance(file, Table)
        task = cls(config)
        found = {int(target) for target in task.targets(file, records)}
        if len(found) < 2:
            raise ValueError(
                f"{file.path}: all {len(records):,} answers have the label {found.pop()}; 0 and 1 are needed"
            )
        return task

    @classmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The task that a model was trained for."""
        return cls(RankingConfig(pooling=settings.get("pooling")))

    def unused_columns(self, file: Table) -> list[str]:
        """Those beside queries, labels and texts."""
        return [name for name in super().unused_columns(file) if name != QUERY]

    def has_answers(self, file: RecordFile[Row], records: Sequence[Row]) -> bool:
        """Whether there are queries and labels."""
        assert isinstance(file, Table)
        return QUERY in file.names and super().has_answers(file, records)

    def groups(self, file: RecordFile[Row], records: Sequence[Row]) -> Sequence[Hashable]:
        """The query of each row."""
        assert isinstance(file, Table)
        return [row.cells[file.column(QUERY)] for row in records]

    def targets(self, file: RecordFile[Row], records: Sequence[Row]) -> list[Any]:
        """0 or 1 for each row; ValueError naming file and line of another label."""
        assert isinstance(file, Table)
        column = file.column(LABEL)
        for row in records:
            if (label := label_of(file, row, column)) not in WRONG_RIGHT:
                raise ValueError(
                    f"{file.path}, line {row.line:,}: the label is {label!r}; it must be 1 for a right answer and 0 "
                    "for a wrong one"
                )
        return super().targets(file, records)

    def examples(
        self, builder: SequenceBuilder, file: RecordFile[Row], records: Sequence[Row], targets: Sequence[Any] | None
    ) -> list[Example]:
        """One sequence for each line, with its query in ``details``."""
        assert isinstance(file, Table)
        made = super().examples(builder, file, records, targets)
        if QUERY not in file.names:
            return made
        return [
            replace(example, details=query) for example, query in zip(made, self.groups(file, records), strict=True)
        ]

    def figures(self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Row]) -> dict[str, float]:
        """Loss and accuracy of the pairs, MRR and MAP of the queries, and how many of these have a right answer."""
        figures = super().figures(outputs, examples, records)
        scores = self.goal.probabilities(np.array(outputs))[:, 1]
        right = np.array([example.target for example in examples], np.int64)
        ranked = ranking_figures([example.details for example in examples], scores, right)
        return {"loss": figures["loss"], **ranked, "accuracy": figures["accuracy"]}

    def answer_columns(self, probabilities: bool) -> list[str]:
        """``qid``, empty where the file has none, and ``score``."""
        return [QUERY, SCORE]

    def answers(
        self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Row], probabilities: bool
    ) -> list[Answer]:
        """The probability that each pair's answer is right, and its query."""
        scores = self.goal.probabilities(np.array(outputs))[:, 1]
        return [{QUERY: example.details, SCORE: float(score)} for example, score in zip(examples, scores, strict=True)]


def ranking_figures(queries: Sequence[Hashable], scores: Float64, right: Int64) -> dict[str, float]:
    """Mean reciprocal rank and mean average precision over the queries that have a right answer.

    Of equal scores wrong answers rank first, so that a model that tells nothing apart gains nothing by it.

    Args:
        queries: [n] the query of each answer.
        scores: [n] the larger, the better.
        right: [n] 1 for right answers.

    Returns:
        ``mrr``, ``map``, and ``queries``, their number.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for number, query in enumerate(queries):
        members[query].append(number)
    reciprocal, precision = [], []
    for numbers in members.values():
        hits = right[numbers][np.lexsort((right[numbers], -scores[numbers]))]
        ranks = np.flatnonzero(hits) + 1
        if len(ranks):
            reciprocal.append(1 / ranks[0])
            precision.append((np.arange(1, len(ranks) + 1) / ranks).mean())
    count = max(1, len(reciprocal))
    return {"mrr": float(sum(reciprocal)) / count, "map": float(sum(precision)) / count, "queries": len(reciprocal)}
