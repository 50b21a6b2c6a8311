"""The texts of a file, and the file or the terminal that results go to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TextIO

from finetune.config.generate import TextFileConfig
from finetune.config.tasks import FileConfig
from finetune.inference.writing import replaced_file, writer_of
from finetune.readers.columns import parse_columns, usual_name
from finetune.readers.table_lines import read_lines
from finetune.readers.tables import Table, open_table
from finetune.tasks.base import Answer
from preprocess.corpus.text_errors import invalid_utf8
from preprocess.progress import progress_bar


class TextSource(Protocol):
    """Settings that say where texts are."""

    @property
    def input(self) -> str | None: ...
    @property
    def column(self) -> str | None: ...
    @property
    def columns(self) -> str | None: ...
    @property
    def files(self) -> FileConfig: ...


class Texts:
    """The texts of a file: its lines, or a column of a table; or one text."""

    def __init__(self, config: TextSource, text: str | None = None) -> None:
        """Open the file; ValueError if it is missing or has no such column."""
        self.text, self.path = text, config.input or ""
        self.column = None if config.column is None else usual_name(config.column)
        self.table: Table | None = None
        if text is not None:
            return
        if self.column is not None:
            columns = parse_columns(config.columns, (self.column,))
            self.table = open_table(self.path, columns, (self.column,), config.files)
        elif not Path(self.path).is_file():
            raise ValueError(f"{self.path}: {'a folder, not a file' if Path(self.path).is_dir() else 'no such file'}")

    def read(self, advance: Callable[[int], object] = lambda num_bytes: None) -> Iterator[str]:
        """The texts in the file's order; an empty line is an empty text."""
        if self.text is not None:
            yield self.text
            return
        if self.table is not None:
            assert self.column is not None
            place = self.table.column(self.column)
            for row in self.table.records(advance):
                yield row.cells[place]
            return
        for line in read_lines(self.path, "tsv"):
            if line.bad_byte >= 0:
                raise invalid_utf8(self.path, line.bad_byte)
            advance(line.num_bytes)
            yield line.text

    def notes(self) -> list[str]:
        """What a user should know of the file."""
        return [] if self.table is None else self.table.notes()


def write_answers(
    config: TextFileConfig,
    texts: Texts,
    columns: Sequence[str],
    answers: Callable[[Iterator[str]], Iterator[Answer]],
    name: str,
) -> int:
    """Write what ``answers`` makes of the texts into the output, or onto the terminal; returns how many lines."""
    written = 0
    with _output(config, texts, name) as (file, advance):
        writer = writer_of(config.output or "", columns, file)
        for answer in answers(texts.read(advance)):
            writer.write(answer)
            written += 1
    return written


@contextlib.contextmanager
def _output(config: TextFileConfig, texts: Texts, name: str) -> Iterator[tuple[TextIO, Callable[[int], object]]]:
    """What is written to, and who is told of bytes that were read."""
    if config.output is None:
        yield sys.stdout, lambda num_bytes: None
        return
    with replaced_file(Path(config.output)) as file, progress_bar(name, os.path.getsize(texts.path)) as advance:
        yield file, advance
