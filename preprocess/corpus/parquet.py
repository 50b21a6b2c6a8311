"""Texts of a column of a parquet file, as if they lay one behind the other with one byte after each."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from typing import Any

from preprocess.cleaning.drops import Drops
from preprocess.corpus.columns import normal_lines
from preprocess.corpus.corpus import InputFile
from preprocess.corpus.document import Document
from preprocess.corpus.layouts import PARQUET
from preprocess.corpus.record_ranges import MAX_DOCUMENT_BYTES, way_out
from preprocess.corpus.streams import PARQUET_MAGIC

MAGIC = PARQUET_MAGIC
BATCH_BYTES = 4 << 20  # aimed at
MAX_BATCH_ROWS = 1024
MAX_SHOWN = 20
Texts = list[bytes | None]


class ParquetRows:
    """One parquet file, open for reading ranges in rising order; see ``record_ranges.TextFile``.

    Raises:
        ValueError: by any method, naming the file, for whatever is wrong with it.
    """

    def __init__(self, file: InputFile, invalid_utf8: str) -> None:
        self.file = file
        self.invalid_utf8 = invalid_utf8
        self.drops = Drops()
        self.num_replaced = 0
        file.check_unchanged()
        self.column = Column(file.path, file.text_field)
        self.base = 0  # of the next row
        self.reached = 0  # the range that begins here begins with the row at ``base``
        self.group = 0  # the row group that it is in
        self.waiting: Texts = []  # rows from ``base`` on that were read
        self.batches = self.column.texts(0) if file.row_groups else iter(())

    def close(self) -> None:
        """Close the file."""
        self.batches = iter(())
        self.column.close()

    def read(self, first: int, last: int) -> Iterator[tuple[bytes, Iterator[Document]]]:
        """Yield (raw bytes, documents) of the rows that begin in [first, last), in batches."""
        self.file.check_unchanged()
        group = max(0, bisect.bisect_right(self.file.row_groups, first) - 1)
        if first != self.reached and (first < self.base or group > self.group):
            self.group, self.base, self.waiting = group, self.file.row_groups[group], []
            self.batches = self.column.texts(group)
        self.reached = -1
        while self.base < min(last, self.file.num_bytes):
            begin, texts = self._take(first, last)
            if texts:
                yield b"".join([(text or b"") + b"\n" for text in texts]), self._documents(begin, texts)
        self.file.check_unchanged()
        self.reached = last

    def _take(self, first: int, last: int) -> tuple[int, Texts]:
        """Return the place of the next rows that begin in [first, last), and them, out of one batch."""
        if not self.waiting:
            self._next()
        begin, position = 0, self.base
        skipped = taken = 0
        for text in self.waiting:
            if position >= last:
                break
            if position < first:
                skipped += 1
            elif skipped == taken:
                begin = position
            taken += 1
            position += len(text or b"") + 1
        texts, self.waiting = self.waiting[skipped:taken], self.waiting[taken:]
        self.base = position
        return begin, texts

    def _next(self) -> None:
        """Read the next batch, of the next row group where one ends."""
        while not (texts := next(self.batches, None)):
            self.group += 1
            if self.group >= len(self.file.row_groups):
                raise self.file.changed()
            self.batches = self.column.texts(self.group)
        self.waiting = texts

    def _documents(self, offset: int, texts: Texts) -> Iterator[Document]:
        path, source = self.file.path, self.file.source
        for raw in texts:
            text = self._decode(raw, offset) if raw else ""
            if text:
                yield Document(text, source, False, None, None, path, offset)
            elif text is not None:
                self.drops.add_record("documents_without_text", raw or b"", path, offset)
            offset += len(raw or b"") + 1

    def _decode(self, raw: bytes, offset: int) -> str | None:
        """Return the text of a row; None if it is dropped."""
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise ValueError(
                f"{self._row(offset)} has {len(raw):,} bytes, and at most {MAX_DOCUMENT_BYTES:,} are possible: "
                f"{way_out(PARQUET)}"
            )
        if b"\0" in raw:
            raise ValueError(f"{self._row(offset)} is not text: it has a NUL byte")
        try:
            return normal_lines(raw.decode())
        except UnicodeDecodeError:
            if self.invalid_utf8 == "replace":
                self.num_replaced += 1
                return normal_lines(raw.decode(errors="replace"))
            if self.invalid_utf8 == "drop":
                self.drops.add_record("documents_invalid_utf8", raw, self.file.path, offset)
                return None
        raise ValueError(
            f"{self._row(offset)} is not UTF-8; give --invalid_utf8 drop (leaves it out) or --invalid_utf8 replace "
            "(puts U+FFFD in place of bad bytes)"
        )

    def _row(self, offset: int) -> str:
        """Return file, row and column of a place, for messages."""
        position = row = 0
        for group in range(len(self.file.row_groups)):
            for texts in self.column.texts(group):
                for text in texts:
                    if position >= offset:
                        return f"{self.file.path}, row {row:,} of column {self.file.text_field!r},"
                    position += len(text or b"") + 1
                    row += 1
        return self.file.path


class Column:
    """A column of text in a parquet file.

    Args:
        field: its name; a.b is field b of the struct a.

    Raises:
        ValueError: if the file is damaged, or the column missing or no text.
    """

    def __init__(self, path: str, field: str) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise ValueError(
                f"{path} is a parquet file: reading it needs the package pyarrow; install it with `pip install pyarrow`"
            ) from None
        self.path, self.field, self.arrow = path, field, pyarrow
        try:
            self.file = parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise self._damaged(error) from None
        self.num_rows = self.file.metadata.num_rows
        self.num_groups = self.file.metadata.num_row_groups
        self.keys = self._find()

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _find(self) -> list[str]:
        """Return the names on the way to the column."""
        schema = self.file.schema_arrow
        keys = [self.field] if self.field in schema.names else self.field.split(".")
        if keys[0] not in schema.names:
            raise self._missing(schema.names)
        kind = schema.field(keys[0]).type
        for key in keys[1:]:
            if not self.arrow.types.is_struct(kind) or kind.get_field_index(key) < 0:
                raise self._missing(schema.names)
            kind = kind.field(key).type
        types = self.arrow.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        is_text = types.is_string(kind) or types.is_large_string(kind)
        if not (is_text or types.is_binary(kind) or types.is_large_binary(kind)):  # Spark writes text as binary, too
            raise ValueError(
                f"{self.path}: the column {self.field!r} holds {kind}, and text is needed; give another --text_field"
            )
        return keys

    def _missing(self, names: list[str]) -> ValueError:
        shown = ", ".join(names[:MAX_SHOWN]) + (", ..." if len(names) > MAX_SHOWN else "")
        return ValueError(
            f"{self.path} has no column {self.field!r}; it has: {shown}; name the one with the text by --text_field"
        )

    def texts(self, group: int) -> Iterator[Texts]:
        """Yield the texts of a row group as bytes, in batches."""
        for array in self._arrays(group):
            yield array.to_pylist()

    def measure(self, progress: Callable[[int], None]) -> tuple[int, ...]:
        """Return the first byte of each row group, and the end of the last; ``progress`` gets 1 for each row group."""
        from pyarrow import compute

        ends = [0]
        for group in range(self.num_groups):
            arrays = self._arrays(group)
            lengths = (compute.sum(compute.binary_length(array)).as_py() or 0 for array in arrays)
            ends.append(ends[-1] + sum(lengths) + self.file.metadata.row_group(group).num_rows)
            progress(1)
        return tuple(ends)

    def _arrays(self, group: int) -> Iterator[Any]:
        try:
            metadata = self.file.metadata.row_group(group)
            size = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
            rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // size))
            for batch in self.file.iter_batches(rows, row_groups=[group], columns=[".".join(self.keys)]):
                array = batch.column(0)
                for key in self.keys[1:]:
                    array = self.arrow.compute.struct_field(array, key)
                if self.arrow.types.is_dictionary(array.type):
                    array = array.dictionary_decode()
                yield array.cast(self.arrow.large_binary())
        except (self.arrow.ArrowException, OSError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(f"{self.path} cannot be read as parquet: {error}; fetch or make the file again")
