"""Tab-separated files of labelled texts: UTF-8, a line per example, a first line that names the columns.

There is no quoting: a quote is a quote, and a text holds neither tabs nor line ends. A byte order mark and CRLF line
ends are taken off. ``--columns`` names the columns of a file whose first line does not, or uses other names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from finetune.columns import LABEL, NAMES, Columns, guess_columns, order_option, rename_option, usual_name
from preprocess.corpus.text_errors import check_no_nul, invalid_utf8

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SAMPLE_LINES = 100  # enough to guess which column is which


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
        first: the cells of the first line.
    """

    path: str
    names: tuple[str, ...]
    has_header: bool
    first: tuple[str, ...]

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


def open_table(path: str, columns: Columns | None, needed: Sequence[str]) -> Table:
    """Find out what the columns of a file are.

    Args:
        path: the file.
        columns: what ``--columns`` says of them.
        needed: columns that must be there.

    Raises:
        ValueError: if the file is missing, empty or no text, or a needed column is missing or there twice.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if Path(path).is_dir() else 'no such file'}")
    first = next((text for _, text, _ in _lines(path)), None)
    if first is None:
        raise ValueError(f"{path} is empty")
    cells = tuple(cell.strip() for cell in first.split("\t"))
    if columns is None:
        names = tuple(map(usual_name, cells))
    elif columns.renamed:
        names = columns.rename(path, cells)
    else:
        names = columns.order
        if tuple(map(usual_name, cells)) == names:
            raise ValueError(f"{path}: its first line names the columns ({', '.join(cells)}); leave out --columns")
    missing = [name for name in needed if name not in names]
    if missing and columns is None:
        raise ValueError(_no_column(path, missing, first, cells, needed))
    if missing and columns:
        raise ValueError(f"--columns {columns.given}: {path} needs the column(s) {', '.join(missing)} too")
    for name in NAMES:
        if names.count(name) > 1:
            raise ValueError(f"{path}: the column {name} is there {names.count(name)} times ({', '.join(names)})")
    return Table(path, names, has_header=columns is None or bool(columns.renamed), first=cells)


def looks_like_header(table: Table) -> str:
    """The way out where the first line was taken as an example and may name the columns instead."""
    option = rename_option(table.first, table.names)
    renamed = f"name the columns by it: {option}" if option else "give it the names label, text_a (and text_b)"
    if LABEL in table.first:
        renamed = "leave out --columns"
    return (
        f"line 1 ({_shown(chr(9).join(table.first))}) looks like the names of the columns. If it is, {renamed}; if it "
        "is an example, put a line with the names of the columns above it and leave out --columns"
    )


def other_columns(table: Table, rows: Sequence[Row]) -> str:
    """The way out where the column label is not the labels: an option with a better guess, where there is one."""
    sample = [row.cells for row in rows[:SAMPLE_LINES]]
    guess = guess_columns(sample, [""] * len(table.names), [name for name in table.names if name in NAMES])
    way_out = "say with --columns which column holds the labels"
    if guess is None or len({cells[guess.index(LABEL)] for cells in sample}) < 2 or guess == table.names:
        return way_out
    option = rename_option(table.first, guess) if table.has_header else order_option(guess)
    return f"{way_out}, such as {option}" if option else way_out


def _no_column(path: str, missing: Sequence[str], first: str, cells: Sequence[str], needed: Sequence[str]) -> str:
    message = (
        f"{path}: no column {' and no column '.join(missing)} in its first line, which must name the columns, "
        f"separated by tabs; found {_shown(first)}"
    )
    lines = [text.split("\t") for _, text, _ in islice(_lines(path), 1, SAMPLE_LINES)]
    rows = [line for line in lines if len(line) == len(cells)]
    known = [usual_name(cell) for cell in cells]
    renamed = guess_columns(rows, known, needed)
    option = rename_option(cells, renamed) if renamed and rows else None
    label = renamed.index(LABEL) if renamed and LABEL in renamed else None
    if option and (label is None or all(row[label] != cells[label] for row in rows)):  # else it is an example
        message += f". If these are other names for them, say which is which, such as {option}"
    in_order = guess_columns(rows, [""] * len(cells), needed)
    if in_order and not set(known) & set(NAMES):
        message += (
            ". For a file whose first line is an example already, name its columns in their order, such as "
            f"{order_option(in_order)}"
        )
    return message


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
