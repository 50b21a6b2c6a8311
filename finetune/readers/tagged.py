"""Files of sentences whose units have labels.

``columns`` is CoNLL's layout: a unit in each line, its label in the last column, tabs or spaces between columns, an
empty line between sentences. A table has both in a line, separated by spaces: columns ``text_a`` and ``label``; without
the labels its texts are cut into units here. JSON Lines: see ``finetune.readers.sentence_objects``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

from finetune.config.tasks import FileConfig
from finetune.readers.columns import LABEL, TEXT_A, parse_columns
from finetune.readers.sentence_objects import sentence_of_object
from finetune.readers.sentences import Sentence, are_characters, cut_text, is_ideographic, join_units
from finetune.readers.table_lines import Line, format_of, read_lines
from finetune.readers.tables import Table, open_table
from preprocess.corpus.text_errors import invalid_utf8

TOKEN = "token"
COLUMNS, TABLE, OBJECTS = "columns", "table", "objects"
HEADERS = (
    {TOKEN, "tokens", "word", "words", "char", "character"},
    {LABEL, "labels", "tag", "tags", "ner", "ner_tag", "ner_tags"},
)
SAMPLE_UNITS = 2000  # enough to see whether units are characters
DOCUMENT = "-DOCSTART-"
SHOWN_LINES = 20
_PLACED = re.compile("(.|\ufffd+)([0-9]+)", re.DOTALL)  # a character and its place in the word
_NUMBERED_FROM = 0.99  # share of units that end in their place, from which a file is one of those


class Cells(NamedTuple):
    """A unit and its label, empty where the file has none, and the line they are from."""

    line: int
    unit: str
    label: str


@dataclass
class TaggedFile:
    """A file of sentences whose layout is known.

    Attributes:
        path: the file.
        layout: columns, table or objects.
        labelled: whether the labels must be there.
        token_column: of the units, in columns.
        label_column: of the labels, in columns; None where there are none.
        num_columns: that each line has.
        characters: whether units are characters, or a text is cut into them; None: not known.
        numbered: whether units are followed by their place in the word, as Weibo's are.
        table: where it is one.
        skip_bad: leave malformed sentences out and count them.
        counts: what is to be said, with how often it was met, of the last pass over the file.
        skipped: numbers of lines with which sentences were left out.
    """

    path: str
    layout: str
    labelled: bool
    token_column: int = 0
    label_column: int | None = None
    num_columns: int = 1
    characters: bool | None = None
    numbered: bool = False
    table: Table | None = None
    skip_bad: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    skipped: list[int] = field(default_factory=list)

    def records(self, advance: Callable[[int], object] = lambda num_bytes: None) -> Iterator[Sentence]:
        """Read the sentences one by one, in the file's order.

        Raises:
            ValueError: naming file and line of what cannot be read, or where there is no sentence.
        """
        self.counts.clear()
        self.skipped.clear()
        readers = {COLUMNS: self._of_columns, TABLE: self._of_table, OBJECTS: self._of_objects}
        count = 0
        for sentence in readers[self.layout](advance):
            count += 1
            yield sentence
        if not count:
            what = f", only {len(self.skipped):,} malformed one(s)" if self.skipped else ""
            raise ValueError(f"{self.path} holds no sentences{what}")

    def notes(self) -> list[str]:
        """How the file was read, and what of it was left out."""
        notes = self.table.notes() if self.table else []
        notes += [f"{self.path}: {count:,} {text}" for text, count in self.counts.items()]
        if self.numbered:
            notes.append(f"{self.path}: units are followed by their place in the word (as in 科0), which is taken off")
        if self.skipped:
            shown = ", ".join(f"{number:,}" for number in self.skipped[:SHOWN_LINES])
            more = ", ..." if len(self.skipped) > SHOWN_LINES else ""
            notes.append(f"{self.path}: {len(self.skipped):,} malformed sentence(s) skipped, with line {shown}{more}")
        return notes

    def _bad(self, line: int, problem: str) -> None:
        """Count a malformed line, or raise."""
        if not self.skip_bad:
            raise ValueError(
                f"{self.path}, line {line:,}: {problem} (--bad_lines skip leaves such sentences out and counts them)"
            )
        self.skipped.append(line)

    # -- columns

    def _of_columns(self, advance: Callable[[int], object]) -> Iterator[Sentence]:
        cells: list[Cells] = []
        good = True
        for line in self._lines(advance, "tsv"):
            found = split_line(line.text)
            if not found or found[0] == DOCUMENT:
                if found:
                    self.counts[f"{DOCUMENT} line(s) left out"] += 1
                if cells and good:
                    yield self._joined(cells)
                cells, good = [], True
                continue
            problem = self._problem(found)
            if problem and good:
                self._bad(line.number, problem)
            good = good and not problem
            if good:
                label = found[self.label_column] if self.label_column is not None else ""
                cells.append(Cells(line.number, found[self.token_column] or " ", label))
        if cells and good:
            yield self._joined(cells)

    def _problem(self, cells: Sequence[str]) -> str:
        if len(cells) != self.num_columns:
            return f"{len(cells)} column(s), but the first line has {self.num_columns}: {' '.join(cells)[:80]!r}"
        if self.label_column is not None and not cells[self.label_column]:
            return f"no label: {' '.join(cells)[:80]!r}"
        return ""

    def _joined(self, cells: Sequence[Cells]) -> Sentence:
        units = [self._without_place(cell.unit) for cell in cells] if self.numbered else [cell.unit for cell in cells]
        text, places = join_units(units, bool(self.characters))
        labels = None if self.label_column is None else tuple(cell.label for cell in cells)
        return Sentence(cells[0].line, text, places, labels)

    def _without_place(self, unit: str) -> str:
        if match := _PLACED.fullmatch(unit):
            return match[1]
        self.counts["unit(s) that are not followed by a place in the word, kept as they are"] += 1
        return unit

    # -- tables and objects

    def _of_table(self, advance: Callable[[int], object]) -> Iterator[Sentence]:
        assert self.table is not None
        text_column = self.table.column(TEXT_A)
        label_column = self.table.column(LABEL) if LABEL in self.table.names else None
        for row in self.table.records(advance):
            text, labels = row.cells[text_column], None
            if label_column is not None and row.cells[label_column].strip():
                labels = tuple(row.cells[label_column].split())
                units = text.split()
                if len(labels) != len(units):
                    self._bad(row.line, f"{len(labels)} label(s) for {len(units)} unit(s), both separated by spaces")
                    continue
                text, places = join_units(units, are_characters(units))
            elif self.labelled:
                self._bad(row.line, "no labels")
                continue
            else:
                places = cut_text(text, is_ideographic(text) if self.characters is None else self.characters)
            yield Sentence(row.line, text, places, labels)

    def _of_objects(self, advance: Callable[[int], object]) -> Iterator[Sentence]:
        for line in self._lines(advance, "jsonl"):
            try:
                sentence = sentence_of_object(line.number, line.text, self.characters)
                if self.labelled and sentence.labels is None:
                    raise ValueError("no labels")
            except (ValueError, RecursionError) as error:
                self._bad(line.number, f"no JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error))
                continue
            yield sentence

    def _lines(self, advance: Callable[[int], object], format: str) -> Iterator[Line]:
        for line in read_lines(self.path, format):
            advance(line.num_bytes)
            if line.bad_byte >= 0:
                raise invalid_utf8(self.path, line.bad_byte)
            yield line


def split_line(text: str) -> list[str]:
    """The cells of a line, by tabs where it has one, else by spaces; none of an empty line."""
    if not text.strip(" \t"):
        return []
    return text.split("\t") if "\t" in text else re.split(" +", text.rstrip(" "))


def open_tagged(path: str, files: FileConfig, labelled: bool, characters: bool | None = None) -> TaggedFile:
    """Find out how a file is laid out.

    Args:
        path: the file.
        files: ``columns`` names its columns where the unit is not in the first and the label not in the last:
            ``token,pos,chunk,label``.
        labelled: whether the labels must be there.
        characters: whether a text is cut into characters; None: as it looks.

    Raises:
        ValueError: if it is missing, empty, no text, or lacks the units or the labels.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if Path(path).is_dir() else 'no such file'}")
    skip_bad = files.bad_lines == "skip"
    format = files.format or format_of(path)[0]
    first = next((line for line in read_lines(path, "tsv") if line.text.strip()), None)
    if first is None:
        raise ValueError(f"{path} is empty")
    if format == "jsonl":
        return TaggedFile(path, OBJECTS, labelled, characters=characters, skip_bad=skip_bad)
    columns = parse_columns(files.columns, (TOKEN, LABEL, TEXT_A))
    named = (columns.order or tuple(columns.renamed)) if columns else ()
    names = {cell.strip() for cell in first.text.split("\t")} | set(named)
    if format == "csv" or names & {"text", TEXT_A, "sentence"}:
        needed = (TEXT_A, LABEL) if labelled else (TEXT_A,)
        table = open_table(path, columns, needed, files, optional=() if labelled else (LABEL,))
        return TaggedFile(path, TABLE, labelled, characters=characters, table=table, skip_bad=skip_bad)
    opened = _open_columns(path, named, labelled, skip_bad)
    if characters and opened.num_columns == 1 and not named and not opened.characters:
        raise ValueError(
            f"{path}: one column without a name, whose units would be whole lines such as {first.text[:40]!r}, and the "
            f"model labels characters; for a text in each line give --columns {TEXT_A}, for words in each --columns "
            f"{TOKEN}"
        )
    return opened


def _open_columns(path: str, named: Sequence[str], labelled: bool, skip_bad: bool) -> TaggedFile:
    lines = (split_line(line.text) for line in read_lines(path, "tsv"))
    sample = [cells for cells in islice(lines, 2 * SAMPLE_UNITS) if cells and cells[0] != DOCUMENT][:SAMPLE_UNITS]
    if not sample:
        raise ValueError(f"{path} holds no sentences")
    width = len(sample[0])
    if named and (len(named) != width or TOKEN not in named or (labelled and LABEL not in named)):
        raise ValueError(
            f"--columns {','.join(named)}: {path} has {width} column(s); name them all in their order, one of them "
            f"{TOKEN} and one {LABEL}, such as {TOKEN},pos,chunk,{LABEL}"
        )
    if labelled and width == 1:
        raise ValueError(
            f"{path}: one column, but there must be a unit and its label in each line, separated by a tab or spaces; "
            f"the first line is {' '.join(sample[0])[:80]!r}"
        )
    token = named.index(TOKEN) if named else 0
    label = (named.index(LABEL) if LABEL in named else None) if named else (width - 1 if width > 1 else None)
    first = [sample[0][column].strip().lower() for column in (token, label) if column is not None]
    if len(first) == 2 and all(cell in names for cell, names in zip(first, HEADERS, strict=True)):
        raise ValueError(
            f"{path}: its first line, {' '.join(sample[0])[:80]!r}, names the columns, and would be learned as "
            f"a unit and its label; take it away (--columns says what is where, such as {TOKEN},pos,{LABEL})"
        )
    units = [cells[token] for cells in sample if len(cells) == width]
    numbered = are_numbered(units)
    bare = [match[1] if (match := _PLACED.fullmatch(unit)) else unit for unit in units] if numbered else units
    return TaggedFile(
        path,
        COLUMNS,
        labelled,
        token_column=token,
        label_column=label,
        num_columns=width,
        characters=are_characters(bare),
        numbered=numbered,
        skip_bad=skip_bad,
    )


def are_numbered(units: Sequence[str]) -> bool:
    """Whether units are characters followed by their place in the word: 0, or one more than the place before."""
    places = [int(match[2]) if (match := _PLACED.fullmatch(unit)) else -1 for unit in units]
    fitting = sum(place == 0 or place == before + 1 > 0 for before, place in pairwise([-1, *places]))
    return len(units) > 0 and fitting >= _NUMBERED_FROM * len(units)
