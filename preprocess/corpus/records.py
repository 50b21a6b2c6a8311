"""Records of text files to documents, one parser for each layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from preprocess.cleaning.drops import Drops
from preprocess.corpus.corpus import InputFile
from preprocess.corpus.columns import parse_json, parse_labelled, parse_paired
from preprocess.corpus.document import Document
from preprocess.corpus.layouts import (
    BLANK,
    DOCUMENT_PER_FILE,
    DOCUMENT_PER_LINE,
    JSONL,
    LABELLED_TSV,
    MEDIAWIKI,
    PAIRED_TSV,
    SENTENCE_PER_LINE,
)
from preprocess.corpus.mediawiki import namespace_names, parse_pages
from preprocess.corpus.prose import unwrap
from preprocess.corpus.text_errors import utf8_error

BLANK_LINES = re.compile(rb"\n(?:" + BLANK + rb"+\n)++")
LEADING_BLANK_LINES = re.compile(rb"(?:" + BLANK + rb"+\n)*+")
EMPTY_LINES = re.compile(rb"\n\n+")
ASCII_SPACE = " \t\r\x0b\x0c"
RAGGED_ENDS = tuple(space + b"\n" for space in (b" ", b"\t", b"\r", b"\x0b", b"\x0c"))


class RecordParser:
    """Turns runs of whole records of one file into documents.

    Args:
        file: which file, and so which layout.
        line_number: tells the line of an offset in the file, for messages.
        drops: counts records that give no document.
        invalid_utf8: "error", "drop" or "replace".
        head: beginning of the file: that of a dump lists its namespaces.
    """

    def __init__(
        self,
        file: InputFile,
        line_number: Callable[[int], int],
        drops: Drops,
        invalid_utf8: str = "error",
        head: bytes = b"",
    ) -> None:
        self.file = file
        self.line_number = line_number
        self.drops = drops
        self.invalid_utf8 = invalid_utf8
        self.num_replaced = 0
        self.namespaces = namespace_names(head.decode(errors="replace")) if file.layout == MEDIAWIKI else frozenset()
        self._parse = PARSERS[file.layout]

    def documents(self, offset: int, run: bytes) -> Iterator[Document]:
        """Yield the documents of some records; ``offset`` is their place in the file."""
        return self._parse(self, offset, run)

    def take_replaced(self) -> int:
        """Return how many records had bytes replaced since the last call."""
        number, self.num_replaced = self.num_replaced, 0
        return number

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

    def drop_empty(self, record: bytes, offset: int) -> None:
        """Count a record without text, or with nothing but white space in it."""
        self.drops.add_record("documents_without_text", record, self.file.path, offset)

    def error(self, offset: int, what: str) -> ValueError:
        """Return an error that names the file and the line."""
        return ValueError(f"{self.file.path}, line {self.line_number(offset):,} (offset {offset:,}): {what}")


def parse_blocks(parser: RecordParser, offset: int, run: bytes) -> Iterator[Document]:
    """Yield a document for each run of lines that are not blank; each line is a sentence."""
    is_ragged = any(end in run for end in RAGGED_ENDS)
    pattern = BLANK_LINES if is_ragged else EMPTY_LINES
    path, source = parser.file.path, parser.file.source
    leading = LEADING_BLANK_LINES.match(run)
    start = leading.end() if leading else 0
    while start < len(run):
        match = pattern.search(run, start)
        end, after = match.span() if match else (len(run), len(run))
        record = run[start:end]
        try:
            text = record.decode()
        except UnicodeDecodeError:
            text = parser.invalid(record, offset + start)
        if is_ragged:
            text = "\n".join([line.rstrip(ASCII_SPACE) for line in text.split("\n")])
        text = text.strip()
        if text:
            yield Document(text, source, True, None, None, path, offset + start)
        elif record.strip() and not is_invalid(record):
            parser.drop_empty(record, offset + start)
        start = after


def parse_lines(parser: RecordParser, offset: int, run: bytes) -> Iterator[Document]:
    """Yield a document for each line that is not blank."""
    path, source = parser.file.path, parser.file.source
    for line in run.split(b"\n"):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            text = parser.invalid(line, offset).strip()
        if text:
            yield Document(text, source, False, None, None, path, offset)
        elif line.strip() and not is_invalid(line):
            parser.drop_empty(line, offset)
        offset += len(line) + 1


def parse_file(parser: RecordParser, offset: int, run: bytes) -> Iterator[Document]:
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


PARSERS: dict[str, Callable[[RecordParser, int, bytes], Iterator[Document]]] = {
    SENTENCE_PER_LINE: parse_blocks,
    DOCUMENT_PER_LINE: parse_lines,
    DOCUMENT_PER_FILE: parse_file,
    JSONL: parse_json,
    LABELLED_TSV: parse_labelled,
    PAIRED_TSV: parse_paired,
    MEDIAWIKI: parse_pages,
}
