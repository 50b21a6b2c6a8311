"""The lines of a table in its format, one record after another; what is malformed is marked, not dropped.

``tsv`` has no quoting: a quote is a quote, and a text holds neither tabs nor line ends. ``csv`` is RFC 4180: commas,
and quotes around a cell that holds commas, quotes (doubled) or line ends. ``jsonl`` has a JSON object in each line,
whose keys are the columns. A byte order mark and CRLF line ends are taken off.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from preprocess.corpus.text_errors import check_no_nul

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BY_NAME = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".tsv": "tsv"}


class Line(NamedTuple):
    """A record of a table, which in csv may take several lines of the file.

    Attributes:
        number: of its first line in the file, from 1.
        cells: in the file's order; empty where it is malformed.
        keys: of a JSON object, a name for each cell.
        num_bytes: it has in the file.
        text: as it stands there, without the last line end.
        problem: what is malformed, empty where nothing is.
        bad_byte: offset in the file of the first byte that is not UTF-8, -1 where there is none.
    """

    number: int
    cells: list[str]
    keys: tuple[str, ...]
    num_bytes: int
    text: str
    problem: str = ""
    bad_byte: int = -1


class _Physical(NamedTuple):
    number: int
    text: str  # with its line end
    num_bytes: int
    bad_byte: int


def format_of(path: str) -> tuple[str, str]:
    """The format of a file by its name and first line, and what is to say about it.

    Raises:
        ValueError: if it cannot be read or is no text.
    """
    first = next(_physical_lines(path), None)
    text = first.text if first else ""
    named = BY_NAME.get(Path(path).suffix.lower())
    if named == "csv" and "\t" in text:
        return (
            "tsv",
            f"{path}: its first line has tabs, so it is read as tab-separated, without quoting, for all its name",
        )
    if named in ("csv", "jsonl"):
        return named, ""
    return ("jsonl" if text.startswith("{") and not _json_line(text)[2] else "tsv"), ""


def read_lines(path: str, format: str) -> Iterator[Line]:
    """Read a table's lines, its first line of names too.

    Args:
        path: the file.
        format: tsv, csv or jsonl.

    Raises:
        ValueError: if it cannot be read or is no text.
    """
    return _READERS[format](path)


def _tsv_lines(path: str) -> Iterator[Line]:
    for number, text, num_bytes, bad_byte in _physical_lines(path):
        text = _without_end(text)
        yield Line(number, text.split("\t"), (), num_bytes, text, "", bad_byte)


def _json_lines(path: str) -> Iterator[Line]:
    for number, text, num_bytes, bad_byte in _physical_lines(path):
        cells, keys, problem = _json_line(text)
        yield Line(number, cells, keys, num_bytes, _without_end(text), problem, bad_byte)


def _json_line(text: str) -> tuple[list[str], tuple[str, ...], str]:
    """The cells and keys of a JSON object, or what is wrong with it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return [], (), f"no JSON object ({error})"
    if not isinstance(content, dict):
        hint = "; a file of one JSON array must be written with an object in each line" * isinstance(content, list)
        return [], (), f"no JSON object but {type(content).__name__}{hint}"
    cells = [cell_text(value) for value in content.values()]
    if "\\ud" in text.lower():
        try:
            "".join(cells).encode()
        except UnicodeEncodeError:
            return [], (), "half of a surrogate pair (\\ud...), which is no character"
    return cells, tuple(content), ""


def cell_text(value: Any) -> str:
    """A value of a JSON object as the text of a cell: a string as it is, nothing for null, JSON for all others."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _CsvInput:
    """What a csv reader takes lines from; remembers those of the record that it reads."""

    def __init__(self, path: str) -> None:
        self._lines = _physical_lines(path)
        self.taken: list[_Physical] = []

    def __iter__(self) -> _CsvInput:
        return self

    def __next__(self) -> str:
        self.taken.append(next(self._lines))
        return self.taken[-1].text


def _csv_lines(path: str) -> Iterator[Line]:
    source = _CsvInput(path)
    reader = csv.reader(source, strict=True)
    while True:
        source.taken.clear()
        cells, problem = [], ""
        try:
            cells = next(reader) or [""]  # it makes no cell of an empty line
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"no csv: {error} (a quote in a text must be doubled, and quotes put around the text)"
        taken = source.taken
        text = _without_end("".join(line.text for line in taken))
        bad_byte = next((line.bad_byte for line in taken if line.bad_byte >= 0), -1)
        num_bytes = sum(line.num_bytes for line in taken)
        yield Line(taken[0].number, cells, (), num_bytes, text, problem, bad_byte)


_READERS: dict[str, Callable[[str], Iterator[Line]]] = {"tsv": _tsv_lines, "csv": _csv_lines, "jsonl": _json_lines}


def _physical_lines(path: str) -> Iterator[_Physical]:
    """The lines of a text; only line feeds end a line. Bytes that are not UTF-8 become U+FFFD."""
    offset = 0
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                check_no_nul(path, offset, raw)
                start = len(BYTE_ORDER_MARK) if number == 1 and raw.startswith(BYTE_ORDER_MARK) else 0
                try:
                    yield _Physical(number, raw[start:].decode("utf-8"), len(raw), -1)
                except UnicodeDecodeError as error:
                    bad_byte = offset + start + error.start
                    yield _Physical(number, raw[start:].decode("utf-8", "replace"), len(raw), bad_byte)
                offset += len(raw)
    except OSError as error:
        raise ValueError(f"{path} could not be read: {error.strerror}") from None


def _without_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
