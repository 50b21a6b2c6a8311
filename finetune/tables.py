"""Tab-separated files of labelled texts: UTF-8, a line per example, a first line that names the columns.

There is no quoting: a quote is a quote, and a text holds neither tabs nor line ends. A byte order mark and CRLF line
ends are taken off. ``--columns`` names the columns of a file whose first line does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from preprocess.text_errors import check_no_nul, invalid_utf8

LABEL, TEXT_A, TEXT_B = "label", "text_a", "text_b"
ALIASES = {"text": TEXT_A, "sentence": TEXT_A}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """A line of a table: its number in the file, from 1, and its cells by the table's column numbers."""

    line: int
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """A file whose columns are known.

    Attributes:
        path: the file.
        names: its columns in order, aliases replaced.
        has_header: whether the first line names the columns.
    """

    path: str
    names: tuple[str, ...]
    has_header: bool

    def rows(self, advance: Callable[[int], object] = lambda num_bytes: None) -> Iterator[Row]:
        """Read the lines behind the header one by one.

        Args:
            advance: told the bytes of each line, for a progress bar.

        Raises:
            ValueError: naming file and line, where a line has another number of cells or is no UTF-8 text, or where
                there is no line.
        """
        line = 0
        for line, text, num_bytes in _lines(self.path):
            advance(num_bytes)
            if line == 1 and self.has_header:
                continue
            cells = text.split("\t")
            if len(cells) != len(self.names):
                raise ValueError(
                    f"{self.path}, line {line:,}: {len(cells)} column(s), but there must be {len(self.names)} "
                    f"({', '.join(self.names)}), separated by tabs; the line is {_shown(text)}"
                )
            yield Row(line, cells)
        if line <= self.has_header:
            raise ValueError(f"{self.path} holds no examples, only a first line that names the columns")

    def column(self, name: str) -> int:
        """Number of a column that is there."""
        return self.names.index(name)


def parse_columns(given: str | None) -> tuple[str, ...] | None:
    """Column names of ``--columns label,text_a,text_b``."""
    return None if given is None else tuple(name.strip() for name in given.split(","))


def open_table(path: str, columns: Sequence[str] | None, needed: Sequence[str]) -> Table:
    """Find out what the columns of a file are.

    Args:
        path: the file.
        columns: their names, where the file's first line does not name them.
        needed: columns that must be there.

    Raises:
        ValueError: if the file is missing, empty or no text, or a needed column is missing or there twice.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if Path(path).is_dir() else 'no such file'}")
    first = next((text for _, text, _ in _lines(path)), None)
    if first is None:
        raise ValueError(f"{path} is empty")
    cells = [cell.strip() for cell in first.split("\t")]
    if columns is None:
        names = tuple(ALIASES.get(cell, cell) for cell in cells)
        missing = [name for name in needed if name not in names]
        if missing:
            raise ValueError(_no_column(path, missing, first, cells, needed))
    else:
        names = tuple(ALIASES.get(name, name) for name in columns)
        if [ALIASES.get(cell, cell) for cell in cells] == list(names):
            raise ValueError(f"{path}: its first line names the columns ({', '.join(cells)}); leave out --columns")
        missing = [name for name in needed if name not in names]
        if missing:
            raise ValueError(f"--columns {','.join(columns)}: {path} needs the column(s) {', '.join(missing)} too")
    for name in (LABEL, TEXT_A, TEXT_B):
        if names.count(name) > 1:
            raise ValueError(f"{path}: the column {name} is there {names.count(name)} times ({', '.join(names)})")
    return Table(path, names, has_header=columns is None)


def _no_column(path: str, missing: Sequence[str], first: str, cells: Sequence[str], needed: Sequence[str]) -> str:
    suggested = [*needed, *(name for name in (TEXT_A, TEXT_B) if name not in needed)]
    suggested = (suggested + ["other"] * len(cells))[: max(len(cells), len(needed))]
    return (
        f"{path}: no column {' and no column '.join(missing)} in its first line, which must name the columns, "
        f"separated by tabs; found {_shown(first)}. For a file without such a line name its columns in their order, "
        f"such as --columns {','.join(suggested)}"
    )


def _lines(path: str) -> Iterator[tuple[int, str, int]]:
    """(number from 1, text without line end, bytes) of each line; only line feeds end a line, as in every TSV tool."""
    offset = 0
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                check_no_nul(path, offset, raw)
                start = len(BYTE_ORDER_MARK) if number == 1 and raw.startswith(BYTE_ORDER_MARK) else 0
                try:
                    text = raw[start:].decode("utf-8")
                except UnicodeDecodeError as error:
                    raise invalid_utf8(path, offset + start + error.start) from None
                yield number, text.removesuffix("\n").removesuffix("\r"), len(raw)
                offset += len(raw)
    except OSError as error:
        raise ValueError(f"{path} could not be read: {error.strerror}") from None


def _shown(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")
