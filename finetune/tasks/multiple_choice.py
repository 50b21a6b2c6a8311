"""The right one of a few choices: each is read with the question, and their scores compete.

A choice is a sequence ``context, question choice`` (Radford et al. 2018, section 3.3; transformers' ForMultipleChoice);
of a cloze ``text before the blank, choice and text behind it``, cut to what is nearest to the blank.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, Targets
from engine.models.heads import SequenceClassificationHead, usual_pooling
from engine.models.model import Model
from engine.objectives.base import LossTerm, encode
from finetune.config.tasks import FileConfig, MultipleChoiceConfig
from finetune.features.sequences import SequenceBuilder
from finetune.readers.choices import ChoiceFile, Question, open_choices
from finetune.readers.columns import LABEL
from finetune.tasks.base import Answer, Example, Float64, RecordFile, Task
from finetune.tasks.goals import log_softmax
from kernels.cross_entropy import IGNORE_INDEX

# S sequences of a batch, G questions, C choices of the one with most


class MultipleChoice(Task[Question]):
    """Cross-entropy over the scores of a question's choices."""

    kind = "multiple_choice"

    def __init__(self, pooling: str | None = None) -> None:
        self.name, self.pooling = self.kind, pooling

    # -- files

    @classmethod
    def open_training(cls, path: str, files: FileConfig, config: MultipleChoiceConfig) -> ChoiceFile:
        """Open a file of questions."""
        return open_choices(path, files)

    def open(self, path: str, files: FileConfig, labelled: bool) -> ChoiceFile:
        """Open a file of questions."""
        return open_choices(path, files)

    @classmethod
    def for_training(
        cls, file: RecordFile[Question], records: Sequence[Question], config: MultipleChoiceConfig
    ) -> Self:
        """Any questions will do."""
        return cls(config.pooling)

    @classmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The task that a model was trained for."""
        return cls(settings.get("pooling"))

    def settings(self) -> dict[str, Any]:
        """The pooling, where it is not the usual one."""
        return {"pooling": self.pooling} if self.pooling else {}

    # -- features

    def has_answers(self, file: RecordFile[Question], records: Sequence[Question]) -> bool:
        """Whether any question has an answer."""
        return any(question.right is not None for question in records)

    def groups(self, file: RecordFile[Question], records: Sequence[Question]) -> Sequence[Hashable]:
        """The text of each question: those of one text stay together."""
        return [question.group for question in records]

    def targets(self, file: RecordFile[Question], records: Sequence[Question]) -> list[np.int64]:
        """Numbers of the right choices; ValueError where one is not given."""
        targets = []
        for question in records:
            if question.right is None:
                raise ValueError(f"{file.path}, {question.id}: no answer is given")
            targets.append(np.int64(question.right))
        return targets

    def examples(
        self,
        builder: SequenceBuilder,
        file: RecordFile[Question],
        records: Sequence[Question],
        targets: Sequence[Any] | None,
    ) -> list[Example]:
        """A sequence for each choice of a question."""
        pairs = [pair for question in records for pair in choice_texts(question, builder.max_length)]
        built, cut = builder.build([first for first, _, _ in pairs], [second for _, second, _ in pairs])
        ends = list(accumulate(len(question.choices) for question in records))
        examples = []
        for number, (question, end) in enumerate(zip(records, ends, strict=True)):
            own = range(end - len(question.choices), end)
            truncated = any(cut[place] or pairs[place][2] for place in own)
            target = None if targets is None else targets[number]
            examples.append(Example(tuple(built[place] for place in own), target, number, truncated))
        return examples

    def with_targets(self, batch: PackedBatch, examples: Sequence[Example]) -> PackedBatch:
        """The batch with [G, 1 + C] int64: the right choice, and the sequences of the choices, -1 behind the last."""
        labels = np.full((len(examples), 1 + max(len(example.sequences) for example in examples)), -1)
        first = 0
        for row, example in zip(labels, examples, strict=True):
            assert example.target is not None
            row[0] = int(example.target)
            row[1 : 1 + len(example.sequences)] = np.arange(first, first + len(example.sequences))
            first += len(example.sequences)
        target = Targets(torch.from_numpy(labels[:, 1].copy()), torch.from_numpy(labels))
        return replace(batch, targets={self.name: target}, counts={self.name: len(examples)})

    # -- model

    def make_head(self, arch: ArchConfig) -> nn.Module:
        """A score for each sequence."""
        return SequenceClassificationHead(arch, 1, self.pooling)

    def exported_heads(self, arch: ArchConfig) -> tuple[str, ...]:
        """That of transformers' ForMultipleChoice, which GPT-2 lacks."""
        usual = self.name == self.kind and self.pooling in (None, usual_pooling(arch)) and not arch.causal
        return (self.kind,) if usual else ()

    def scores(self, model: Model, batch: PackedBatch) -> Tensor:
        """The score of each sequence: [S] fp32."""
        scores: Tensor = model.heads[self.name](encode(model, batch), batch.layout)
        return scores[:, 0].float()

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Cross-entropy of the right choices."""
        labels, count = batch.targets[self.name].labels, batch.counts[self.name]
        right, places = labels[:, 0], labels[:, 1:]  # [G], [G, C]
        scores = self.scores(model, batch)[places.clamp(min=0)]  # [G, C]
        scores = scores.masked_fill(places < 0, torch.finfo(scores.dtype).min)
        loss = F.cross_entropy(scores, right, reduction="sum", ignore_index=IGNORE_INDEX)
        correct = (scores.argmax(-1) == right).sum() if with_accuracy else None
        return {self.name: LossTerm(loss, count, correct=correct)}

    def outputs(self, model: Model, batch: PackedBatch, examples: Sequence[Example]) -> list[Any]:
        """The scores of each question's choices: [number of choices] float64."""
        scores = self.scores(model, batch).double().cpu().numpy()
        ends = list(accumulate(len(example.sequences) for example in examples))
        return np.split(scores[: ends[-1]], ends[:-1]) if ends else []

    # -- results

    def figures(
        self, outputs: Sequence[Float64], examples: Sequence[Example], records: Sequence[Question]
    ) -> dict[str, float]:
        """Mean loss and accuracy."""
        rights = [int(example.target) for example in examples if example.target is not None]
        losses = [-log_softmax(scores)[right] for scores, right in zip(outputs, rights, strict=True)]
        hits = [scores.argmax() == right for scores, right in zip(outputs, rights, strict=True)]
        return {"loss": float(np.mean(losses)), "accuracy": float(np.mean(hits))}

    def answer_columns(self, probabilities: bool) -> list[str]:
        """``id``, ``label`` (the number of the choice), ``answer`` (its text), and the probabilities as a JSON list."""
        return ["id", LABEL, "answer", *(["probabilities"] if probabilities else [])]

    def answers(
        self,
        outputs: Sequence[Float64],
        examples: Sequence[Example],
        records: Sequence[Question],
        probabilities: bool,
    ) -> list[Answer]:
        """The choice with the highest score."""
        answers: list[Answer] = []
        for scores, question in zip(outputs, records, strict=True):
            best = int(scores.argmax())
            answer: Answer = {"id": question.id, LABEL: best, "answer": question.choices[best]}
            if probabilities:
                answer["probabilities"] = [round(share, 6) for share in np.exp(log_softmax(scores)).tolist()]
            answers.append(answer)
        return answers


def choice_texts(question: Question, max_length: int) -> list[tuple[str, str, bool]]:
    """(first text, second text, whether characters were left out) of each choice."""
    if question.after is None:
        asked = [f"{question.question} {choice}" if question.question else choice for choice in question.choices]
        return [(question.context, text, False) for text in asked]
    texts = []
    for choice in question.choices:
        room = max(8, (max_length - 3 - len(choice)) // 2)  # characters on each side of the blank
        before, after = question.context[-room:], question.after[:room]
        cut = len(before) < len(question.context) or len(after) < len(question.after)
        texts.append((before, choice + after, cut))
    return texts
