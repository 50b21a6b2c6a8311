"""Several tasks over one encoder, each with a head of its own; a batch is of one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch
from engine.models.model import Model
from engine.objectives.base import LossTerm
from finetune.config.multitask import MULTITASK
from finetune.config.tasks import FileConfig
from finetune.features.sequences import SequenceBuilder
from finetune.tasks.base import Answer, Example, RecordFile, Task

COLUMN = "task"


class TaskRecord(NamedTuple):
    """A record of one of the tasks."""

    task: str
    record: Any


@dataclass(frozen=True, eq=False)
class TaskExample(Example):
    """An example of one of the tasks.

    Attributes:
        task: its name.
        inner: the example as the task made it; its record is counted among those of the task.
    """

    task: str = ""
    inner: Example | None = None

    @property
    def own(self) -> Example:
        """The example as the task made it."""
        assert self.inner is not None
        return self.inner


@dataclass(frozen=True, eq=False)
class TaskFiles:
    """A file of each task, one behind the other.

    Attributes:
        files: by the tasks' names.
        said: further sentences for the log.
    """

    files: Mapping[str, RecordFile[Any]]
    said: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """All of them."""
        return ", ".join(file.path for file in self.files.values())

    def records(self, advance: Any = None) -> Iterator[TaskRecord]:
        """All records, task by task."""
        for name, file in self.files.items():
            yield from (TaskRecord(name, record) for record in file.records())

    def notes(self) -> list[str]:
        """What was said beside what the files say."""
        return list(self.said)


_NO_FILE = "several tasks have no file together: open the file of one of Multitask.tasks"


class Multitask(Task[TaskRecord]):
    """Tasks by their names, which are those of their heads, of their losses and of their figures.

    Its files are read by ``finetune.training.labelled``, as those of each task.
    """

    kind = MULTITASK
    main_figure = "mean_score"

    def __init__(self, tasks: Mapping[str, Task[Any]]) -> None:
        """Name the tasks' heads."""
        self.name, self.tasks = self.kind, dict(tasks)
        self._heads: dict[str, set[str]] = {}
        for name, task in self.tasks.items():
            task.name = name
        self.pretrained_heads = tuple(dict.fromkeys(head for task in tasks.values() for head in task.pretrained_heads))

    # -- files

    @classmethod
    def open_training(cls, path: str, files: FileConfig, config: Any) -> RecordFile[TaskRecord]:
        """Not of several tasks."""
        raise TypeError(_NO_FILE)

    def open(self, path: str, files: FileConfig, labelled: bool) -> RecordFile[TaskRecord]:
        """Not of several tasks: a prediction chooses one of them."""
        raise TypeError(_NO_FILE)

    @classmethod
    def for_training(cls, file: RecordFile[TaskRecord], records: Sequence[TaskRecord], config: Any) -> Self:
        """Not of several tasks."""
        raise TypeError(_NO_FILE)

    @classmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The tasks that a model was trained for."""
        from finetune.tasks.registry import TASKS  # which has this one too

        tasks = settings["tasks"]
        return cls({name: TASKS[own["task"]].from_settings(own["labels"], own) for name, own in tasks.items()})

    def settings(self) -> dict[str, Any]:
        """Kind, labels and settings of each task."""
        return {
            "tasks": {
                name: {"task": task.kind, "labels": list(task.labels), **task.settings()}
                for name, task in self.tasks.items()
            }
        }

    # -- features

    def notes(self, file: RecordFile[TaskRecord]) -> list[str]:
        """What the tasks say of their files."""
        assert isinstance(file, TaskFiles)
        own = [f"{name}: {note}" for name, part in file.files.items() for note in self.tasks[name].notes(part)]
        return [*own, *file.notes()]

    def targets(self, file: RecordFile[TaskRecord], records: Sequence[TaskRecord]) -> Sequence[Any]:
        """The right answers, task by task."""
        assert isinstance(file, TaskFiles)
        return [
            target
            for name, part in file.files.items()
            for target in self.tasks[name].targets(part, records_of(records, name))
        ]

    def examples(
        self,
        builder: SequenceBuilder,
        file: RecordFile[TaskRecord],
        records: Sequence[TaskRecord],
        targets: Sequence[Any] | None,
    ) -> list[Example]:
        """Tokenize the records, task by task."""
        assert isinstance(file, TaskFiles)
        made: list[Example] = []
        first = 0
        for name, part in file.files.items():
            own = records_of(records, name)
            answers = None if targets is None else targets[first : first + len(own)]
            for inner in self.tasks[name].examples(builder, part, own, answers):
                outer = TaskExample(
                    inner.sequences, inner.target, inner.record + first, inner.truncated, task=name, inner=inner
                )
                made.append(outer)
            first += len(own)
        return made

    def part_of(self, example: Example) -> str:
        """The example's task."""
        assert isinstance(example, TaskExample)
        return example.task

    def _task_of(self, examples: Sequence[Example]) -> tuple[Task[Any], list[Example]]:
        """The one task of some examples, and the examples as it made them."""
        names = {self.part_of(example) for example in examples}
        assert len(names) == 1, names
        return self.tasks[names.pop()], own_examples(examples)

    def collate(self, builder: SequenceBuilder, examples: Sequence[Example]) -> PackedBatch:
        """Pack examples, all of one task."""
        task, own = self._task_of(examples)
        return task.collate(builder, own)

    def with_targets(self, batch: PackedBatch, examples: Sequence[Example]) -> PackedBatch:
        """The batch with the targets of its task."""
        task, own = self._task_of(examples)
        return task.with_targets(batch, own)

    # -- model

    def make_head(self, arch: ArchConfig) -> nn.Module:
        """Not of several tasks: they have a head each."""
        raise TypeError("several tasks have a head each: make_heads makes them all")

    def make_heads(self, arch: ArchConfig) -> dict[str, nn.Module]:
        """The heads of all tasks.

        Raises:
            ValueError: if two tasks have a head of the same name.
        """
        heads: dict[str, nn.Module] = {}
        for name, task in self.tasks.items():
            own = task.make_heads(arch)
            if shared := [head for head in own if head in heads]:
                raise ValueError(f"multitask.tasks: {name} has the head {shared[0]!r}, which another task has too")
            self._heads[name] = set(own)
            heads |= own
        return heads

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """The loss of the batch's task; the other tasks' heads get gradients of zero.

        Without gradients they would be left out of the step at ZeRO stage 0 and counted as zero at the others.
        """
        name = next(name for name in self.tasks if name in batch.counts)
        terms = self.tasks[name].losses(model, batch, with_accuracy)
        first = next(iter(terms))
        idle = [p for head, module in model.heads.items() if head not in self._heads[name] for p in module.parameters()]
        nothing = sum((p.reshape(-1)[:0].sum() for p in idle if p.numel()), torch.zeros((), device=batch.tokens.device))
        return {**terms, first: terms[first]._replace(loss_sum=terms[first].loss_sum + nothing)}

    def outputs(self, model: Model, batch: PackedBatch, examples: Sequence[Example]) -> list[Any]:
        """Those of the batch's task."""
        task, own = self._task_of(examples)
        return task.outputs(model, batch, own)

    def key_draws(self, seed: int) -> None:
        """Those of all tasks."""
        for task in self.tasks.values():
            task.key_draws(seed)

    # -- results

    def tune(self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[TaskRecord]) -> None:
        """Let each task choose on its part."""
        for name, task in self.tasks.items():
            chosen = [number for number, example in enumerate(examples) if self.part_of(example) == name]
            own = own_examples([examples[number] for number in chosen])
            if chosen:
                task.tune([outputs[number] for number in chosen], own, records_of(records, name))

    def take_up(self, settings: Mapping[str, Any]) -> None:
        """Let each task go on with what it had chosen."""
        for name, own in settings.get("tasks", {}).items():
            self.tasks[name].take_up(own)

    def figures(
        self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[TaskRecord]
    ) -> dict[str, float]:
        """``mean_score``, the mean of the main figures; ``loss``, that of the losses; and TASK_FIGURE of each task."""
        found: dict[str, dict[str, float]] = {}
        for name, task in self.tasks.items():
            chosen = [number for number, example in enumerate(examples) if self.part_of(example) == name]
            if chosen:
                own = own_examples([examples[number] for number in chosen])
                found[name] = task.figures([outputs[number] for number in chosen], own, records_of(records, name))
        scores = [figures[self.tasks[name].main_figure] for name, figures in found.items()]
        return {
            "loss": sum(figures["loss"] for figures in found.values()) / len(found),
            self.main_figure: sum(scores) / len(scores),
            **{f"{name}_{key}": value for name, figures in found.items() for key, value in figures.items()},
        }

    def answer_columns(self, probabilities: bool) -> list[str]:
        """The task, and the columns of all tasks."""
        own = [column for task in self.tasks.values() for column in task.answer_columns(probabilities)]
        return list(dict.fromkeys([COLUMN, *own]))

    def answers(
        self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[TaskRecord], probabilities: bool
    ) -> list[Answer]:
        """The predictions, task by task."""
        made: list[Answer] = []
        for name, task in self.tasks.items():
            chosen = [number for number, example in enumerate(examples) if self.part_of(example) == name]
            own, theirs = own_examples([examples[number] for number in chosen]), records_of(records, name)
            if theirs:
                answers = task.answers([outputs[number] for number in chosen], own, theirs, probabilities)
                made += [{COLUMN: name, **answer} for answer in answers]
        return made


def records_of(records: Sequence[TaskRecord], name: str) -> list[Any]:
    """The records of one task."""
    return [record for task, record in records if task == name]


def own_examples(examples: Sequence[Example]) -> list[Example]:
    """Examples as their task made them."""
    return [example.own for example in examples if isinstance(example, TaskExample)]
