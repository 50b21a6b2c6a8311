"""Settings of the tasks, a dataclass for each kind, and of the files that they read. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from finetune.config.decoding import DecodingConfig

POOLINGS = ("first", "mean", "max", "last")
SIMILARITY_LOSSES = ("cosine", "softmax", "contrastive", "unsupervised")
LANGUAGES = ("en", "zh")
LONG_TEXTS = ("window", "cut")
CLASS_FIGURES = ("accuracy", "macro_f1", "micro_f1", "matthews", "f1")
FORMATS = ("tsv", "csv", "jsonl")
BAD_LINES = ("error", "skip")
TABLE_SUFFIXES = ("", ".tsv", ".txt", ".csv", ".jsonl", ".json")  # of files to write; .json has JSON Lines


@dataclass(frozen=True)
class FileConfig:
    """How labelled files are read.

    Attributes:
        columns: what ``--columns`` says.
        format: of tables: tsv, csv or jsonl; None: by the file's name and first line.
        bad_lines: what happens to malformed lines: error, or skip, which counts and reports them.
    """

    columns: str | None = None
    format: str | None = None
    bad_lines: str = "error"

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        return choice_problem("format", self.format, FORMATS) + choice_problem("bad_lines", self.bad_lines, BAD_LINES)


def usual(config: Any, name: str) -> Any:
    """What a setting of a dataclass is where it is not given."""
    found = next(item for item in fields(config) if item.name == name)
    return found.default if found.default_factory is MISSING else found.default_factory()


def changed(config: Any, names: Sequence[str]) -> list[str]:
    """Those of some settings that are not what they are where they are not given."""
    return [name for name in names if getattr(config, name) != usual(config, name)]


def choice_problem(setting: str, value: str | None, allowed: tuple[str, ...]) -> list[str]:
    """The problem of a setting that is none of the allowed values; None is allowed."""
    if value is None or value in allowed:
        return []
    return [f"{setting} is {value!r}; it must be one of {', '.join(allowed)}"]


def output_name_problem(output: str | None, suffixes: Sequence[str] = TABLE_SUFFIXES) -> list[str]:
    """The problem of a file to write whose name does not say how; None is no file."""
    if output is None or Path(output).suffix.lower() in suffixes:
        return []
    return [f"output is {output}; its name must end in {', '.join(filter(None, suffixes))}"]


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """Classification of one text or of two.

    Args:
        pooling: what the class is read from: the first or the last token, or the mean or the maximum of all; first for
            BERT and last for GPT-2 where not given, and only that is a class of transformers.
        multi_label: an example may have any number of labels.
        separator: between the labels of an example.
        threshold: probability from which a label is predicted, where there may be several.
        soft_targets: how much of the loss is that of the columns probability_LABEL, the rest is that of the label; such
            columns are what finetune.predict --probabilities writes.
        main_figure: which figure says that a model is better: accuracy, macro_f1, micro_f1, matthews or f1.
    """

    pooling: str | None = None
    multi_label: bool = False
    separator: str = ","
    threshold: float = 0.5
    soft_targets: float = 0.0
    main_figure: str = "accuracy"

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = choice_problem("classification.pooling", self.pooling, POOLINGS)
        found += choice_problem("classification.main_figure", self.main_figure, CLASS_FIGURES)
        if not 0 < self.threshold < 1:
            found.append(f"classification.threshold is {self.threshold}; it must be above 0 and below 1")
        if not 0 <= self.soft_targets <= 1:
            found.append(f"classification.soft_targets is {self.soft_targets}; it must be from 0 to 1")
        if not self.separator:
            found.append("classification.separator is empty")
        if self.multi_label and self.soft_targets:
            found.append("classification.soft_targets and classification.multi_label are given; remove one")
        if self.multi_label and self.main_figure in ("matthews", "f1"):
            found.append(
                f"classification.main_figure is {self.main_figure}, which multi_label does not have; take accuracy, "
                "macro_f1 or micro_f1"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class RegressionConfig:
    """A number for one text or for two.

    Args:
        pooling: as of classification.
    """

    pooling: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        return choice_problem("regression.pooling", self.pooling, POOLINGS)


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """The answers to a query, ranked.

    Args:
        pooling: as of classification.
        main_figure: which figure says that a model is better: mrr or map.
    """

    pooling: str | None = None
    main_figure: str = "mrr"

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = choice_problem("ranking.pooling", self.pooling, POOLINGS)
        return found + choice_problem("ranking.main_figure", self.main_figure, ("mrr", "map"))


@dataclass(frozen=True, kw_only=True)
class TokenClassificationConfig:
    """A label for each word or character.

    Args:
        crf: score the labels of a sentence as a whole, by a conditional random field (pip install pytorch-crf).
        long_texts: what happens to a sentence longer than max_length: window, which cuts it into overlapping ones and
            answers each word where it has most context, or cut, which leaves out and counts what is behind.
    """

    crf: bool = False
    long_texts: str = "window"

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        return choice_problem("token_classification.long_texts", self.long_texts, LONG_TEXTS)


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringConfig:
    """Answers to questions as spans of a text.

    Args:
        doc_stride: tokens between the beginnings of two windows over a text that is too long; 0: half a window's.
        max_question_length: tokens of a question; longer ones are cut and counted.
        max_answer_length: tokens of an answer that is predicted.
        n_best: answers that a prediction with probabilities lists.
        metric: exact match and F1 of en (SQuAD) or zh (CMRC 2018); by the training file's texts where not given.
    """

    doc_stride: int = 0
    max_question_length: int = 64
    max_answer_length: int = 64
    n_best: int = 20
    metric: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = choice_problem("question_answering.metric", self.metric, LANGUAGES)
        if self.doc_stride < 0:
            found.append(f"question_answering.doc_stride is {self.doc_stride}; it must be at least 0")
        for name in ("max_question_length", "max_answer_length", "n_best"):
            if getattr(self, name) < 1:
                found.append(f"question_answering.{name} is {getattr(self, name)}; it must be at least 1")
        return found


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceConfig:
    """The right one of a few choices.

    Args:
        pooling: as of classification.
    """

    pooling: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        return choice_problem("multiple_choice.pooling", self.pooling, POOLINGS)


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig:
    """Vectors of texts, near each other where the texts mean the same (Reimers and Gurevych 2019, arXiv:1908.10084).

    Args:
        loss: cosine: the cosine of two texts learns their score; softmax: both vectors and their difference learn the
            class of the pair; contrastive: the second text of a pair is told from those of the other pairs in the
            micro-batch; unsupervised: the same with each text as its own second text, under other dropout.
        pooling: vector of a text: that of its first or last token, or the mean or the maximum of all of them; what a
            folder of sentence-transformers says where not given, and the mean for others.
        normalize: divide each vector by its length; what such a folder says where not given, and false for others.
        temperature: cosines are divided by it in the losses contrastive and unsupervised.
        best_score: of texts that mean the same, for cosine; the largest of the training file where not given.
    """

    loss: str = "cosine"
    pooling: str | None = None
    normalize: bool | None = None
    temperature: float = 0.05
    best_score: float | None = None

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = choice_problem("similarity.loss", self.loss, SIMILARITY_LOSSES)
        found += choice_problem("similarity.pooling", self.pooling, POOLINGS)
        if not self.temperature > 0:
            found.append(f"similarity.temperature is {self.temperature}; it must be above 0")
        if self.best_score is not None and not self.best_score > 0:
            found.append(f"similarity.best_score is {self.best_score}; it must be above 0")
        return found


@dataclass(frozen=True, kw_only=True)
class LmConfig(DecodingConfig):
    """Continuing prompts.

    Args:
        generate: write texts for the prompts of the dev file in every evaluation, and measure them by BLEU and ROUGE;
            the loss and the share of tokens predicted right are measured anyway.
    """

    generate: bool = False

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        return [f"lm.{problem}" for problem in super().problems()]


@dataclass(frozen=True, kw_only=True)
class Seq2seqConfig(DecodingConfig):
    """Writing a text for a text.

    Args:
        generate: write texts for the sources of the dev file in every evaluation, and measure them by BLEU and ROUGE;
            the loss and the share of tokens predicted right are measured anyway.
    """

    generate: bool = True

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        return [f"seq2seq.{problem}" for problem in super().problems()]


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """The settings of each kind of task; a run reads those of its own."""

    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    ranking: RankingConfig = field(default_factory=RankingConfig)
    token_classification: TokenClassificationConfig = field(default_factory=TokenClassificationConfig)
    question_answering: QuestionAnsweringConfig = field(default_factory=QuestionAnsweringConfig)
    multiple_choice: MultipleChoiceConfig = field(default_factory=MultipleChoiceConfig)
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    lm: LmConfig = field(default_factory=LmConfig)
    seq2seq: Seq2seqConfig = field(default_factory=Seq2seqConfig)

    def of_task(self) -> Any:
        """The settings of the task that is learned; only where there is such a task."""
        return getattr(self, self.task)  # type: ignore[attr-defined]  # a setting of the run


TASK_NAMES = (
    "classification",
    "regression",
    "ranking",
    "token_classification",
    "question_answering",
    "multiple_choice",
    "similarity",
    "lm",
    "seq2seq",
    "multitask",
)
