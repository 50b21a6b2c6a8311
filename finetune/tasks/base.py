"""What a run and a prediction ask of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch
from engine.models.model import Model
from engine.objectives.base import LossTerm
from finetune.config.tasks import FileConfig
from finetune.features.sequences import SequenceBuilder, TokenSequence
from finetune.readers.columns import TEXT_A
from preprocess.tokenizer import BERT, CAUSAL_TEXTS

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Answer = dict[str, Any]  # column -> text, number, or what JSON can hold


class RecordFile(Protocol[R_co]):
    """A file of records: lines of a table, sentences with labels, questions with their paragraphs."""

    @property
    def path(self) -> str:
        """The file."""
        ...

    def records(self, advance: Callable[[int], object] = lambda num_bytes: None) -> Iterator[R_co]:
        """Read the records one by one, in the file's order.

        Args:
            advance: told the bytes that were read, for a progress bar.

        Raises:
            ValueError: naming file and line of what cannot be read.
        """
        ...

    def notes(self) -> list[str]:
        """What a user should know of the file, in sentences for the log; after the records were read."""
        ...


@dataclass(frozen=True, eq=False)
class Example:
    """What is learned, measured or predicted at once.

    Attributes:
        sequences: one, or a few that belong together (the choices of a question, the two texts of two towers).
        target: what the model should answer, as ``collate`` of the task reads it; None where it is not known.
        record: number of its record among those that it was made with; a long record can make several examples.
        truncated: whether a text was cut.
        details: what decoding needs beside the outputs, such as where the tokens stand in the text.
    """

    sequences: tuple[TokenSequence, ...]
    target: NDArray[Any] | np.generic | None = None
    record: int = 0
    truncated: bool = False
    details: Any = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(len(sequence.tokens) for sequence in self.sequences)


class Task(ABC, Generic[R]):
    """One kind of fine-tuning: features, head, loss, metric and decoding.

    It is an objective of the trainer (``engine.objectives.base.Objective``) too. Files become records (``open``),
    records examples (``examples``), examples batches (``collate``); a model gives outputs of a batch (``outputs``), of
    which figures (``figures``) and predictions (``answers``) are made on the host.

    Attributes:
        kind: its name on the command line, in ``TASKS`` and in config.json.
        pretrained_heads: heads that begin with the weights of the model's folder, whatever it was trained for.
        main_figure: the one of ``figures`` that says which model is better; the larger, the better.
        official_columns: columns of the predictions that a JSON object of the benchmark's evaluation has as names and
            values; None where there is no such file.
        text_column: of a file with one text in each line, to which a text alone belongs.
        name: of its head and of its loss; the kind, unless several tasks are learned at once.
        labels: names of the classes in the order of the logits; empty where it has none.
        seed: of random draws in ``outputs``, such as sampled text.
    """

    kind: ClassVar[str]
    pretrained_heads: tuple[str, ...] = ()
    main_figure: str = "accuracy"
    official_columns: tuple[str, str] | None = None
    text_column: str = TEXT_A
    name: str
    labels: tuple[str, ...] = ()
    seed: int = 0

    # -- files

    @classmethod
    @abstractmethod
    def open_training(cls, path: str, files: FileConfig, config: Any) -> RecordFile[R]:
        """Open a training file, before the task is known.

        Args:
            path: the file.
            files: how to read it.
            config: the task's settings, the dataclass of its kind in ``finetune.config.tasks``.

        Raises:
            ValueError: if it is missing or no such file.
        """

    @abstractmethod
    def open(self, path: str, files: FileConfig, labelled: bool) -> RecordFile[R]:
        """Open a file to evaluate on or to predict.

        Args:
            path: the file.
            files: how to read it.
            labelled: whether the right answers must be there.
        """

    @classmethod
    def settings_for(cls, config: Any, folder: Path) -> Any:
        """The settings with what a model folder decides where they are left open; most tasks leave nothing open."""
        return config

    @classmethod
    @abstractmethod
    def for_training(cls, file: RecordFile[R], records: Sequence[R], config: Any) -> Self:
        """The task that a training file sets; ValueError where it sets none."""

    @classmethod
    @abstractmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The task that a model was trained for, from what ``settings`` returned then."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a prediction must know beside the labels: a JSON object."""

    # -- features

    def notes(self, file: RecordFile[R]) -> list[str]:
        """What a user should know of a file that was read, in sentences for the log."""
        return file.notes()

    def has_answers(self, file: RecordFile[R], records: Sequence[R]) -> bool:
        """Whether a file to evaluate on has the right answers; one without them is predicted."""
        return True

    def groups(self, file: RecordFile[R], records: Sequence[R]) -> Sequence[Hashable]:
        """What each record belongs to; records of one group are never divided between training and evaluation."""
        return range(len(records))

    @abstractmethod
    def targets(self, file: RecordFile[R], records: Sequence[R]) -> Sequence[Any]:
        """The right answer of each record.

        Raises:
            ValueError: naming file and line of one that is not possible, such as a label that training did not have.
        """

    def weigh_classes(self, given: Mapping[str, float] | str, targets: Sequence[Any]) -> None:
        """Let the examples of some classes count more in training: what ``--class_weights`` says.

        Args:
            given: none, balanced, or a weight for each label.
            targets: of the training examples; weights have mean 1 over them.

        Raises:
            ValueError: if the task has no classes or not those.
        """
        if given != "none":
            raise ValueError(f"class_weights are given, but the task {self.kind} has no classes to weigh; remove them")

    @abstractmethod
    def examples(
        self, builder: SequenceBuilder, file: RecordFile[R], records: Sequence[R], targets: Sequence[Any] | None
    ) -> list[Example]:
        """Tokenize records, in their order.

        Args:
            builder: makes token sequences.
            file: of the records.
            records: of the file.
            targets: what ``targets`` returned for them; None where the answers are not known.
        """

    def part_of(self, example: Example) -> str:
        """Examples of different parts are never in a batch together; most tasks have one."""
        return ""

    def collate(self, builder: SequenceBuilder, examples: Sequence[Example]) -> PackedBatch:
        """Pack examples, with their targets where they have them."""
        batch = builder.pack([sequence for example in examples for sequence in example.sequences])
        return self.with_targets(batch, examples) if examples and examples[0].target is not None else batch

    @abstractmethod
    def with_targets(self, batch: PackedBatch, examples: Sequence[Example]) -> PackedBatch:
        """The batch with what the model should answer, and counts, under the task's name."""

    # -- model

    @abstractmethod
    def make_head(self, arch: ArchConfig) -> nn.Module:
        """The head that the task trains."""

    def make_heads(self, arch: ArchConfig) -> dict[str, nn.Module]:
        """All heads of a model, by name."""
        return {self.name: self.make_head(arch)}

    def exported_heads(self, arch: ArchConfig) -> tuple[str, ...]:
        """The heads that a class of transformers has, by their names in ``engine.convert``; empty where none fits.

        What no class has is written beside the encoder, into heads.safetensors.
        """
        return ()

    def config_keys(self, arch: ArchConfig) -> dict[str, Any]:
        """Further keys of config.json that transformers reads, such as problem_type."""
        return {}

    def tokenizer_template(self, arch: ArchConfig) -> str:
        """What transformers' tokenizer adds to texts, a key of ``preprocess.tokenizer.saving.TEMPLATES``."""
        return CAUSAL_TEXTS if arch.causal else BERT

    def finish_folder(self, folder: Any, arch: ArchConfig, builder: SequenceBuilder) -> None:
        """Write what other libraries want beside the weights; nothing for most tasks."""

    @abstractmethod
    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Run the model on a batch and return the terms of the loss by name."""

    @abstractmethod
    def outputs(self, model: Model, batch: PackedBatch, examples: Sequence[Example]) -> list[Any]:
        """What ``figures`` and ``answers`` need of each example: arrays on the host, small enough to keep them all.

        All ranks must run the model equally often here, whatever their examples.
        """

    def key_draws(self, seed: int) -> None:
        """Let random draws in ``outputs`` follow a seed, beside the records."""
        self.seed = seed

    # -- results

    def tune(self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[R]) -> None:
        """Choose what is chosen on the dev file, such as a threshold, for ``settings``; arguments as of ``figures``."""
        return

    def take_up(self, settings: Mapping[str, Any]) -> None:
        """Go on with what ``tune`` had chosen, from what ``settings`` returned then."""
        return

    @abstractmethod
    def figures(self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[R]) -> dict[str, float]:
        """``loss`` and the metrics of a file, or of its first examples.

        Args:
            outputs: of the examples.
            examples: with targets.
            records: those that the examples count by ``Example.record``.
        """

    @abstractmethod
    def answer_columns(self, probabilities: bool) -> list[str]:
        """Columns of the predictions."""

    @abstractmethod
    def answers(
        self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[R], probabilities: bool
    ) -> list[Answer]:
        """The prediction for each record."""
