"""Whole records of a text file's byte range, in runs of about a MiB: what blocks are made of.

The input is the concatenation of the uncompressed files. Block k is the records whose first byte lies in
[k * block_bytes, (k + 1) * block_bytes), so anyone can find a block without reading what comes before. A record never
spans files.
"""

from __future__ import annotations

from collections.abc import Iterator

from preprocess.corpus.corpus import InputFile
from preprocess.corpus.layouts import BOUNDARIES, BYTE_ORDER_MARK, DOCUMENT_PER_FILE
from preprocess.corpus.streams import open_stream
from preprocess.corpus.text_errors import check_no_nul, line_of

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 1 << 14
LOOK_BEHIND_BYTES = 1 << 12
MAX_DOCUMENT_BYTES = 128 << 20


class TextFile:
    """One file of the corpus, open for reading ranges in rising order.

    What has been read and not yet used is kept, with the place where the next range begins, so that ranges which follow
    each other are read once, whatever crosses the border between them.

    Raises:
        ValueError: by any method, if the file cannot be read, changes meanwhile or has a record of more than
            MAX_DOCUMENT_BYTES.
    """

    def __init__(self, file: InputFile, max_expansion: int) -> None:
        self.file = file
        self.max_expansion = max_expansion
        file.check_unchanged()
        self.stream = open_stream(file.path, file.compression, max_expansion)
        self.boundaries = BOUNDARIES[file.layout]
        self.head = self.stream.read(0, HEAD_BYTES)
        self.begin = len(BYTE_ORDER_MARK) if self.head.startswith(BYTE_ORDER_MARK) else 0
        self.base = self.begin  # of the data that is not used yet
        self.data = b""
        self.reached = 0  # the range that begins here begins at ``base``

    def close(self) -> None:
        """Close the file."""
        self.stream.close()

    def runs(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of the records that begin in [first, last); each run is whole records."""
        self.file.check_unchanged()
        if first != self.reached:
            self._seek(first)
        self.reached = -1
        while self.base < min(last, self.file.num_bytes):
            cut = self._cut(last)
            run, offset = self.data[:cut], self.base  # no copy if it is all
            self.data = self.data[cut:]
            self.base += cut
            check_no_nul(self.file.path, offset, run, self.line_number)
            yield offset, run
        self.file.check_unchanged()
        self.reached = last

    def line_number(self, offset: int) -> int:
        """Return the number, from 1, of the line that holds a byte."""
        stream = open_stream(self.file.path, self.file.compression, self.max_expansion)
        try:
            return line_of(stream, offset)
        finally:
            stream.close()

    def _cut(self, last: int) -> int:
        """Read on until a boundary is seen and return how far from ``base`` a run goes that ends at one."""
        if not self.data:
            self._grow()
        while True:
            if self.base + len(self.data) > last:
                cut = self.boundaries.first(self.data, last - self.base)
                if cut < 0:
                    cut = self.boundaries.last(self.data)
            else:
                cut = self.boundaries.last(self.data)
            if cut > 0:
                return cut
            if not self._grow():
                return len(self.data)

    def _grow(self) -> bool:
        """Read more, the more there is already (so that looking through all of it again costs little)."""
        end = self.base + len(self.data)
        room = max(1, MAX_DOCUMENT_BYTES - len(self.data))
        more = self.stream.read(end, min(room, max(CHUNK_BYTES, len(self.data) // 4)))
        if (not more and end < self.file.num_bytes) or end + len(more) > self.file.num_bytes:
            raise self.file.changed()
        self.data = self.data + more if self.data else more
        if len(self.data) > MAX_DOCUMENT_BYTES:
            raise ValueError(
                f"{self.file.path} has a document of more than {MAX_DOCUMENT_BYTES:,} bytes near offset {self.base:,} "
                f"(line {self.line_number(self.base):,}) as {self.file.layout}: "
                f"{way_out(self.file.layout)}"
            )
        return bool(more)

    def _seek(self, target: int) -> None:
        """Go to the first boundary at or after ``target``."""
        if target <= self.begin or target >= self.file.num_bytes or self.file.layout == DOCUMENT_PER_FILE:
            self.base = self.begin if target <= self.begin else self.file.num_bytes
            self.data = b""
            return
        self._look_behind(target)
        while (cut := self.boundaries.first(self.data, target - self.base)) < 0:
            if not self._grow():
                cut = len(self.data)
                break
        self.data = self.data[cut:]
        self.base += cut

    def _look_behind(self, target: int) -> None:
        """Have data from some place before ``target`` on: in its line, if not blank up to there, or before it."""
        back = LOOK_BEHIND_BYTES
        while True:
            self.base = max(self.begin, target - back)
            self.data = self.stream.read(self.base, target - self.base)
            line = self.data[:-1].rpartition(b"\n")
            if self.base == self.begin or line[1] or line[2].strip():
                return
            back *= 16


def way_out(layout: str) -> str:
    """Return what to do about a document that is too large."""
    if layout == DOCUMENT_PER_FILE:
        return "split the file, or give another --layout"
    return "cut it into parts, leave the file out, or give the --layout that it has"
