"""Records of text files to documents, one parser for each layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator

import numpy as np

from preprocess.cleaning.drops import Drops
from preprocess.corpus.columns import parse_json, parse_labelled, parse_paired
from preprocess.corpus.corpus import InputFile
from preprocess.corpus.document import Document
from preprocess.corpus.layouts import (
    BLANK,
    DOCUMENT_PER_FILE,
    DOCUMENT_PER_LINE,
    JSONL,
    LABELLED_TSV,
    MEDIAWIKI,
    PAIRED_TSV,
    PARAGRAPH_PER_LINE,
    SENTENCE_PER_LINE,
)
from preprocess.corpus.mediawiki import check_dump, namespace_names, parse_pages
from preprocess.corpus.prose import unwrap
from preprocess.corpus.record_ranges import TextFile
from preprocess.corpus.text_errors import utf8_error

BLANK_LINES = re.compile(rb"\n(?:" + BLANK + rb"+\n)++")
LEADING_BLANK_LINES = re.compile(rb"(?:" + BLANK + rb"+\n)*+")
ASCII_SPACE = " \t\r\x0b\x0c"
NEWLINE = 0x0A
IS_SPACE = np.zeros(256, np.bool_)  # white space within a line
IS_SPACE[list(b" \t\r\x0b\x0c")] = True


class TextRecords:
    """The records of one text file as documents; see ``blocks.OpenFile``.

    Args:
        file: which file, and so which layout.
        invalid_utf8: "error", "drop" or "replace".
        max_expansion: how many times larger than a compressed file its text may be.
        incomplete_records: "error" or "drop".

    Raises:
        ValueError: by any method, naming file and place, for whatever is wrong with it.
    """

    def __init__(
        self,
        file: InputFile,
        invalid_utf8: str = "error",
        max_expansion: int = 200,
        incomplete_records: str = "error",
    ) -> None:
        self.file = file
        self.invalid_utf8 = invalid_utf8
        self.incomplete_records = incomplete_records
        self.drops = Drops()
        self.num_replaced = 0
        self.text = TextFile(file, max_expansion)
        self.namespaces: Container[str] = ()
        if file.layout == MEDIAWIKI:
            check_dump(file.path, self.text.head)
            self.namespaces = namespace_names(self.text.head.decode(errors="replace"))

    def read(self, first: int, last: int) -> Iterator[tuple[bytes, Iterator[Document]]]:
        """Yield (raw bytes, documents) of the records that begin in [first, last), in parts."""
        parse = PARSERS[self.file.layout]
        for offset, run in self.text.runs(first, last):
            yield run, parse(self, offset, run)

    def close(self) -> None:
        """Close the file."""
        self.text.close()

    def line_number(self, offset: int) -> int:
        """Return the number, from 1, of the line that holds a byte."""
        return self.text.line_number(offset)

    def invalid(self, record: bytes, offset: int) -> str:
        """Return the text of a record that is not UTF-8: repaired, or "" where it is dropped.

        Args:
            record: its raw bytes.
            offset: of the record in the file.
        """
        if self.invalid_utf8 == "replace":
            self.num_replaced += 1
            return record.decode(errors="replace")
        if self.invalid_utf8 == "drop":
            self.drops.add_record("documents_invalid_utf8", record, self.file.path, offset)
            return ""
        try:
            return record.decode()
        except UnicodeDecodeError as error:
            position = offset + error.start
            raise utf8_error(self.file.path, record[error.start], position, self.line_number(position)) from None

    def incomplete(self, record: bytes, offset: int, what: str) -> None:
        """Drop a record that lacks what its layout needs, or refuse it; ``what`` is wrong with it."""
        if self.incomplete_records != "drop":
            raise self.error(offset, f"{what}; or give --incomplete_records drop, which leaves such records out")
        self.drops.add_record("documents_incomplete_records", record, self.file.path, offset)

    def drop_empty(self, record: bytes, offset: int) -> None:
        """Count a record without text, or with nothing but white space in it."""
        self.drops.add_record("documents_without_text", record, self.file.path, offset)

    def error(self, offset: int, what: str) -> ValueError:
        """Return an error that names the file and the line."""
        return ValueError(f"{self.file.path}, line {self.line_number(offset):,} (offset {offset:,}): {what}")


def parse_blocks(parser: TextRecords, offset: int, run: bytes) -> Iterator[Document]:
    """Yield a document for each run of lines that are not blank; each line is a sentence, or a paragraph."""
    is_ragged = _is_ragged(run)
    path, source = parser.file.path, parser.file.source
    lines_are_sentences = parser.file.layout == SENTENCE_PER_LINE
    for start, record in _split_ragged(run) if is_ragged else _split_plain(run):
        lines = b"\n".join([line.rstrip() for line in record.split(b"\n")]) if is_ragged else record
        try:
            text = lines.decode().strip()
        except UnicodeDecodeError:
            text = parser.invalid(record, offset + start)
            text = "\n".join([line.rstrip(ASCII_SPACE) for line in text.split("\n")]).strip()
        if text:
            yield Document(text, source, lines_are_sentences, None, None, path, offset + start)
        elif record.strip() and not is_invalid(record):
            parser.drop_empty(record, offset + start)


def _is_ragged(run: bytes) -> bool:
    """Whether a line may end with white space (numpy looks several times faster than ``bytes.find``)."""
    octets = np.frombuffer(run, np.uint8)
    ends = np.flatnonzero(octets == NEWLINE)
    return bool(IS_SPACE[octets[ends - 1]].any())


def _split_plain(run: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (place, bytes) of each run of lines that are not empty, where no line ends with white space."""
    start = 0
    for part in run.split(b"\n\n"):
        record = part.lstrip(b"\n")
        if record:
            yield start + len(part) - len(record), record
        start += len(part) + 2


def _split_ragged(run: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (place, bytes) of each run of lines that are not blank."""
    leading = LEADING_BLANK_LINES.match(run)
    start = leading.end() if leading else 0
    while start < len(run):
        match = BLANK_LINES.search(run, start)
        end, after = match.span() if match else (len(run), len(run))
        yield start, run[start:end]
        start = after


def parse_lines(parser: TextRecords, offset: int, run: bytes) -> Iterator[Document]:
    """Yield a document for each line that is not blank."""
    path, source = parser.file.path, parser.file.source
    for line in run.split(b"\n"):
        if line.strip():
            try:
                text = line.decode().strip()
            except UnicodeDecodeError:
                text = parser.invalid(line, offset).strip()
            if text:
                yield Document(text, source, False, None, None, path, offset)
            elif not is_invalid(line):
                parser.drop_empty(line, offset)
        offset += len(line) + 1


def parse_file(parser: TextRecords, offset: int, run: bytes) -> Iterator[Document]:
    """Yield the whole file as one document of prose."""
    try:
        text = run.decode()
    except UnicodeDecodeError:
        text = parser.invalid(run, offset)
    text = unwrap(text)
    if text:
        yield Document(text, parser.file.source, False, None, None, parser.file.path, offset)
    elif run.strip() and not is_invalid(run):
        parser.drop_empty(run, offset)


def is_invalid(record: bytes) -> bool:
    """Whether a record that gave no text is not UTF-8, so that it is counted already."""
    try:
        record.decode()
    except UnicodeDecodeError:
        return True
    return False


PARSERS: dict[str, Callable[[TextRecords, int, bytes], Iterator[Document]]] = {
    SENTENCE_PER_LINE: parse_blocks,
    PARAGRAPH_PER_LINE: parse_blocks,
    DOCUMENT_PER_LINE: parse_lines,
    DOCUMENT_PER_FILE: parse_file,
    JSONL: parse_json,
    LABELLED_TSV: parse_labelled,
    PAIRED_TSV: parse_paired,
    MEDIAWIKI: parse_pages,
}
