"""Files of answers: tab-separated, csv or JSON lines by their name; whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from finetune.tasks.base import Answer

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class AnswerWriter(ABC):
    """Writes answers, a line each."""

    def __init__(self, file: TextIO, columns: Sequence[str]) -> None:
        self.file, self.columns = file, list(columns)

    @abstractmethod
    def write(self, answer: Answer) -> None:
        """Write one answer."""

    def finish(self) -> None:
        """Write what stands behind the last answer."""
        return

    def notes(self) -> list[str]:
        """What of the answers is not in the file."""
        return []


class TsvWriter(AnswerWriter):
    """A first line with the columns' names, then a line for each answer.

    Tabs, line ends and backslashes of a text are written as \\t, \\n, \\r and two backslashes.
    """

    def __init__(self, file: TextIO, columns: Sequence[str]) -> None:
        super().__init__(file, columns)
        self._line(columns)

    def write(self, answer: Answer) -> None:
        """Write one answer."""
        self._line([cell_of(answer.get(column)) for column in self.columns])

    def _line(self, cells: Sequence[str]) -> None:
        self.file.write("\t".join(map(escaped, cells)) + "\n")


class CsvWriter(AnswerWriter):
    """The same, separated by commas, with quotes where they are needed (RFC 4180)."""

    def __init__(self, file: TextIO, columns: Sequence[str]) -> None:
        super().__init__(file, columns)
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(columns)

    def write(self, answer: Answer) -> None:
        """Write one answer."""
        self._writer.writerow([cell_of(answer.get(column)) for column in self.columns])


class JsonWriter(AnswerWriter):
    """A JSON object in each line."""

    def write(self, answer: Answer) -> None:
        """Write one answer."""
        self.file.write(json.dumps(answer, ensure_ascii=False) + "\n")


class ObjectWriter(AnswerWriter):
    """One JSON object, as the evaluation of a benchmark reads it: a name and a text for each answer.

    Of answers with one name the first is written, and the others are counted.
    """

    def __init__(self, file: TextIO, columns: Sequence[str]) -> None:
        super().__init__(file, columns)
        self._names: set[str] = set()
        self._repeated = 0

    def write(self, answer: Answer) -> None:
        """Write one answer."""
        name, text = (answer[column] for column in self.columns)
        if name in self._names:
            self._repeated += 1
            return
        before = ",\n" if self._names else "{\n"
        self.file.write(f"{before}{json.dumps(name, ensure_ascii=False)}: {json.dumps(text, ensure_ascii=False)}")
        self._names.add(name)

    def finish(self) -> None:
        """Close the object."""
        self.file.write("\n}\n" if self._names else "{}\n")

    def notes(self) -> list[str]:
        """How many answers are left out."""
        left_out = (
            f"{self._repeated:,} answer(s) left out, whose {self.columns[0]} an earlier one has; a .tsv, .csv or "
            ".jsonl file has them all"
        )
        return [left_out] if self._repeated else []


WRITERS: dict[str, type[AnswerWriter]] = {".csv": CsvWriter, ".jsonl": JsonWriter, ".json": JsonWriter}  # else TSV


def writer_of(path: str, columns: Sequence[str], file: TextIO, official: tuple[str, str] | None = None) -> AnswerWriter:
    """The writer for a file by its name: csv, JSON lines, or tab-separated for any other.

    Args:
        path: of the file.
        columns: of the answers.
        file: opened for writing.
        official: the columns of a benchmark's own JSON object, which ``.json`` then is.
    """
    suffix = Path(path).suffix.lower()
    if official and suffix == ".json":
        return ObjectWriter(file, official)
    return WRITERS.get(suffix, TsvWriter)(file, columns)


def cell_of(value: Any) -> str:
    """A value as the text of a cell: six digits of a float, JSON for lists and objects, empty for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def escaped(text: str) -> str:
    """A text without tabs and line ends, from which it can be read back."""
    return text.translate(_ESCAPES)


def output_problems(path: str | None, source: str | None) -> list[str]:
    """What stands in the way of an output file, if there is one; ``source`` is the input, which it must not replace."""
    if path is None:
        return []
    output = Path(path)
    if output.is_dir():
        return [f"--output {output} is a folder; give the name of a file"]
    if not output.parent.is_dir():
        return [f"--output {output}: the folder {output.parent} does not exist"]
    if source is not None and output.exists() and Path(source).exists() and output.samefile(source):
        return [f"--output {output} is the input; give another name"]
    return []


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[TextIO]:
    """A file under a temporary name, renamed to ``path`` when all went well, removed when not.

    Raises:
        ValueError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"{path} could not be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
