"""The labelled files of a run, read and checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from engine.config.cli import collect
from engine.data.draws import Draw
from engine.data.order import permutation, philox
from finetune.config.multitask import MULTITASK
from finetune.config.run import FinetuneConfig
from finetune.features.sequences import SequenceBuilder
from finetune.model_folder import find_model_folder
from finetune.tasks.base import Example, RecordFile, Task
from finetune.tasks.multitask import Multitask, TaskFiles, TaskRecord
from finetune.tasks.registry import TASKS

UNTOLD = "untold"  # test files without answers, where there are several tasks
KINDS = ("train", "dev", "test", UNTOLD)


@dataclass(frozen=True, eq=False)
class LabelledFile:
    """A file, or a part of one.

    Attributes:
        file: of the records.
        records: in the file's order.
        targets: the right answer of each record; None of a file without answers, which is predicted.
        numbers: of the records in the file, from 0, where this is a part of it.
    """

    file: RecordFile[Any]
    records: Sequence[Any]
    targets: Sequence[Any] | None
    numbers: Sequence[int] | None = None

    def examples(self, task: Task[Any], builder: SequenceBuilder) -> list[Example]:
        """Tokenize the records."""
        return task.examples(builder, self.file, self.records, self.targets)

    def part(self, numbers: Sequence[int]) -> LabelledFile:
        """The records with these numbers, from 0, in this order."""
        targets = None if self.targets is None else [self.targets[number] for number in numbers]
        return LabelledFile(self.file, [self.records[number] for number in numbers], targets, numbers)


def read_labelled_files(
    config: FinetuneConfig, problems: list[str]
) -> tuple[Task[Any] | None, dict[str, LabelledFile]]:
    """Read the training file, which sets the task, and the files to evaluate on.

    Args:
        config: names the files.
        problems: what is wrong is added here.

    Returns:
        The task, or None where the training file does not set one, and the files in order that are right.
    """
    if config.task == MULTITASK:
        return read_files_of_tasks(config, problems)
    if config.task not in TASKS:
        return None, {}
    kind = TASKS[config.task]
    folder = collect([], lambda: find_model_folder(config.model))  # a wrong one is told of elsewhere
    settings = config.of_task()
    if folder is not None:
        settings = collect(problems, partial(kind.settings_for, settings, folder)) or settings
    files: dict[str, LabelledFile] = {}
    read = _read(partial(kind.open_training, config.train_file, config.files, settings), problems)
    task = collect(problems, partial(kind.for_training, *read, settings)) if read else None
    if read and task:
        _add(files, "train", read, task, problems)
        if config.fold is not None and "train" in files:
            parts = collect(problems, partial(divide, task, files["train"], config.folds, config.fold))
            files.update(zip(("train", "dev"), parts or (), strict=False))
        elif config.dev_file is None and "train" in files:
            parts = collect(problems, partial(split_off, task, files["train"], config.dev_share))
            files.update(zip(("train", "dev"), parts or (), strict=False))
        if "train" in files:
            collect(problems, partial(task.weigh_classes, config.class_weights, files["train"].targets or ()))
    for name, path in (("dev", config.dev_file), ("test", config.test_file)):
        if path is None:
            continue
        if task is None:
            _read(partial(kind.open_training, path, config.files, settings), problems)
        elif read := _read(partial(task.open, path, config.files, labelled=name == "dev"), problems):
            _add(files, name, read, task, problems)
    return task, files


def read_files_of_tasks(
    config: FinetuneConfig, problems: list[str]
) -> tuple[Multitask | None, dict[str, LabelledFile]]:
    """Read the files of several tasks.

    Args:
        config: names the tasks and their files.
        problems: what is wrong is added here.

    Returns:
        The tasks as one, and their files as one of each kind: train, dev, test, and untold of test files without
        answers.
    """
    tasks: dict[str, Task[Any]] = {}
    read: dict[str, dict[str, LabelledFile]] = {}
    for entry in config.multitask.tasks:
        if entry.problems():  # told with the settings
            continue
        found: list[str] = []
        task, files = read_labelled_files(config.of_entry(entry), found)
        problems += [f"multitask.tasks: {entry.name}: {text}" for text in found]
        if task is not None:
            tasks[entry.name] = task
        for name, file in files.items():
            kind = UNTOLD if file.targets is None else name
            read.setdefault(kind, {})[entry.name] = file
    if problems or not tasks:
        return None, {}
    split = [entry.name for entry in config.multitask.tasks if entry.dev_file is None]
    return Multitask(tasks), {kind: _together(kind, read[kind], split) for kind in KINDS if kind in read}


def _together(kind: str, files: dict[str, LabelledFile], split: Sequence[str]) -> LabelledFile:
    """The files of several tasks as one."""
    counts = {name: len(file.records) for name, file in files.items()}
    said = [
        f"{name}: {counts[name]:,} records of its training file are split off to evaluate on, and not learned"
        for name in split
        if kind == "dev"
    ]
    records = [TaskRecord(name, record) for name, file in files.items() for record in file.records]
    targets = None if kind == UNTOLD else [target for file in files.values() for target in file.targets or ()]
    return LabelledFile(TaskFiles({name: file.file for name, file in files.items()}, tuple(said)), records, targets)


def split_off(task: Task[Any], file: LabelledFile, share: float) -> tuple[LabelledFile, LabelledFile]:
    """Divide a file in two: by a permutation of its groups that depends on their number alone, not on the seed.

    Args:
        task: whose groups of records stay together.
        file: a training file.
        share: of the groups, for the second part; at least one.

    Returns:
        What is left, and the part, both in the file's order.

    Raises:
        ValueError: if there is only one group.
    """
    groups = task.groups(file.file, file.records)
    distinct = list(dict.fromkeys(groups))
    if len(distinct) < 2:
        raise ValueError(
            f"{file.file.path}: no part can be split off {len(distinct)} example; give --dev_file, or more examples"
        )
    count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
    order = permutation(len(distinct), philox(0, 0, len(distinct), Draw.DEV_SPLIT))
    chosen = {distinct[number] for number in order[:count].tolist()}
    return _parted(file, groups, chosen)


def divide(task: Task[Any], file: LabelledFile, folds: int, fold: int) -> tuple[LabelledFile, LabelledFile]:
    """All folds of a file but one, and that one, both in the file's order.

    The folds are as equal as can be, and made by a permutation of the file's groups that depends on their number alone.

    Raises:
        ValueError: if there are fewer groups than folds.
    """
    groups = task.groups(file.file, file.records)
    distinct = list(dict.fromkeys(groups))
    if len(distinct) < folds:
        raise ValueError(f"{file.file.path}: {len(distinct)} examples cannot make {folds} folds; give fewer --folds")
    order = permutation(len(distinct), philox(0, 0, len(distinct), Draw.FOLDS))
    return _parted(file, groups, {distinct[number] for number in order[fold::folds].tolist()})


def _parted(
    file: LabelledFile, groups: Sequence[Hashable], chosen: Collection[Hashable]
) -> tuple[LabelledFile, LabelledFile]:
    """The records that are not of the chosen groups, and those that are."""
    inside = np.fromiter((group in chosen for group in groups), bool, len(groups))
    return file.part(np.flatnonzero(~inside).tolist()), file.part(np.flatnonzero(inside).tolist())


def _read(opened: Callable[[], RecordFile[Any]], problems: list[str]) -> tuple[RecordFile[Any], list[Any]] | None:
    file = collect(problems, opened)
    records = collect(problems, lambda: list(file.records())) if file is not None else None
    return (file, records) if file is not None and records is not None else None


def _add(
    files: dict[str, LabelledFile],
    name: str,
    read: tuple[RecordFile[Any], list[Any]],
    task: Task[Any],
    problems: list[str],
) -> None:
    if name == "test" and not task.has_answers(*read):
        files[name] = LabelledFile(*read, None)
        return
    targets = collect(problems, partial(task.targets, *read))
    if targets is not None:
        files[name] = LabelledFile(*read, targets)
