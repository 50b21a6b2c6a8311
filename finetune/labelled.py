"""The labelled files of a run, read and checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engine.config.cli import collect
from finetune.columns import LABEL, TEXT_A, parse_columns
from finetune.config import FinetuneConfig
from finetune.sequences import SequenceBuilder
from finetune.source import Examples, build_sequences
from finetune.tables import Row, Table, open_table
from finetune.tasks.base import Task
from finetune.tasks.registry import TASKS


@dataclass(frozen=True, eq=False)
class LabelledFile:
    """A file of which each row has a target [n]."""

    table: Table
    rows: list[Row]
    targets: NDArray[np.int64]

    def examples(self, task: Task, builder: SequenceBuilder) -> Examples:
        """Tokenize the texts."""
        sequences, num_truncated = build_sequences(builder, task, self.table, self.rows)
        return Examples(sequences, self.targets, num_truncated)

    def notes(self, task: Task) -> list[str]:
        """What a user should know of the file, in sentences for the log."""
        unused = [name for name in self.table.names if name not in (LABEL, *task.columns)]
        return [f"{self.table.path}: column(s) not used: {', '.join(unused)}"] if unused else []


def read_labelled_files(config: FinetuneConfig, problems: list[str]) -> tuple[Task | None, dict[str, LabelledFile]]:
    """Read the training file, which sets the task, and the files to evaluate on.

    Args:
        config: names the files.
        problems: what is wrong is added here.

    Returns:
        The task, or None where the training file does not set one, and the files in order that are right.
    """
    paths = {"train": config.train_file, "dev": config.dev_file, "test": config.test_file}
    if config.task not in TASKS:
        return None, {}
    task: Task | None = None
    files = {}
    for name, path in paths.items():
        if path is None:
            continue
        needed = (LABEL, *(task.columns if task else (TEXT_A,)))
        read = collect(problems, partial(_read, path, config.columns, needed))
        if read and name == "train":
            task = collect(problems, partial(TASKS[config.task].for_training, *read))
        targets = collect(problems, partial(task.targets, *read)) if read and task else None
        if read and targets is not None:
            files[name] = LabelledFile(*read, targets)
    return task, files


def _read(path: str, columns: str | None, needed: tuple[str, ...]) -> tuple[Table, list[Row]]:
    table = open_table(path, parse_columns(columns), needed)
    return table, list(table.rows())
