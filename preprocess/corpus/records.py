"""Records of text files to documents, one parser for each layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from preprocess.cleaning.drops import Drops
from preprocess.corpus.corpus import InputFile
from preprocess.corpus.document import Document
from preprocess.corpus.layouts import BLANK, DOCUMENT_PER_LINE, SENTENCE_PER_LINE
from preprocess.corpus.text_errors import utf8_error

BLANK_LINES = re.compile(rb"\n(?:" + BLANK + rb"+\n)++")
LEADING_BLANK_LINES = re.compile(rb"(?:" + BLANK + rb"+\n)*+")
RAGGED_ENDS = tuple(space + b"\n" for space in (b" ", b"\t", b"\r", b"\x0b", b"\x0c"))


class RecordParser:
    """Turns runs of whole records of one file into documents.

    Args:
        file: which file, and so which layout.
        line_number: tells the line of an offset in the file, for messages.
        drops: counts records that give no document.
        invalid_utf8: "error", "drop" or "replace".
    """

    def __init__(
        self, file: InputFile, line_number: Callable[[int], int], drops: Drops, invalid_utf8: str = "error"
    ) -> None:
        self.file = file
        self.line_number = line_number
        self.drops = drops
        self.invalid_utf8 = invalid_utf8
        self.num_replaced = 0
        self.documents: Callable[[int, bytes], Iterator[Document]] = getattr(self, PARSERS[file.layout])

    def take_replaced(self) -> int:
        """Return how many records had bytes replaced since the last call."""
        number, self.num_replaced = self.num_replaced, 0
        return number

    def decode(self, record: bytes, offset: int, start: int = 0) -> str | None:
        """Return the text of a record that is not UTF-8, or None where it is dropped.

        Args:
            record: its raw bytes.
            offset: of the record in the file.
        """
        if self.invalid_utf8 == "replace":
            self.num_replaced += 1
            return record.decode(errors="replace")
        if self.invalid_utf8 == "drop":
            self.drops.add_record("documents_invalid_utf8", record, self.file.path, offset)
            return None
        try:
            record.decode()
        except UnicodeDecodeError as error:
            position = offset + error.start
            raise utf8_error(self.file.path, record[error.start], position, self.line_number(position)) from None
        return None

    def blocks_of_lines(self, offset: int, run: bytes) -> Iterator[Document]:
        """Yield a document for each run of lines that are not blank; each line is a sentence."""
        is_ragged = any(end in run for end in RAGGED_ENDS)
        path, source = self.file.path, self.file.source
        start = _end(LEADING_BLANK_LINES, run)
        while start < len(run):
            match = BLANK_LINES.search(run, start)
            end, after = match.span() if match else (len(run), len(run))
            record = run[start:end]
            try:
                text: str | None = record.decode()
            except UnicodeDecodeError:
                text = self.decode(record, offset + start)
            if text is not None:
                if is_ragged:
                    text = "\n".join([line.rstrip(ASCII_SPACE) for line in text.split("\n")])
                text = text.strip()
                if text:
                    yield Document(text, source, True, None, None, path, offset + start)
                elif record.strip():
                    self.drop_empty(record, offset + start)
            start = after

    def lines(self, offset: int, run: bytes) -> Iterator[Document]:
        """Yield a document for each line that is not blank."""
        path, source = self.file.path, self.file.source
        for line in run.split(b"\n"):
            try:
                text: str | None = line.decode().strip()
            except UnicodeDecodeError:
                text = self.decode(line, offset)
                text = text and text.strip()
            if text:
                yield Document(text, source, False, None, None, path, offset)
            elif text is not None and line.strip():
                self.drop_empty(line, offset)
            offset += len(line) + 1

    def drop_empty(self, record: bytes, offset: int) -> None:
        """Count a record that has no text but white space beyond ASCII."""
        self.drops.add_record("documents_without_text", record, self.file.path, offset)


ASCII_SPACE = " \t\r\x0b\x0c"


def _end(pattern: re.Pattern[bytes], data: bytes) -> int:
    match = pattern.match(data)
    return match.end() if match else 0


PARSERS = {SENTENCE_PER_LINE: "blocks_of_lines", DOCUMENT_PER_LINE: "lines"}
