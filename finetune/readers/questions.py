"""Questions on texts: the JSON layouts of SQuAD 1.1 and 2.0, CMRC 2018, DRCD and CJRC, and tables such as SubjQA's.

A JSON file is read as a whole. An answer is a text and where it begins; one that does not stand there is moved to the
one place where its text is, if there is one. What stands nowhere is not learned, and counts in the metrics as given.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from finetune.config.tasks import FileConfig
from finetune.readers.columns import parse_columns
from finetune.readers.table_lines import format_of
from finetune.readers.tables import Row, Table, open_table

ID, QUESTION, CONTEXT, ANSWER, START, ANSWERS = "id", "question", "context", "answer", "answer_start", "answers"
NAMES = (ID, QUESTION, CONTEXT, ANSWER, START, ANSWERS)
CONTEXTS = (CONTEXT, "review", "passage")  # SubjQA's is a review
IDS = (ID, "q_review_id")
SUBJQA_TEXT, SUBJQA_PLACE = "human_ans_spans", "human_ans_indices"
NOT_FOUND = "ANSWERNOTFOUND"  # SubjQA: an answer, and the last word of each review
NOWHERE = -1
LAYOUT = (
    '{"data": [{"paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ..., "answers": [{"text": ..., '
    '"answer_start": N}]}]}]}]}'
)
MOVED = "answer(s) moved to the one place where their text stands, since it does not at their answer_start"
UNPLACED = "answer(s) stand nowhere, or not at their answer_start and in several places: not learned, measured as given"
SKIPPED = "question(s) skipped, since none of their answers is at a known place"
EMPTY = "question(s) with an empty list of answers, which have no answer"
RESPACED = "answer(s) taken as they stand in the text, with other white space than given"


class Gold(NamedTuple):
    """An answer and where it begins in the context, in code points; NOWHERE where that is not known."""

    text: str
    start: int


class Question(NamedTuple):
    """A question on a text.

    Attributes:
        place: where it is in the file, for messages.
        id: of the file, or its number from 0.
        answers: none where it has no answer; None where they are not known.
    """

    place: str
    id: str
    question: str
    context: str
    answers: tuple[Gold, ...] | None


@dataclass
class QuestionFile:
    """A file of questions.

    Attributes:
        path: the file.
        labelled: whether each question must have answers, or be marked as having none.
        training: leave out questions whose answers cannot be placed.
        table: where it is one; else it is JSON.
        counts: what is to be said, with how often it was met, of the last pass over the file.
    """

    path: str
    labelled: bool
    training: bool = False
    table: Table | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def records(self, advance: Callable[[int], object] = lambda num_bytes: None) -> Iterator[Question]:
        """Read the questions one by one, in the file's order.

        Raises:
            ValueError: naming the place of what cannot be read, or where there is no question.
        """
        self.counts.clear()
        count = 0
        for question in self._of_json(advance) if self.table is None else self._of_table(advance):
            if self.labelled and question.answers is None:
                raise ValueError(
                    f"{self.path}, {question.place}: no answers; a question without an answer must say so: in JSON "
                    '"is_impossible": true or "answers": [], in a table by an empty column answer'
                )
            count += 1
            if self.training and question.answers and all(gold.start == NOWHERE for gold in question.answers):
                self.counts[SKIPPED] += 1
                continue
            yield question
        if not count:
            raise ValueError(f"{self.path} holds no questions")

    def notes(self) -> list[str]:
        """What was met in the file."""
        notes = self.table.notes() if self.table else []
        return [*notes, *(f"{self.path}: {count:,} {text}" for text, count in self.counts.items() if count)]

    def placed(self, context: str, text: str, where: str, given: Any) -> Gold:
        """An answer with its place, moved or counted where it does not stand where it is given.

        Args:
            context: the text.
            text: the answer.
            where: it is in the file, for messages.
            given: its answer_start; None, empty or below 0 where that is not known.
        """
        start = self._start(given, where)
        start = start + len(text) - len(text.lstrip()) if start >= 0 else NOWHERE
        text = text.strip()
        if text and start >= 0 and context.startswith(text, start):
            return Gold(text, start)
        if text and context.count(text) == 1 and context.find(text, context.find(text) + 1) < 0:
            self.counts[MOVED] += 1
            return Gold(text, context.index(text))
        self.counts[UNPLACED] += 1
        return Gold(text, NOWHERE)

    def _start(self, given: Any, where: str) -> int:
        """A place that is given as a number or as the text of one; NOWHERE where it is not known."""
        if given is None or given == "":
            return NOWHERE
        if not isinstance(given, bool):
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                place = float(given)
                if place == int(place):
                    return max(int(place), NOWHERE)
        raise ValueError(
            f"{self.path}, {where}: {START} is {given!r}; it must be the number of characters before the answer, or -1 "
            "where that is not known"
        )

    # -- JSON

    def _of_json(self, advance: Callable[[int], object]) -> Iterator[Question]:
        content = read_whole(self.path)
        advance(os.path.getsize(self.path))
        data = content.get("data") if isinstance(content, dict) else content
        number = 0
        for a, article in enumerate(self._list(data, "data")):
            own = isinstance(article, dict) and "paragraphs" not in article  # CMRC's own layout
            paragraphs = [article] if own else self._list(self._get(article, f"data[{a}]", "paragraphs"), "paragraphs")
            for p, paragraph in enumerate(paragraphs):
                where = f"data[{a}]" if own else f"data[{a}].paragraphs[{p}]"
                context = self._text(paragraph, where, CONTEXT, "context_text")
                for q, qa in enumerate(self._list(self._get(paragraph, where, "qas"), f"{where}.qas")):
                    yield self._question(qa, f"{where}.qas[{q}]", context, number)
                    number += 1

    def _question(self, qa: Any, where: str, context: str, number: int) -> Question:
        question = self._text(qa, where, QUESTION, "query_text")
        name = next((str(qa[key]) for key in (ID, "query_id") if key in qa), str(number))
        given = qa.get(ANSWERS)
        if str(qa.get("is_impossible", False)).lower() == "true":  # CJRC has it as a text
            return Question(where, name, question, context, ())
        if given is None:
            return Question(where, name, question, context, None)
        self.counts[EMPTY] += not self._list(given, f"{where}.answers")
        answers = tuple(self._gold(one, f"{where}.answers[{k}]", context) for k, one in enumerate(given))
        return Question(where, name, question, context, answers)

    def _gold(self, answer: Any, where: str, context: str) -> Gold:
        if isinstance(answer, str):
            return self.placed(context, answer, where, None)
        return self.placed(context, self._text(answer, where, "text"), where, answer.get(START))

    def _get(self, content: Any, where: str, *keys: str) -> Any:
        for key in keys:
            if isinstance(content, dict) and key in content:
                return content[key]
        found = f"has {', '.join(map(str, content))}" if isinstance(content, dict) else f"is {type(content).__name__}"
        raise ValueError(f"{self.path}, {where}: no {keys[0]!r}; it {found}")

    def _text(self, content: Any, where: str, *keys: str) -> str:
        value = self._get(content, where, *keys)
        if not isinstance(value, str):
            raise ValueError(f"{self.path}, {where}: {keys[0]!r} must be a text, not {type(value).__name__}")
        return value

    def _list(self, value: Any, where: str) -> list[Any]:
        if isinstance(value, list):
            return value
        raise ValueError(f"{self.path}: {where} must be a list, not {type(value).__name__}; the layout is {LAYOUT}")

    # -- tables

    def _of_table(self, advance: Callable[[int], object]) -> Iterator[Question]:
        assert self.table is not None
        names = self.table.names
        context_name = next(name for name in CONTEXTS if name in names)
        id_name = next((name for name in IDS if name in names), None)
        for number, row in enumerate(self.table.records(advance)):
            cells = dict(zip(names, row.cells, strict=True))
            context = cells[context_name]
            if SUBJQA_PLACE in cells:
                context = context.removesuffix(NOT_FOUND).rstrip()
            name = cells[id_name] if id_name else str(number)
            answers = self._answers_of(row, cells, context)
            yield Question(f"line {row.line:,}", name, cells[QUESTION], context, answers)

    def _answers_of(self, row: Row, cells: Mapping[str, str], context: str) -> tuple[Gold, ...] | None:
        if SUBJQA_TEXT in cells and SUBJQA_PLACE in cells:
            text, place = cells[SUBJQA_TEXT], re.fullmatch(r"\((\d+), (\d+)\)", cells[SUBJQA_PLACE].strip())
            if text.strip() == NOT_FOUND:
                return ()
            begin, end = (int(place[1]), int(place[2])) if place else (0, 0)
            stands = context[begin:end].strip()
            if text.strip() != stands and "".join(stands.split()) == "".join(text.split()):
                self.counts[RESPACED] += 1
                text = context[begin:end]
            return (self.placed(context, text, f"line {row.line:,}", begin if place else None),)
        if cells.get(ANSWERS):
            return self._answers_of_object(row, cells[ANSWERS], context)
        if ANSWER not in cells:
            return None
        text, start = cells[ANSWER], cells.get(START, "").strip()
        return (self.placed(context, text, f"line {row.line:,}", start),) if text.strip() else ()

    def _answers_of_object(self, row: Row, cell: str, context: str) -> tuple[Gold, ...]:
        try:
            found = json.loads(cell)
        except ValueError as error:
            raise ValueError(f"{self.path}, line {row.line:,}: {ANSWERS} is no JSON: {error}") from None
        if isinstance(found, dict) and isinstance(found.get("text"), list):  # lists side by side
            starts = found.get(START) or [None] * len(found["text"])
            found = [{"text": text, START: start} for text, start in zip(found["text"], starts, strict=False)]
        answers = self._list(found, f"line {row.line:,}, {ANSWERS}")
        self.counts[EMPTY] += not answers
        return tuple(self._gold(one, f"line {row.line:,}, {ANSWERS}[{k}]", context) for k, one in enumerate(answers))


def read_whole(path: str) -> Any:
    """The content of a JSON file; ValueError naming line and column of what is wrong."""
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte at offset {error.start:,}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno:,}, column {error.colno:,}: no JSON: {error.msg}") from None
    except (OSError, RecursionError) as error:
        raise ValueError(f"{path} could not be read: {error}") from None


def open_questions(path: str, files: FileConfig, labelled: bool, training: bool = False) -> QuestionFile:
    """Find out how a file is laid out.

    Args:
        path: a JSON file, or a table whose columns are id, question, context and answer (with answer_start), or
            answers (JSON), or those of SubjQA.
        files: how a table is read.
        labelled: whether the answers must be there.
        training: leave out questions whose answers cannot be placed.

    Raises:
        ValueError: if it is missing, or a table without a question or a context.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if Path(path).is_dir() else 'no such file'}")
    if not files.format and _is_json(path):
        return QuestionFile(path, labelled, training)
    columns = parse_columns(files.columns, NAMES)
    table = open_table(path, columns, (QUESTION,), files, optional=(ANSWER, START, ANSWERS))
    if not any(name in table.names for name in CONTEXTS):
        raise ValueError(f"{path}: no column {CONTEXT}; it has {', '.join(table.names)}")
    return QuestionFile(path, labelled, training, table)


def _is_json(path: str) -> bool:
    """Whether a file is one JSON value, and not a table of JSON Lines."""
    with open(path, "rb") as file:
        head = file.readline().removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith((b"{", b"[")):
        return Path(path).suffix.lower() == ".json"
    try:
        first = json.loads(head)
    except ValueError:
        return True
    return not (isinstance(first, dict) and QUESTION in first) and format_of(path)[0] == "jsonl"
