"""The answer to a question as a span of a text, or none (SQuAD 1.1, 2.0, CMRC 2018 and the like)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, Targets
from engine.models.heads import SpanHead
from engine.models.layout import PackedLayout
from engine.models.model import Model
from engine.objectives.base import LossTerm, cross_entropy_term, encode
from finetune.config.tasks import FileConfig, QuestionAnsweringConfig
from finetune.features.answer_search import AnswerWindow, Candidate, best_answers, no_answer_score
from finetune.features.sequences import Ids, SequenceBuilder
from finetune.features.windows import windows_of
from finetune.metrics.answers import CHINESE, ENGLISH, best_threshold, check_nltk, score_answer
from finetune.readers.questions import NOWHERE, Question, QuestionFile, open_questions
from finetune.readers.sentences import is_ideographic
from finetune.tasks.base import Answer, Example, Int64, RecordFile, Task
from finetune.tasks.classification import log_softmax
from kernels.cross_entropy import IGNORE_INDEX

_SAMPLE = 200


class FoundAnswer(NamedTuple):
    """An answer's text and place."""

    text: str
    place: Candidate


class QuestionAnswering(Task[Question]):
    """First and last token of the answer, by cross-entropy over the tokens (arXiv:1810.04805, sections 4.2, 4.3)."""

    kind = "question_answering"
    main_figure = "f1"
    official_columns = ("id", "answer")

    def __init__(
        self, config: QuestionAnsweringConfig, language: str, no_answers: bool, threshold: float = 0.0
    ) -> None:
        """Say what answers there are.

        Args:
            config: of the task.
            language: en or zh: whose metric it is.
            no_answers: whether a question may have none.
            threshold: what a question has no answer above: the score of none less that of the best answer.
        """
        self.name = self.kind
        self.config, self.language, self.no_answers, self.threshold = config, language, no_answers, threshold
        self._divided: dict[str, int] = {}  # file -> questions whose answer no window holds

    # -- files

    @classmethod
    def open_training(cls, path: str, files: FileConfig, config: Any) -> QuestionFile:
        """Open a file of questions with answers."""
        return open_questions(path, files, labelled=True, training=True)

    def open(self, path: str, files: FileConfig, labelled: bool) -> QuestionFile:
        """Open a file of questions."""
        return open_questions(path, files, labelled)

    @classmethod
    def for_training(
        cls, file: RecordFile[Question], records: Sequence[Question], config: QuestionAnsweringConfig
    ) -> Self:
        """Find out whether questions may have no answer, and the language."""
        if not records:
            raise ValueError(f"{file.path}: no question has an answer at a known place; {'; '.join(file.notes())}")
        language = config.metric
        if language is None:
            language = CHINESE if is_ideographic("".join(record.context for record in records[:_SAMPLE])) else ENGLISH
        if language == CHINESE:
            check_nltk()
        return cls(config, language, any(not record.answers for record in records))

    @classmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The task that a model was trained for."""
        config = QuestionAnsweringConfig(**{name: settings[name] for name in asdict(QuestionAnsweringConfig())})
        return cls(config, str(settings["language"]), bool(settings["no_answers"]), float(settings["threshold"]))

    def settings(self) -> dict[str, Any]:
        """How texts are cut and answers chosen."""
        own = {"language": self.language, "no_answers": self.no_answers, "threshold": self.threshold}
        return asdict(self.config) | own

    def has_answers(self, file: RecordFile[Question], records: Sequence[Question]) -> bool:
        """Whether the answers are known; a file in which no question has one is one without answers."""
        return all(record.answers is not None for record in records) and any(record.answers for record in records)

    def groups(self, file: RecordFile[Question], records: Sequence[Question]) -> Sequence[Hashable]:
        """The texts: questions on one of them stay together."""
        return [record.context for record in records]

    def notes(self, file: RecordFile[Question]) -> list[str]:
        """What was met in the file, and answers that are longer than what two windows share."""
        if not (divided := self._divided.get(file.path)):
            return file.notes()
        text = "question(s) have an answer that no window holds whole, and are not learned; a smaller doc_stride helps"
        return [*file.notes(), f"{file.path}: {divided:,} {text}"]

    # -- features

    def targets(self, file: RecordFile[Question], records: Sequence[Question]) -> list[Int64]:
        """Where the answers are in the texts: [start, end) of the first one with a known place.

        (0, 0) for no answer, and IGNORE_INDEX twice where no answer has a known place.
        """
        targets = []
        for record in records:
            gold = next((gold for gold in record.answers or () if gold.start != NOWHERE), None)
            if gold is not None:
                place = (gold.start, gold.start + len(gold.text))
            else:
                place = (IGNORE_INDEX, IGNORE_INDEX) if record.answers else (0, 0)
            targets.append(np.array(place, np.int64))
        return targets

    def examples(
        self,
        builder: SequenceBuilder,
        file: RecordFile[Question],
        records: Sequence[Question],
        targets: Sequence[Any] | None,
    ) -> list[Example]:
        """The question with each of the windows over its text; a long question is cut and counted."""
        most = min(self.config.max_question_length, builder.room(2) // 2)
        ids, counts = builder.tokenizer.encode([record.question for record in records])
        questions = np.split(ids, np.cumsum(counts)[:-1])
        encoded: dict[str, tuple[Ids, Int64, Int64]] = {}
        made: list[Example] = []
        divided = 0
        for number, (record, question) in enumerate(zip(records, questions, strict=True)):
            if record.context not in encoded:
                encoded.clear()  # questions on a text follow each other
                encoded[record.context] = builder.tokenizer.encode_with_offsets(record.context)
            windows = self._windows(builder, question[:most], *encoded[record.context])
            wanted: list[Any] = [None] * len(windows)
            if targets is not None:
                wanted = [token_target(window, targets[number]) for _, window in windows]
                held = [place[0] != window.none for place, (_, window) in zip(wanted, windows, strict=True)]
                if targets[number][1] > 0 and not any(held):
                    divided += 1
                    wanted = [np.full(2, IGNORE_INDEX, np.int64)] * len(windows)
            for (sequence, window), target in zip(windows, wanted, strict=True):
                made.append(Example((sequence,), target, number, len(question) > most, window))
        if divided:
            self._divided[file.path] = divided
        return made

    def _windows(
        self, builder: SequenceBuilder, question: Ids, ids: Ids, starts: Int64, ends: Int64
    ) -> list[tuple[Any, AnswerWindow]]:
        """Sequences and where their text is; the first token stands for no answer, or the last of a causal model."""
        room = builder.room(2) - len(question)
        step = self.config.doc_stride or max(room // 2, 1)
        found = []
        for begin, end, own_begin, own_end in windows_of([1] * len(ids), room, step):
            sequence = builder.of_ids(question, ids[begin:end])
            none = 0 if builder.num_before else len(sequence.tokens) - 1
            places = starts[begin:end].astype(np.int64), ends[begin:end].astype(np.int64)
            found.append((sequence, AnswerWindow(sequence.second, *places, own_begin - begin, own_end - begin, none)))
        return found

    def with_targets(self, batch: PackedBatch, examples: Sequence[Example]) -> PackedBatch:
        """The batch with the places of first and last tokens in their sequences, two for each: [2S]."""
        labels = torch.from_numpy(np.concatenate([np.asarray(example.target, np.int64) for example in examples]))
        target = Targets(torch.arange(len(labels)), labels)
        return replace(batch, targets={self.name: target}, counts={self.name: int((labels != IGNORE_INDEX).sum())})

    # -- model

    def make_head(self, arch: ArchConfig) -> nn.Module:
        """Two scores for each token."""
        return SpanHead(arch)

    def exported_heads(self, arch: ArchConfig) -> tuple[str, ...]:
        """That of transformers' ForQuestionAnswering."""
        return (self.kind,) if self.name == self.kind else ()

    def logits(self, model: Model, batch: PackedBatch) -> Tensor:
        """Scores of each token as the first and as the last of the answer: [N, 2]."""
        logits: Tensor = model.heads[self.name](encode(model, batch))
        return logits

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Cross-entropy of the first and of the last token, each over all tokens of its sequence."""
        target, count = batch.targets[self.name], batch.counts[self.name]
        rows = by_sequence(self.logits(model, batch), batch.layout)[target.index]  # [M, T]
        return {self.name: cross_entropy_term(rows, target.labels, count, with_accuracy)}

    def outputs(self, model: Model, batch: PackedBatch, examples: Sequence[Example]) -> list[Any]:
        """Scores of the tokens of each example: [n, 2] fp32."""
        logits = self.logits(model, batch).float().cpu().numpy()
        ends = np.cumsum([len(example.sequences[0].tokens) for example in examples])
        return [part.copy() for part in np.split(logits[: ends[-1]], ends[:-1])]

    # -- results

    def tune(self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Question]) -> None:
        """Set the threshold to the one with the best F1 on these questions, where some have no answer."""
        if not self.no_answers:
            return
        found = self._found(outputs, examples, records, 1)
        scores = [self._score(records[number], best[0].text if best else "").f1 for number, _, best in found]
        has_answer = [bool(records[number].answers) for number, _, _ in found]
        self.threshold = best_threshold([score for _, score, _ in found], scores, has_answer)

    def take_up(self, settings: Mapping[str, Any]) -> None:
        """Go on with the threshold of an earlier start."""
        self.threshold = float(settings.get("threshold", self.threshold))

    def figures(
        self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Question]
    ) -> dict[str, float]:
        """Mean loss, exact match and F1; where questions may have no answer those of the two kinds too."""
        scores: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for number, none, best in self._found(outputs, examples, records, 1):
            answer = best[0].text if best and not self._has_none(none) else ""
            scores[bool(records[number].answers)].append(self._score(records[number], answer))
        everything = scores[True] + scores[False]
        means = np.mean(everything, axis=0) if everything else np.zeros(2)
        figures = {"loss": mean_loss(outputs, examples), "exact_match": float(means[0]), "f1": float(means[1])}
        if self.no_answers:
            for has_answer, name in ((True, "answerable"), (False, "unanswerable")):
                if scores[has_answer]:
                    figures[f"f1_{name}"] = float(np.mean(scores[has_answer], axis=0)[1])
            figures["threshold"] = self.threshold
        return figures

    def _score(self, record: Question, answer: str) -> Any:
        return score_answer(answer, [gold.text for gold in record.answers or ()], self.language, self.no_answers)

    def _has_none(self, score: float) -> bool:
        return self.no_answers and score > self.threshold

    def _found(
        self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Question], count: int
    ) -> list[tuple[int, float, list[FoundAnswer]]]:
        """For each record its number, the score of no answer less that of the best one, and the best ones."""
        windows: dict[int, tuple[list[AnswerWindow], list[Any]]] = {}
        for output, example in zip(outputs, examples, strict=True):
            details, logits = windows.setdefault(example.record, ([], []))
            details.append(example.details)
            logits.append(output)
        found = []
        for number, (details, logits) in windows.items():
            text = records[number].context
            best = best_answers(details, logits, text, count, self.config.max_answer_length)
            none = no_answer_score(details, logits)
            answers = [FoundAnswer(text[one.start : one.end], one) for one in best]
            found.append((number, none - best[0].score if best else np.inf, answers))
        return found

    def answer_columns(self, probabilities: bool) -> list[str]:
        """The answer and its place in the text; with probabilities also how sure it is, and the next best ones."""
        more = ["probability", *(["no_answer_score"] if self.no_answers else []), "n_best"]
        return ["id", "answer", "start", "end", *(more if probabilities else [])]

    def answers(
        self,
        outputs: Sequence[Any],
        examples: Sequence[Example],
        records: Sequence[Question],
        probabilities: bool,
    ) -> list[Answer]:
        """The best answer to each question; empty for none."""
        found = self._found(outputs, examples, records, self.config.n_best if probabilities else 1)
        return [self._answer(records[number], none, best, probabilities) for number, none, best in found]

    def _answer(self, record: Question, none: float, best: Sequence[FoundAnswer], probabilities: bool) -> Answer:
        answer: Answer = {"id": record.id, "answer": "", "start": None, "end": None}
        chosen = best[0] if best and not self._has_none(none) else None
        if chosen is not None:
            answer |= {"answer": chosen.text, "start": chosen.place.start, "end": chosen.place.end}
        if not probabilities:
            return answer
        shares = np.exp(log_softmax(np.array([one.place.score for one in best]))).tolist() if best else []
        answer["probability"] = shares[0] if chosen is not None else None
        if self.no_answers:
            answer["no_answer_score"] = none if best else None
        answer["n_best"] = [
            {"text": one.text, "start": one.place.start, "end": one.place.end, "probability": round(share, 6)}
            for one, share in zip(best, shares, strict=True)
        ]
        return answer


def token_target(window: AnswerWindow, place: Int64) -> Int64:
    """First and last token of an answer [start, end) in a window's sequence, [2]; those of no answer where it has none.

    IGNORE_INDEX stays.
    """
    start, end = place.tolist()
    if start == IGNORE_INDEX:
        return place
    inside = np.flatnonzero((window.starts < end) & (window.ends > start))
    whole = len(inside) > 0 and window.starts[inside[0]] <= start and window.ends[inside[-1]] >= end
    if start == end or not whole:
        return np.array([window.none, window.none], np.int64)
    return window.first + inside[[0, -1]].astype(np.int64)


def by_sequence(logits: Tensor, layout: PackedLayout) -> Tensor:
    """Scores by sequence: [N, 2] to [2S, T] fp32, two rows for each sequence, very low behind its end."""
    boundaries, longest = layout.cu_seqlens.long(), max(layout.max_length, 1)
    grid = boundaries[:-1, None] + torch.arange(longest, device=boundaries.device)  # [S, T]
    outside = grid >= boundaries[1:, None]
    table = logits.float()[grid.clamp(max=len(logits) - 1)]  # [S, T, 2]
    table = table.masked_fill(outside[..., None], torch.finfo(torch.float32).min / 2)
    return table.transpose(1, 2).reshape(-1, longest)  # [2S, T]


def mean_loss(outputs: Sequence[Any], examples: Sequence[Example]) -> float:
    """Mean cross-entropy of first and last tokens over the windows whose answer is known."""
    total, count = 0.0, 0
    for output, example in zip(outputs, examples, strict=True):
        if example.target is None or int(np.asarray(example.target)[0]) == IGNORE_INDEX:
            continue
        scores = torch.from_numpy(output).double().T  # [2, n]
        total += float(F.cross_entropy(scores, torch.from_numpy(np.asarray(example.target)), reduction="sum"))
        count += 2
    return total / max(count, 1)
