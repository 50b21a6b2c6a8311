"""Tables: tab-separated, csv or JSON Lines files of UTF-8, a record in each line.

The first line names the columns; in JSON Lines the keys do. ``--columns`` names the columns of a file whose first line
does not, or uses other names. ``finetune.readers.table_lines`` has the formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from finetune.config.tasks import FileConfig
from finetune.readers.columns import LABEL, NAMES, Columns, guess_columns, order_option, rename_option, usual_name
from finetune.readers.table_lines import Line, format_of, read_lines
from preprocess.corpus.text_errors import invalid_utf8

SAMPLE_LINES = 100  # enough to guess which column is which
SHOWN_LINES = 20  # that were skipped, by number


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
        has_header: whether its first line names the columns.
        first: the cells of the first line; the first object's keys in JSON Lines.
        format: tsv, csv or jsonl.
        needed: columns that each JSON object must have.
        more: whether lines may have more cells than there are columns; they are not used.
        skip_bad: leave malformed lines out and count them, where they are errors else.
        remarks: what is to say of the file before it is read.
        skipped: numbers of the lines that were left out, of the last pass over the file.
        other_keys: of JSON objects, that the first does not have, with their number; they are not used.
    """

    path: str
    names: tuple[str, ...]
    has_header: bool
    first: tuple[str, ...]
    format: str = "tsv"
    needed: tuple[str, ...] = ()
    more: bool = False
    skip_bad: bool = False
    remarks: tuple[str, ...] = ()
    skipped: list[int] = field(default_factory=list, compare=False)
    other_keys: dict[str, int] = field(default_factory=dict, compare=False)

    def records(self, advance: Callable[[int], object] = lambda num_bytes: None) -> Iterator[Row]:
        """Read the lines behind the header one by one.

        Args:
            advance: told the bytes of each line, for a progress bar.

        Raises:
            ValueError: naming file and line, where a line has another number of cells, is no UTF-8 text or otherwise
                malformed (with ``skip_bad`` it is counted), or where there is no line.
        """
        self.skipped.clear()
        self.other_keys.clear()
        num_rows = 0
        for place, line in enumerate(read_lines(self.path, self.format)):
            advance(line.num_bytes)
            if place == 0 and self.has_header and self.format != "jsonl":
                continue
            cells = self._cells(line)
            if cells is None:
                self.skipped.append(line.number)
                continue
            num_rows += 1
            yield Row(line.number, cells)
        if not num_rows:
            what = f"{len(self.skipped):,} malformed line(s)" if self.skipped else "a first line that names the columns"
            raise ValueError(f"{self.path} holds no examples, only {what}")

    def _cells(self, line: Line) -> list[str] | None:
        """The cells of a line by column, None where it is malformed and to be skipped."""
        cells, problem = line.cells, line.problem
        if line.keys:
            found = dict(zip(self._our_names(line.keys), cells, strict=True))
            if missing := [name for name in self.needed if name not in found]:
                problem = f"no key {' and no key '.join(missing)}"
            for key in found.keys() - set(self.names):
                self.other_keys[key] = self.other_keys.get(key, 0) + 1
            cells = [found.get(name, "") for name in self.names]
        elif self.more and len(cells) > len(self.names):
            cells = cells[: len(self.names)]
        elif not problem and len(cells) != len(self.names):
            separator = "tabs" if self.format == "tsv" else "commas"
            problem = (
                f"{len(cells)} column(s), but there must be {len(self.names)} ({', '.join(self.names)}), separated by "
                f"{separator}"
            )
            if len(cells) > len(self.names):
                problem += "; for lines with more columns, which are not used, let --columns end in ,..."
        if not problem and line.bad_byte < 0:
            return cells
        if self.skip_bad:
            return None
        if line.bad_byte >= 0:
            raise invalid_utf8(self.path, line.bad_byte)
        raise ValueError(
            f"{self.path}, line {line.number:,}: {problem}; the line is {_shown(line.text)} (--bad_lines skip leaves "
            "malformed lines out and counts them)"
        )

    def _our_names(self, keys: Sequence[str]) -> list[str]:
        ours = dict(zip(self.first, self.names, strict=True))
        return [ours.get(key, key) for key in keys]

    def notes(self) -> list[str]:
        """How the file was read, and what of it was left out."""
        notes = list(self.remarks)
        if self.skipped:
            shown = ", ".join(f"{number:,}" for number in self.skipped[:SHOWN_LINES])
            more = ", ..." if len(self.skipped) > SHOWN_LINES else ""
            notes.append(f"{self.path}: {len(self.skipped):,} malformed line(s) skipped: {shown}{more}")
        if self.other_keys:
            told = ", ".join(f"{key} ({count:,} lines)" for key, count in sorted(self.other_keys.items()))
            notes.append(f"{self.path}: key(s) that the first line does not have are not used: {told}")
        return notes

    def column(self, name: str) -> int:
        """Number of a column that is there."""
        return self.names.index(name)


def open_table(
    path: str,
    columns: Columns | None,
    needed: Sequence[str],
    files: FileConfig = FileConfig(),  # noqa: B008  # frozen
    optional: Sequence[str] = (),
) -> Table:
    """Find out what the columns of a file are.

    Args:
        path: the file.
        columns: what ``--columns`` says of them.
        needed: columns that must be there.
        files: its format, where that is given, and what happens to malformed lines.
        optional: columns that ``columns`` may name though the file does not have them, such as the label of a file to
            predict.

    Raises:
        ValueError: if the file is missing, empty or no text, or a needed column is missing or there twice.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if Path(path).is_dir() else 'no such file'}")
    format, remark = (files.format, "") if files.format else format_of(path)
    first = next(read_lines(path, format), None)
    if first is None:
        raise ValueError(f"{path} is empty")
    if first.problem:
        raise ValueError(f"{path}, line 1: {first.problem}; the line is {_shown(first.text)}")
    if first.bad_byte >= 0:
        raise invalid_utf8(path, first.bad_byte)
    cells = first.keys or tuple(cell.strip() for cell in first.cells)
    names = _names(path, columns, cells, optional, format)
    missing = [name for name in needed if name not in names]
    if missing and columns is None:
        raise ValueError(_no_column(path, format, missing, first.text, cells, needed))
    if missing and columns:
        raise ValueError(f"--columns {columns.given}: {path} needs the column(s) {', '.join(missing)} too")
    for name in dict.fromkeys((*NAMES, *needed)):
        if names.count(name) > 1:
            raise ValueError(f"{path}: the column {name} is there {names.count(name)} times ({', '.join(names)})")
    return Table(
        path,
        names,
        has_header=columns is None or not columns.order,
        first=cells[: len(names)],
        format=format,
        needed=tuple(needed),
        more=columns is not None and columns.more,
        skip_bad=files.bad_lines == "skip",
        remarks=(remark,) if remark else (),
    )


def _names(
    path: str, columns: Columns | None, cells: tuple[str, ...], optional: Sequence[str], format: str
) -> tuple[str, ...]:
    """Our names of a file's columns, of which ``cells`` is the first line."""
    usual = tuple(map(usual_name, cells))
    if columns is None:
        return usual
    if columns.renamed:
        return columns.rename(path, cells, optional)
    if format == "jsonl":
        raise ValueError(
            f"--columns {columns.given}: {path} is JSON Lines, whose keys name the columns ({', '.join(cells)}); leave "
            "out --columns, or say which is which, such as --columns text_a=KEY"
        )
    for names in (columns.order, tuple(name for name in columns.order if name not in optional)):
        if usual == names:
            raise ValueError(f"{path}: its first line names the columns ({', '.join(cells)}); leave out --columns")
    without = tuple(name for name in columns.order if name not in optional)
    return without if len(cells) == len(without) else columns.order


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


def _no_column(
    path: str, format: str, missing: Sequence[str], first: str, cells: Sequence[str], needed: Sequence[str]
) -> str:
    where = "first line, which must name the columns, separated by " + ("commas" if format == "csv" else "tabs")
    if format == "jsonl":
        where = "first line, whose keys must name the columns"
    message = f"{path}: no column {' and no column '.join(missing)} in its {where}; found {_shown(first)}"
    lines = [line for line in islice(read_lines(path, format), 1, SAMPLE_LINES) if not line.problem]
    rows = [line.cells for line in lines if len(line.cells) == len(cells) and line.keys in ((), tuple(cells))]
    known = [usual_name(cell) for cell in cells]
    renamed = guess_columns(rows, known, needed)
    option = rename_option(cells, renamed) if renamed and rows else None
    label = renamed.index(LABEL) if renamed and LABEL in renamed else None
    if option and (label is None or all(row[label] != cells[label] for row in rows)):  # else it is an example
        message += f". If these are other names for them, say which is which, such as {option}"
    in_order = guess_columns(rows, [""] * len(cells), needed)
    if in_order and not set(known) & set(NAMES) and format != "jsonl":
        message += (
            ". For a file whose first line is an example already, name its columns in their order, such as "
            f"{order_option(in_order)}"
        )
    return message


def _shown(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")
