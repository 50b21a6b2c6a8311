"""The layouts that a corpus file may have, and where records may begin in those that are text."""

from __future__ import annotations

import re
from typing import Protocol

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SENTENCE_PER_LINE = "sentence_per_line"
PARAGRAPH_PER_LINE = "paragraph_per_line"
DOCUMENT_PER_LINE = "document_per_line"
DOCUMENT_PER_FILE = "document_per_file"
JSONL = "jsonl"
LABELLED_TSV = "labelled_tsv"
PAIRED_TSV = "paired_tsv"
MEDIAWIKI = "mediawiki"
PARQUET = "parquet"
ALL_LAYOUTS = (
    SENTENCE_PER_LINE,
    PARAGRAPH_PER_LINE,
    DOCUMENT_PER_LINE,
    DOCUMENT_PER_FILE,
    JSONL,
    LABELLED_TSV,
    PAIRED_TSV,
    MEDIAWIKI,
    PARQUET,
)
PLAIN_LAYOUTS = (SENTENCE_PER_LINE, PARAGRAPH_PER_LINE, DOCUMENT_PER_LINE, DOCUMENT_PER_FILE)
FIELD_LAYOUTS = (JSONL, PARQUET)  # those with a --text_field

BLANK = rb"[ \t\r\x0b\x0c]*"
BLANK_LINE = re.compile(rb"\n" + BLANK + rb"\n")
BLANK_START = re.compile(BLANK + rb"\n")
PAGE_LINE = re.compile(rb"\n(?=[ \t]*<page>[ \t\r]*\n)")


class Boundaries(Protocol):
    """Where a record may begin in some bytes of a file; the bytes begin at a line or in a line that is not blank."""

    def first(self, data: bytes, start: int) -> int:
        """Return the first such place at or after ``start`` (which is not 0), or -1."""

    def last(self, data: bytes) -> int:
        """Return the last such place behind the beginning, or an earlier one, or -1."""


class LineBoundaries:
    """Every line start."""

    def first(self, data: bytes, start: int) -> int:
        return data.find(b"\n", start - 1) + 1 or -1

    def last(self, data: bytes) -> int:
        return data.rfind(b"\n") + 1 or -1


class BlankLineBoundaries:
    """Every line start behind a blank line."""

    def first(self, data: bytes, start: int) -> int:
        line = data.rfind(b"\n", 0, start - 1)  # the newline before the line that holds the byte before start
        match = BLANK_START.match(data) if line < 0 else None
        match = match or BLANK_LINE.search(data, max(line, 0))
        return match.end() if match else -1

    def last(self, data: bytes) -> int:
        found = data.rfind(b"\n\n")
        if found >= 0:
            return found + 2
        end = -1
        while match := BLANK_LINE.search(data, max(end - 1, 0)):
            end = match.end()
        return end


class PageBoundaries:
    """Every line that is ``<page>``; raw text in XML holds no "<"."""

    def first(self, data: bytes, start: int) -> int:
        match = PAGE_LINE.search(data, start - 1)
        return match.end() if match else -1

    def last(self, data: bytes) -> int:
        end = -1
        while match := PAGE_LINE.search(data, max(end, 0)):
            end = match.end()
        return end


class NoBoundaries:
    """None: the file is one record."""

    def first(self, data: bytes, start: int) -> int:
        return -1

    def last(self, data: bytes) -> int:
        return -1


BOUNDARIES: dict[str, Boundaries] = {
    SENTENCE_PER_LINE: BlankLineBoundaries(),
    PARAGRAPH_PER_LINE: BlankLineBoundaries(),
    DOCUMENT_PER_LINE: LineBoundaries(),
    DOCUMENT_PER_FILE: NoBoundaries(),
    JSONL: LineBoundaries(),
    LABELLED_TSV: LineBoundaries(),
    PAIRED_TSV: LineBoundaries(),
    MEDIAWIKI: PageBoundaries(),
}
