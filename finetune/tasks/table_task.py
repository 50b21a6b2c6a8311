"""What tasks on tables share: a record is a line, one or two of its columns are the texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from finetune.config.tasks import FileConfig
from finetune.features.sequences import SequenceBuilder
from finetune.readers.columns import LABEL, NAMES, TEXT_A, parse_columns
from finetune.readers.tables import Row, Table, open_table
from finetune.tasks.base import Example, RecordFile, Task


class TableTask(Task[Row]):
    """A task whose records are lines of a table.

    Attributes:
        columns: those that hold the texts, one or two.
        target_column: the one with the right answer.
        training_columns: those that a training file must have.
        known_columns: those that ``--columns`` may name.
    """

    columns: tuple[str, ...]
    target_column: ClassVar[str] = LABEL
    training_columns: ClassVar[tuple[str, ...]] = (LABEL, TEXT_A)
    known_columns: ClassVar[tuple[str, ...]] = NAMES

    @classmethod
    def open_training(cls, path: str, files: FileConfig, config: Any) -> Table:
        """Open a table with the columns that training needs."""
        return open_table(path, parse_columns(files.columns, cls.known_columns), cls.training_columns, files)

    def open(self, path: str, files: FileConfig, labelled: bool) -> Table:
        """Open a table with the columns of the texts and, where they must be there, of the answers."""
        needed = (self.target_column, *self.columns) if labelled else self.columns
        columns = parse_columns(files.columns, self.known_columns)
        return open_table(path, columns, needed, files, optional=() if labelled else (self.target_column,))

    def has_answers(self, file: RecordFile[Row], records: Sequence[Row]) -> bool:
        """Whether there is a column of answers that is not empty as a whole."""
        assert isinstance(file, Table)
        if self.target_column not in file.names:
            return False
        column = file.column(self.target_column)
        return any(row.cells[column].strip() for row in records)

    def unused_columns(self, file: Table) -> list[str]:
        """Names of the columns that the task does not read."""
        return [name for name in file.names if name not in (self.target_column, *self.columns)]

    def notes(self, file: RecordFile[Row]) -> list[str]:
        """What the file says, and which columns are not used."""
        assert isinstance(file, Table)
        unused = self.unused_columns(file)
        return [*file.notes(), *([f"{file.path}: column(s) not used: {', '.join(unused)}"] if unused else [])]

    def examples(
        self, builder: SequenceBuilder, file: RecordFile[Row], records: Sequence[Row], targets: Sequence[Any] | None
    ) -> list[Example]:
        """One sequence for each line, of its text or of its pair of texts."""
        assert isinstance(file, Table)
        built = builder.build(*([row.cells[file.column(name)] for row in records] for name in self.columns))
        return [
            Example((sequence,), None if targets is None else targets[number], number, truncated)
            for number, (sequence, truncated) in enumerate(zip(*built, strict=True))
        ]


def score_of(file: Table, row: Row) -> float:
    """The label of a row as a number; ValueError where it is no finite number."""
    text = row.cells[file.column(LABEL)].strip()
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not math.isfinite(score):
        raise ValueError(f"{file.path}, line {row.line:,}: the label is {text!r}; it must be a number, the score")
    return score
