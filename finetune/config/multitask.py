"""Settings of several tasks that are learned at once. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.config.cli import nearest
from finetune.config.tasks import TASK_NAMES, FileConfig, TasksConfig
from finetune.training.class_weights import class_weight_problems

MULTITASK = "multitask"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")  # of a head: no dots


@dataclass(frozen=True, kw_only=True)
class TaskEntry(TasksConfig):
    """One of several tasks that are learned at once.

    Args:
        name: of its head and of its figures, such as cola.
        task: its kind.
        train_file: labelled examples.
        dev_file: file to evaluate on; where not given, a part of the training file.
        test_file: file to evaluate on at the end; one without answers is predicted into the run folder.
        columns: names of the columns, as --columns.
        format: of tables, as --format.
        bad_lines: what happens to malformed lines, as --bad_lines.
        class_weights: as --class_weights.
    """

    name: str
    train_file: str
    task: str = TASK_NAMES[0]
    dev_file: str | None = None
    test_file: str | None = None
    columns: str | None = None
    format: str | None = None
    bad_lines: str = "error"
    class_weights: dict[str, float] | str = "none"

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        kinds = [kind for kind in TASK_NAMES if kind != MULTITASK]
        found = []
        if not NAME.fullmatch(self.name):
            found.append(f"its name must be a letter and then letters, digits, _ and -, but is {self.name!r}")
        if self.task not in kinds:
            return [*found, f"unknown task {self.task!r}; there are {', '.join(kinds)}{nearest(self.task, kinds)}"]
        found += FileConfig(self.columns, self.format, self.bad_lines).problems()
        return found + self.of_task().problems() + class_weight_problems(self.class_weights)


@dataclass(frozen=True, kw_only=True)
class MultitaskConfig:
    """Several tasks over one encoder; a step learns one of them.

    Args:
        tasks: each with its name, kind and files.
        size_power: a task is chosen in proportion to this power of the number of its examples: 1 by size, 0 all alike.
    """

    tasks: list[TaskEntry] = field(default_factory=list)
    size_power: float = 1.0

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        if not self.tasks:
            return [
                "multitask.tasks is empty; list the tasks in a YAML file for --config, each with name, task, "
                "train_file and dev_file (docs/multitask.md)"
            ]
        found = [f"multitask.tasks: {entry.name}: {text}" for entry in self.tasks for text in entry.problems()]
        names = [entry.name for entry in self.tasks]
        found += [f"multitask.tasks: the name {name} is there twice" for name in _repeated(names)]
        if not 0 <= self.size_power <= 1:
            found.append(f"multitask.size_power is {self.size_power}; it must be between 0 and 1")
        return found


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
