"""Questions with a few choices each, in the layouts of C3, ChID and SWAG.

C3: a JSON array of ``[[sentences of the context], [{"question", "choice": [...], "answer"}, ...], id]``. ChID: a JSON
object in each line with ``content`` (texts with blanks such as #idiom000001#) and ``candidates``; the right ones stand
in ``groundTruth``, or by blank in the file beside it whose name has ``_answer`` (train.json, train_answer.json). SWAG:
a table (csv, TSV or JSON Lines) with the columns sent1, sent2, ending0, ending1 ... and label; or context, question,
choices (a JSON list) and label. The label is the number of the right choice, from 0, or its text. With endings a label
that is a number is always that of a choice. With choices a file has numbers or texts: what only one of the two can be
decides it for all lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from finetune.config.tasks import FileConfig
from finetune.readers.columns import LABEL, parse_columns
from finetune.readers.table_lines import read_lines
from finetune.readers.tables import Row, Table, open_table

BLANK = re.compile(r"#idiom[^#]*#")
CONTEXT_NAMES = ("sent1", "context", "startphrase", "text_a")
QUESTION_NAMES = ("sent2", "question", "text_b")
ENDING = re.compile(r"ending\d+")
TABLE_NAMES = (LABEL, *CONTEXT_NAMES, *QUESTION_NAMES, "choices", *(f"ending{number}" for number in range(10)))


class Question(NamedTuple):
    """A question and its choices.

    Attributes:
        id: in the file: its number, or the name of the blank.
        context: what comes before; in a cloze the text before the blank.
        question: what a choice answers or goes on; empty where there is none.
        choices: two or more.
        right: number of the right choice, from 0; None where it is not known.
        after: of a cloze, the text behind the blank; None of other questions.
        group: the text that it is about.
    """

    id: str
    context: str
    question: str
    choices: tuple[str, ...]
    right: int | None = None
    after: str | None = None
    group: int = 0


@dataclass
class ChoiceFile:
    """A file of questions.

    Attributes:
        path: the file.
        layout: c3, chid or table.
        table: of the last.
    """

    path: str
    layout: str
    table: Table | None = None

    def records(self, advance: Callable[[int], object] = lambda num_bytes: None) -> Iterator[Question]:
        """Read the questions one by one.

        Raises:
            ValueError: naming file and place of what is no question.
        """
        count = 0
        for question in _READERS[self.layout](self, advance):
            count += 1
            if len(question.choices) < 2:
                raise ValueError(f"{self.path}, {question.id}: {len(question.choices)} choice(s); two are needed")
            yield question
        if not count:
            raise ValueError(f"{self.path} holds no questions")

    def notes(self) -> list[str]:
        """What the table says of itself."""
        return self.table.notes() if self.table else []


def open_choices(path: str, files: FileConfig) -> ChoiceFile:
    """Find out the layout of a file of questions by how it begins.

    Raises:
        ValueError: if it is missing, or a table without the columns of questions.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if Path(path).is_dir() else 'no such file'}")
    with open(path, "rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    layout = "c3" if start.startswith(b"[") else "table"
    if start.startswith(b"{") and {"content", "candidates"} <= set(next(read_lines(path, "jsonl")).keys):
        layout = "chid"
    if layout != "table":
        if files.columns or files.format:
            raise ValueError(f"{path} has the layout of {layout}; --columns and --format are for tables: remove them")
        return ChoiceFile(path, layout)
    table = open_table(path, parse_columns(files.columns, TABLE_NAMES), (), files, optional=(LABEL,))
    has_choices = "choices" in table.names or sum(bool(ENDING.fullmatch(name)) for name in table.names) > 1
    if not has_choices or not set(CONTEXT_NAMES) & set(table.names):
        raise ValueError(
            f"{path}: its columns are {', '.join(table.names)}; questions need a context "
            f"({' or '.join(CONTEXT_NAMES)}) and choices (ending0, ending1, ... or a JSON list in the column choices)"
        )
    return ChoiceFile(path, "table", table)


def _c3(file: ChoiceFile, advance: Callable[[int], object]) -> Iterator[Question]:
    text = Path(file.path).read_bytes()
    advance(len(text))
    try:
        content = json.loads(text.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file.path}: no JSON file: {error}") from None
    for number, entry in enumerate(content):
        try:
            sentences, questions, *rest = entry
            context = " ".join(sentences)
            found = [(item["question"], tuple(item["choice"]), item.get("answer")) for item in questions]
        except (TypeError, ValueError, KeyError, AttributeError):
            raise ValueError(
                f"{file.path}, entry {number + 1:,}: it must be [[sentences], [{{question, choice, answer}}, ...], id]"
            ) from None
        name = rest[0] if rest else str(number + 1)
        for place, (question, choices, answer) in enumerate(found):
            where = f"{name}-{place + 1}"
            yield Question(where, context, question, choices, _right(file.path, where, choices, answer), None, number)


def _chid(file: ChoiceFile, advance: Callable[[int], object]) -> Iterator[Question]:
    answers = _chid_answers(Path(file.path))
    for line in read_lines(file.path, "jsonl"):
        advance(line.num_bytes)
        try:
            entry = json.loads(line.text)
            contents = entry["content"] if isinstance(entry["content"], list) else [entry["content"]]
            candidates, truths = entry["candidates"], entry.get("groundTruth") or []
            blanks = [(text, match) for text in contents for match in BLANK.finditer(text)]
            several = bool(candidates) and isinstance(candidates[0], list)  # a list for each blank
            given = {"groundTruth": len(truths or blanks), "candidates": len(candidates) if several else len(blanks)}
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{file.path}, line {line.number:,}: it must have content and candidates") from None
        for key, count in given.items():
            if count != len(blanks):
                raise ValueError(
                    f"{file.path}, line {line.number:,}: {key} is for {count} blank(s), but content has {len(blanks)}; "
                    "there must be one for each"
                )
        for place, (text, match) in enumerate(blanks):
            own = candidates[place] if several else candidates
            name = f"line {line.number:,}, blank {place + 1}" if truths else match.group()
            answer = truths[place] if place < len(truths) else answers.get(match.group())
            before, after = (BLANK.sub("……", part) for part in (text[: match.start()], text[match.end() :]))
            right = _right(file.path, name, own, answer)
            yield Question(name, before, "", tuple(own), right, after, line.number)


def _chid_answers(path: Path) -> Mapping[str, Any]:
    beside = path.with_name(f"{path.stem}_answer{path.suffix}")
    if not beside.is_file():
        return {}
    try:
        content = json.loads(beside.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{beside}: no JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{beside}: it must be one JSON object, a number for each blank")
    return content


def _table(file: ChoiceFile, advance: Callable[[int], object]) -> Iterator[Question]:
    table = file.table
    assert table is not None
    context = next(table.column(name) for name in CONTEXT_NAMES if name in table.names)
    question = next((table.column(name) for name in QUESTION_NAMES if name in table.names), None)
    endings = [number for number, name in enumerate(table.names) if ENDING.fullmatch(name)]
    endings.sort(key=lambda number: int(table.names[number].removeprefix("ending")))
    label = table.column(LABEL) if LABEL in table.names else None
    rows: Iterable[Row] = table.records(advance)
    numbers: bool | None = True
    if label is not None and not endings:
        rows = list(rows)
        numbers = _are_numbers([(row.cells[label].strip(), _choices(table, row, endings)) for row in rows])
    for row in rows:
        choices = _choices(table, row, endings)
        asked = "" if question is None else row.cells[question]
        where, answer = f"line {row.line:,}", row.cells[label].strip() if label is not None else ""
        if endings and answer.isdecimal():
            right = _right(file.path, where, choices, int(answer))
        else:
            right = _numbered(file.path, where, choices, answer, numbers)
        yield Question(where, row.cells[context], asked, choices, right, None, row.line)


def _choices(table: Table, row: Row, endings: Sequence[int]) -> tuple[str, ...]:
    if endings:
        cells = [row.cells[number] for number in endings]
        while cells and not cells[-1].strip():  # a question with fewer choices
            cells.pop()
        if empty := [table.names[endings[place]] for place, cell in enumerate(cells) if not cell.strip()]:
            raise ValueError(
                f"{table.path}, line {row.line:,}: {empty[0]} is empty, but not what follows; only the last ones may be"
            )
        return tuple(cells)
    cell = row.cells[table.column("choices")]
    try:
        found = json.loads(cell)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError(f"{table.path}, line {row.line:,}: choices is {cell!r}; it must be a JSON list of texts")
    return tuple(map(str, found))


def _readings(answer: str, choices: Sequence[str]) -> tuple[int | None, int | None]:
    """The choice that a label means as a number, and the one that it means as a text; None where it means none."""
    number = int(answer) if answer.isdecimal() and int(answer) < len(choices) else None
    return number, list(choices).index(answer) if answer in choices else None


def _are_numbers(labels: Sequence[tuple[str, Sequence[str]]]) -> bool | None:
    """Whether the labels of a file, each with its choices, are numbers or texts; None where they do not tell."""
    readings = [_readings(answer, choices) for answer, choices in labels]
    told = {text is None for number, text in readings if (number is None) != (text is None)}
    return told.pop() if len(told) == 1 else None


def _numbered(path: str, where: str, choices: Sequence[str], answer: str, numbers: bool | None) -> int | None:
    """The number of the right choice of a table's line; ``numbers`` says what a label is that can be both."""
    number, text = _readings(answer, choices)
    if number is None or text is None or number == text:
        return _right(path, where, choices, answer)
    if numbers is None:
        raise ValueError(
            f"{path}, {where}: the label {answer!r} can be the number of a choice or the text of one, and the other "
            "lines do not tell which; give the choices as columns ending0, ending1, ..., where it is the number"
        )
    return number if numbers else text


def _right(path: str, where: str, choices: Sequence[str], answer: Any) -> int | None:
    """The number of the right choice, given as a number or by its text; None where it is not known."""
    if answer is None or answer == "":
        return None
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    number, text = _readings(answer, choices) if isinstance(answer, str) else (None, None)
    if text is not None or number is not None:
        return number if text is None else text
    raise ValueError(
        f"{path}, {where}: the answer is {answer!r}; it must be one of the choices ({', '.join(choices)}) or its "
        "number, from 0"
    )


_READERS: dict[str, Callable[[ChoiceFile, Callable[[int], object]], Iterator[Question]]] = {
    "c3": _c3,
    "chid": _chid,
    "table": _table,
}
