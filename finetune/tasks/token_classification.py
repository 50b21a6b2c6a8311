"""A label for each word or character: entities, parts of speech, segmentation; spans where labels mark spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, Targets
from engine.models.heads import TokenClassificationHead
from engine.models.model import Model
from engine.objectives.base import LossTerm, cross_entropy_term, encode
from finetune.config.tasks import FileConfig, TokenClassificationConfig
from finetune.features.sequences import Ids, SequenceBuilder
from finetune.features.span_labels import (
    OUTSIDE,
    bio_labels,
    bio_of,
    marks_spans,
    num_misfits,
    odd_labels,
    scheme_of,
    spans_of,
)
from finetune.features.units import UnitScores, joined_logits, tokenize_units, unit_index
from finetune.features.windows import Window, windows_of
from finetune.metrics.classes import class_figures
from finetune.metrics.spans import check_seqeval, span_scores
from finetune.readers.sentences import Sentence
from finetune.readers.tagged import COLUMNS, TaggedFile, open_tagged
from finetune.tasks.base import Answer, Example, Int64, RecordFile, Task
from finetune.tasks.crf import CrfHead as Crf
from finetune.tasks.crf import Transitions, check_library, crf_loss, most_probable
from finetune.tasks.goals import log_softmax, sorted_labels
from finetune.training.class_weights import NONE, class_weights
from kernels.cross_entropy import IGNORE_INDEX

_MOST_LABELS = 1000
_SHOWN = 10


class TokenClassification(Task[Sentence]):
    """A label for each unit of a sentence, from its first token (arXiv:1810.04805, section 5.3)."""

    kind = "token_classification"

    def __init__(self, labels: Sequence[str], spans: bool, config: TokenClassificationConfig, characters: bool) -> None:
        """Name the classes in the order of the logits.

        Args:
            labels: BIO where they mark spans.
            spans: whether they do.
            config: of the task.
            characters: whether a text without units is cut into characters.
        """
        if config.crf:
            check_library()
        self.name = self.kind
        self.labels, self.spans, self.config, self.characters = tuple(labels), spans, config, characters
        self.main_figure = "f1" if spans else "accuracy"
        self._numbers = {label: number for number, label in enumerate(self.labels)}
        self._remarks: dict[str, list[str]] = {}
        self._weights: Tensor | None = None  # [number of labels]

    # -- files

    @classmethod
    def open_training(cls, path: str, files: FileConfig, config: Any) -> TaggedFile:
        """Open a file of sentences with labels."""
        return open_tagged(path, files, labelled=True)

    def open(self, path: str, files: FileConfig, labelled: bool) -> TaggedFile:
        """Open a file of sentences."""
        return open_tagged(path, files, labelled, self.characters)

    @classmethod
    def for_training(
        cls, file: RecordFile[Sentence], records: Sequence[Sentence], config: TokenClassificationConfig
    ) -> Self:
        """Take the labels from a training file.

        Raises:
            ValueError: if there are fewer than two, or so many that they look like no labels, or some mark spans and
                others are of no scheme.
        """
        if config.crf:
            check_library()
        check_seqeval()
        found = {label for record in records for label in record.labels or ()}
        refuse_odd_labels(file, records, odd_labels(found))
        spans = marks_spans(found)
        labels = bio_labels(found) if spans else sorted_labels(found)
        if len(labels) < 2 or len(labels) > _MOST_LABELS:
            raise ValueError(
                f"{file.path}: {len(labels):,} different label(s), {', '.join(labels[:_SHOWN])}; there must be 2 to "
                f"{_MOST_LABELS:,}. If the label is not the last column, say which it is, such as --columns "
                "token,label,chunk"
            )
        sample = [unit for record in records[:1000] for unit in record.units]
        return cls(labels, spans, config, sum(map(len, sample)) < 1.2 * len(sample))

    @classmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The task that a model was trained for."""
        config = TokenClassificationConfig(crf=bool(settings["crf"]), long_texts=str(settings["long_texts"]))
        return cls(labels, bool(settings["spans"]), config, bool(settings["characters"]))

    def settings(self) -> dict[str, Any]:
        """What the labels mark, and how texts are cut."""
        own = {"crf": self.config.crf, "long_texts": self.config.long_texts}
        return {"spans": self.spans, "characters": self.characters, **own}

    def has_answers(self, file: RecordFile[Sentence], records: Sequence[Sentence]) -> bool:
        """Whether the sentences have labels."""
        return any(record.labels is not None for record in records)

    def notes(self, file: RecordFile[Sentence]) -> list[str]:
        """How the labels were read."""
        return [*file.notes(), *self._remarks.get(file.path, ())]

    # -- features

    def targets(self, file: RecordFile[Sentence], records: Sequence[Sentence]) -> list[Int64]:
        """Numbers of the units' labels; IGNORE_INDEX for one that training does not have, which counts as missed.

        Raises:
            ValueError: if a sentence has no labels, or training has none of the file's labels but O.
        """
        unknown: Counter[str] = Counter()
        found: set[str] = set()
        given: set[str] = set()
        targets = []
        for record in records:
            if record.labels is None:
                raise ValueError(f"{file.path}, line {record.line:,}: no labels")
            labels = self.normal(record.labels)
            unknown.update(label for label in labels if label not in self._numbers)
            found.update(labels)
            given.update(record.labels)
            targets.append(np.array([self._numbers.get(label, IGNORE_INDEX) for label in labels], np.int64))
        if self.spans:
            refuse_odd_labels(file, records, odd_labels(given, spans=True))
        if found - {OUTSIDE} and not (found - {OUTSIDE}) & set(self.labels):
            raise ValueError(
                f"{file.path}: training has none of its labels {', '.join(sorted(found)[:_SHOWN])}; it has "
                f"{', '.join(self.labels[:_SHOWN])}"
            )
        self._remarks[file.path] = self._told(file.path, records, unknown)
        return targets

    def normal(self, labels: Sequence[str]) -> list[str]:
        """Labels as they are learned: BIO where they mark spans."""
        return bio_of(labels) if self.spans else list(labels)

    def _told(self, path: str, records: Sequence[Sentence], unknown: Counter[str]) -> list[str]:
        told = []
        if unknown:
            shown = ", ".join(f"{label} ({count:,})" for label, count in sorted(unknown.items())[:_SHOWN])
            told.append(f"{path}: labels that training does not have count as missed: {shown}")
        if self.spans:
            scheme = scheme_of(record.labels or () for record in records)
            if scheme != "BIO":
                told.append(f"{path}: its labels are {scheme}; the same spans are learned as BIO")
            misfits = sum(num_misfits(record.labels or ()) for record in records) if scheme != "IOB1" else 0
            if misfits:
                told.append(f"{path}: {misfits:,} label(s) do not fit those before them; each begins a span")
        return told

    def weigh_classes(self, given: Mapping[str, float] | str, targets: Sequence[Any]) -> None:
        """Let the units of some labels count more in training; weights have mean 1 over the training units.

        Raises:
            ValueError: of a CRF, whose loss is of a whole sentence; or of labels that there are not.
        """
        if given != NONE and self.config.crf:
            raise ValueError(
                "class_weights are given with token_classification.crf, whose loss is of a sentence as a whole "
                "and has no part for each class; remove one of them"
            )
        labels = np.concatenate([np.zeros(0, np.int64), *targets])
        counts = np.bincount(labels[labels != IGNORE_INDEX], minlength=len(self.labels)).astype(np.float64)
        weights = class_weights(given, self.labels, counts)
        self._weights = None if weights is None else torch.from_numpy(weights.astype(np.float32))

    def examples(
        self,
        builder: SequenceBuilder,
        file: RecordFile[Sentence],
        records: Sequence[Sentence],
        targets: Sequence[Any] | None,
    ) -> list[Example]:
        """A sequence for each sentence, or several that overlap where it is longer than the model takes."""
        made: list[Example] = []
        ids, sizes = tokenize_units(builder, records)
        first_id = 0
        for number, record in enumerate(records):
            own = sizes[number]
            places = np.concatenate([[0], np.cumsum(own)]).astype(np.int64)
            tokens = ids[first_id : first_id + int(places[-1])]
            first_id += int(places[-1])
            target = None if targets is None else targets[number]
            made += self._windows(builder, number, record, (tokens, places), target)
        return made

    def _windows(
        self,
        builder: SequenceBuilder,
        number: int,
        record: Sentence,
        tokens: tuple[Ids, Int64],
        target: Int64 | None,
    ) -> list[Example]:
        """The examples of a record; ``tokens`` are its ids and where each unit's begin, with the end behind them."""
        ids, places = tokens
        room = builder.room()
        sizes = np.minimum(np.diff(places), room)  # of a unit that alone is too long the first tokens
        windows = windows_of(sizes.tolist(), room)
        truncated = bool((np.diff(places) > room).any())
        if self.config.long_texts == "cut" and len(windows) > 1:
            windows, truncated = [Window(0, windows[0].end, 0, windows[0].end)], True
        made = []
        for window in windows:
            units = range(window.begin, window.end)
            parts = [ids[places[unit] : places[unit] + sizes[unit]] for unit in units]
            firsts = builder.num_before + np.cumsum(sizes[window.begin : window.end]) - sizes[window.begin : window.end]
            sequence = builder.of_ids(np.concatenate([ids[:0], *parts]))
            own = slice(window.own_begin, window.own_end)
            details = firsts[window.own_begin - window.begin : window.own_end - window.begin]
            made.append(Example((sequence,), None if target is None else target[own], number, truncated, details))
        return made

    def with_targets(self, batch: PackedBatch, examples: Sequence[Example]) -> PackedBatch:
        """The batch with the labels of its units, at their first tokens: [M]."""
        labels = torch.from_numpy(np.concatenate([np.asarray(example.target, np.int64) for example in examples]))
        target = Targets(unit_index(batch, examples), labels)
        return replace(batch, targets={self.name: target}, counts={self.name: int((labels != IGNORE_INDEX).sum())})

    # -- model

    def make_head(self, arch: ArchConfig) -> nn.Module:
        """A linear map of each token."""
        return TokenClassificationHead(arch, len(self.labels))

    def make_heads(self, arch: ArchConfig) -> dict[str, nn.Module]:
        """That, and a CRF's transitions."""
        heads: dict[str, nn.Module] = {self.name: self.make_head(arch)}
        return heads | ({self._crf_name: Crf(len(self.labels))} if self.config.crf else {})

    @property
    def _crf_name(self) -> str:
        return f"{self.name}_crf"

    def exported_heads(self, arch: ArchConfig) -> tuple[str, ...]:
        """That of transformers' ForTokenClassification; a CRF stays beside it."""
        return (self.kind,) if self.name == self.kind else ()

    def config_keys(self, arch: ArchConfig) -> dict[str, Any]:
        """The dropout of GPT2ForTokenClassification, which has a default of its own."""
        return {"classifier_dropout": arch.hidden_dropout} if arch.causal else {}

    def logits(self, model: Model, batch: PackedBatch, index: Tensor) -> Tensor:
        """Logits of tokens: index [M] int64 to [M, number of labels]."""
        logits: Tensor = model.heads[self.name](encode(model, batch)[index])
        return logits

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Cross-entropy of the labels, or a CRF's minus log-likelihood of them; a mean over the units."""
        target, count = batch.targets[self.name], batch.counts[self.name]
        logits = self.logits(model, batch, target.index)  # [M, number of labels]
        if not self.config.crf:
            if self._weights is None or not model.training:
                return {self.name: cross_entropy_term(logits, target.labels, count, with_accuracy)}
            self._weights = self._weights.to(logits.device)  # copied once
            loss_sum = nn.functional.cross_entropy(logits.float(), target.labels, self._weights, reduction="sum")
            correct = (logits.argmax(-1) == target.labels).sum() if with_accuracy else None
            return {self.name: LossTerm(loss_sum, count, correct=correct)}
        layout, crf = batch.layout, model.heads[self._crf_name]
        loss_sum = crf_loss(crf, logits, target.index, target.labels, layout.cu_seqlens, max(layout.max_length, 1))
        correct = (logits.argmax(-1) == target.labels).sum() if with_accuracy else None
        return {self.name: LossTerm(loss_sum, count, correct=correct)}

    def outputs(self, model: Model, batch: PackedBatch, examples: Sequence[Example]) -> list[Any]:
        """Logits of the units of each example, and a CRF's transitions."""
        index = unit_index(batch, examples).to(batch.tokens.device)
        logits = self.logits(model, batch, index).float().cpu().numpy()
        transitions = None
        if self.config.crf:
            transitions = Transitions(*(tensor.cpu().numpy() for tensor in model.heads[self._crf_name]()))
        ends = np.cumsum([len(example.details) for example in examples])
        return [UnitScores(part, transitions) for part in np.split(logits, ends[:-1])]

    # -- results

    def figures(
        self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Sentence]
    ) -> dict[str, float]:
        """Mean loss and accuracy of the units; precision, recall and F1 of the spans, or macro F1 of the labels."""
        joined = joined_logits(outputs, examples)
        predicted = self.decoded(joined)
        gold = {number: self.normal(records[number].labels or ()) for number in joined}
        labels = {number: self._padded(predicted[number], len(gold[number])) for number in joined}
        pairs = [pair for number in joined for pair in zip(labels[number], gold[number], strict=True)]
        found = {"loss": self._loss(joined, gold), "accuracy": sum(a == b for a, b in pairs) / max(len(pairs), 1)}
        if self.spans:
            return found | span_scores([gold[number] for number in joined], [labels[number] for number in joined])
        names = {name: number for number, name in enumerate(sorted({name for pair in pairs for name in pair}))}
        numbers = np.array([(names[a], names[b]) for a, b in pairs], np.int64).reshape(-1, 2)
        return found | {"macro_f1": class_figures(numbers[:, 0], numbers[:, 1], len(names))["macro_f1"]}

    def _loss(self, joined: Mapping[int, UnitScores], gold: Mapping[int, Sequence[str]]) -> float:
        """Mean over the units whose label training has."""
        total, count = 0.0, 0
        for number, scores in joined.items():
            labels = np.array([self._numbers.get(label, IGNORE_INDEX) for label in gold[number]], np.int64)
            labels = labels[: len(scores.logits)]
            known = np.flatnonzero(labels != IGNORE_INDEX)
            count += len(known)
            if scores.transitions is None:
                total -= float(log_softmax(scores.logits.astype(np.float64))[known, labels[known]].sum())
            elif len(known):
                head = Crf(len(self.labels))
                head.load_state_dict({k: torch.from_numpy(v) for k, v in scores.transitions._asdict().items()})
                with torch.no_grad():
                    emissions = torch.from_numpy(scores.logits[known])[None]
                    mask = torch.ones(1, len(known), dtype=torch.bool)
                    total -= float(head(emissions, torch.from_numpy(labels[known])[None], mask)[0])
        return total / max(count, 1)

    def decoded(self, joined: Mapping[int, UnitScores]) -> dict[int, list[str]]:
        """The labels of each record's units: the most probable ones, or a CRF's most probable sequence."""
        transitions = next((scores.transitions for scores in joined.values() if scores.transitions), None)
        if transitions is None:
            best = [scores.logits.argmax(-1).tolist() for scores in joined.values()]
        else:
            best = most_probable(transitions, [scores.logits for scores in joined.values()])
        return {number: [self.labels[place] for place in labels] for number, labels in zip(joined, best, strict=True)}

    def _padded(self, labels: list[str], size: int) -> list[str]:
        """With a label for the units that were cut off."""
        return labels + [OUTSIDE if OUTSIDE in self.labels or self.spans else self.labels[0]] * (size - len(labels))

    def answer_columns(self, probabilities: bool) -> list[str]:
        """The text and its spans, or its units and their labels."""
        if self.spans:
            return ["text", "spans"]
        return ["text", "tokens", "labels", *(["probabilities"] if probabilities else [])]

    def answers(
        self,
        outputs: Sequence[Any],
        examples: Sequence[Example],
        records: Sequence[Sentence],
        probabilities: bool,
    ) -> list[Answer]:
        """The spans of each text, with their places in it, or the labels of its units."""
        joined = joined_logits(outputs, examples)
        predicted = self.decoded(joined)
        answers: list[Answer] = []
        for number, record in enumerate(records):
            labels = self._padded(predicted[number], len(record.places))
            logits = joined[number].logits.astype(np.float64)
            shares = np.exp(log_softmax(logits))[np.arange(len(logits)), [self._numbers[x] for x in predicted[number]]]
            answers.append(self._answer(record, labels, shares.tolist() if probabilities else None))
        return answers

    def _answer(self, record: Sentence, labels: Sequence[str], shares: Sequence[float] | None) -> Answer:
        if not self.spans:
            answer: Answer = {"text": record.text, "tokens": record.units, "labels": list(labels)}
            return answer if shares is None else answer | {"probabilities": [round(share, 6) for share in shares]}
        found = []
        for span in spans_of(labels):
            start, end = record.places[span.begin][0], record.places[span.end - 1][1]
            one: dict[str, Any] = {"type": span.type, "start": start, "end": end, "text": record.text[start:end]}
            if shares is not None:
                one["probability"] = round(float(np.mean(shares[span.begin : span.end])), 6)
            found.append(one)
        return {"text": record.text, "spans": found}


def refuse_odd_labels(file: RecordFile[Sentence], records: Sequence[Sentence], odd: Sequence[str]) -> None:
    """ValueError naming labels that mark no span among those that do, each with its first line, where there are any."""
    if not odd:
        return
    by_line = isinstance(file, TaggedFile) and file.layout == COLUMNS  # else a sentence is a line
    first: dict[str, int] = {}
    for record in records:
        for place, label in enumerate(record.labels or ()):
            first.setdefault(label, record.line + place * by_line)
    shown = ", ".join(f"{label!r} (line {first[label]:,})" for label in odd[:_SHOWN])
    raise ValueError(
        f"{file.path}: some labels mark spans, as in B-PER, and {len(odd):,} do not: {shown}; a label must be O, or a "
        "prefix of IOB, BIO, BMES, BIOES or BILOU and a type. Mend those lines, or name the column of the labels, such "
        "as --columns token,label,chunk"
    )
