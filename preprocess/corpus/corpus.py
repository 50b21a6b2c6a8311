"""The input: files in order, grouped into sources."""

from __future__ import annotations

import bisect
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from preprocess.corpus.layouts import ALL_LAYOUTS, FIELD_LAYOUTS

INVALID_UTF8 = ("error", "drop", "replace")
INCOMPLETE_RECORDS = ("error", "drop")


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """What to read, and how.

    Attributes:
        arguments: files, folders (read recursively, hidden entries skipped), glob patterns, or "-" for standard input;
            each may be NAME=PATH to name its source.
        layout: a layout or "auto" for all sources, and NAME=LAYOUT for single ones.
        text_field: the field that holds the text in jsonl and parquet, for all sources, and NAME=FIELD for single ones;
            dots go into objects.
        invalid_utf8: "error", "drop" (the document) or "replace" (the bytes, by U+FFFD).
        incomplete_records: "error", or "drop" (the record): lines of jsonl that are no JSON object or lack the text,
            and lines of columns that have too many, too few or an empty label.
        max_expansion: how many times larger than a compressed file its text may be.
    """

    arguments: Sequence[str]
    layout: Sequence[str] = ("auto",)
    text_field: Sequence[str] = ("text",)
    invalid_utf8: str = "error"
    incomplete_records: str = "error"
    max_expansion: int = 200

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = []
        if isinstance(self.arguments, str) or not self.arguments:
            found.append(f"corpus is {self.arguments!r}: a list of at least one file, folder or pattern is needed")
        for layout in self.layout:
            if layout.rpartition("=")[2] not in ("auto", *ALL_LAYOUTS):
                allowed = ", ".join(("auto", *ALL_LAYOUTS))
                found.append(f"layout is {layout!r}; allowed: {allowed}, or NAME=LAYOUT for one source")
        found += [
            f"text_field is {text_field!r}: a field's name, or NAME=FIELD for one source, is needed"
            for text_field in self.text_field
            if not text_field.rpartition("=")[2]
        ]
        if self.invalid_utf8 not in INVALID_UTF8:
            found.append(f"invalid_utf8 is {self.invalid_utf8!r}; allowed: {', '.join(INVALID_UTF8)}")
        if self.incomplete_records not in INCOMPLETE_RECORDS:
            allowed = ", ".join(INCOMPLETE_RECORDS)
            found.append(f"incomplete_records is {self.incomplete_records!r}; allowed: {allowed}")
        if self.max_expansion < 1:
            found.append(f"max_expansion is {self.max_expansion}: needs 1 or more (200 is usual)")
        return found


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One file of the input.

    Attributes:
        path: where it is.
        name: its name within its source, the same on every machine.
        source: index of its source.
        start: its first byte in the concatenated input.
        num_bytes: its size in the input: uncompressed; of a parquet file, its texts and one byte more for each.
        layout: one of ``layouts.ALL_LAYOUTS``.
        compression: "" or that of the whole file.
        stored_bytes: size on disk when it was looked at.
        modified_ns: time of its last change then.
        text_field: field of the text, in the layouts that have fields.
        has_header: whether its first line names the columns.
        row_groups: of a parquet file, the first byte in ``num_bytes`` of each row group.
    """

    path: str
    name: str
    source: int
    start: int
    num_bytes: int
    layout: str
    compression: str = ""
    stored_bytes: int = 0
    modified_ns: int = 0
    text_field: str = ""
    has_header: bool = False
    row_groups: tuple[int, ...] = ()

    def check_unchanged(self) -> None:
        """Refuse a file that is not the one that was looked at: another size or time of change.

        Raises:
            ValueError: naming the file.
        """
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise ValueError(f"cannot read {self.path}: {error.strerror}; it was there before") from error
        if found.st_size != self.stored_bytes:
            raise ValueError(
                f"{self.path} had {self.stored_bytes:,} bytes and now has {found.st_size:,}: it changes while it is "
                "read"
            )
        if found.st_mtime_ns != self.modified_ns:
            raise self.changed()

    def changed(self) -> ValueError:
        """Return the error for a file that is not what it was."""
        return ValueError(f"{self.path} was written to after it was looked at: it changes while it is read")

    def description(self) -> dict[str, Any]:
        """Return what decides which documents the file gives, apart from its bytes; the same on every machine."""
        described: dict[str, Any] = {"name": self.name, "num_bytes": self.num_bytes, "layout": self.layout}
        if self.layout in FIELD_LAYOUTS:
            described["text_field"] = self.text_field
        return described


@dataclass(frozen=True)
class Corpus:
    """The input: files in order, grouped into sources (one for each argument of the command).

    Attributes:
        labels: the labels of all documents that have one, sorted.
        has_second: whether documents may have a second text.
    """

    source_names: tuple[str, ...]
    files: tuple[InputFile, ...]
    labels: tuple[str, ...] = ()
    has_second: bool = False
    settings: CorpusSettings = field(default_factory=lambda: CorpusSettings(arguments=()))

    @property
    def num_bytes(self) -> int:
        """Size of the concatenated input."""
        return sum(file.num_bytes for file in self.files)

    def files_between(self, first: int, last: int) -> Sequence[InputFile]:
        """Return the files that have bytes in [first, last) of the concatenated input."""
        start_of = operator.attrgetter("start")
        begin = max(0, bisect.bisect_right(self.files, first, key=start_of) - 1)
        end = bisect.bisect_left(self.files, last, key=start_of)
        return [file for file in self.files[begin:end] if file.start + file.num_bytes > first]

    def num_blocks(self, block_bytes: int) -> int:
        """Return how many blocks of ``block_bytes`` the input has."""
        return -(-self.num_bytes // block_bytes)

    def description(self) -> dict[str, Any]:
        """Return a JSON-able description, the same on every machine that has the same files."""
        files: list[list[dict[str, Any]]] = [[] for _ in self.source_names]
        for file in self.files:
            files[file.source].append(file.description())
        return {
            "sources": [
                {"name": name, "files": described} for name, described in zip(self.source_names, files, strict=True)
            ],
            "labels": list(self.labels),
            "invalid_utf8": self.settings.invalid_utf8,
            "incomplete_records": self.settings.incomplete_records,
        }
