"""The documents of a block of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from preprocess.cleaning.drops import Drops
from preprocess.corpus.corpus import Corpus, InputFile
from preprocess.corpus.document import Document
from preprocess.corpus.layouts import PARQUET
from preprocess.corpus.parquet import ParquetRows
from preprocess.corpus.records import TextRecords

PIECE_BYTES = 1 << 20


class OpenFile(Protocol):
    """A file of the corpus that can be read by ranges.

    Attributes:
        drops: counts the records that give no document.
        num_replaced: documents in which invalid bytes became U+FFFD so far.
    """

    drops: Drops
    num_replaced: int

    def read(self, first: int, last: int) -> Iterator[tuple[bytes, Iterator[Document]]]:
        """Yield (raw bytes, documents) of the records that begin in [first, last), in parts."""

    def close(self) -> None:
        """Close the file."""


class BlockReader:
    """Reads blocks of a corpus; one in each process, which is asked for blocks in rising order.

    The file read last stays open, so that a compressed one is decompressed once, whatever blocks of it are asked for.

    Args:
        corpus: what to read.
        block_bytes: size of a block: block k is the records whose first byte lies in [k, k + 1) * block_bytes.
        drops: counts the records that give no document.

    Attributes:
        drops: may be changed from block to block.
        num_replaced: documents in which invalid bytes became U+FFFD so far.
    """

    def __init__(self, corpus: Corpus, block_bytes: int, drops: Drops | None = None) -> None:
        self.corpus = corpus
        self.block_bytes = block_bytes
        self.drops = drops or Drops()
        self.num_replaced = 0
        self._file: InputFile | None = None
        self._opened: OpenFile | None = None

    def documents(self, index: int, on_text: Callable[[bytes], None] = lambda _: None) -> Iterator[Document]:
        """Yield the documents of a block.

        Args:
            on_text: gets the raw bytes of the block, uncompressed and once each, in order and in pieces.

        Raises:
            ValueError: naming the file and the place, for whatever is wrong with it.
        """
        for opened, first, last in self._ranges(index):
            opened.drops = self.drops
            replaced_before = opened.num_replaced
            for raw, documents in opened.read(first, last):
                for piece in _pieces(raw):
                    on_text(piece)
                yield from documents
            self.num_replaced += opened.num_replaced - replaced_before

    def raw(self, index: int) -> Iterator[bytes]:
        """Yield the raw bytes of a block in pieces, as ``documents`` gives them to ``on_text``."""
        for opened, first, last in self._ranges(index):
            for raw, _ in opened.read(first, last):
                yield from _pieces(raw)

    def close(self) -> None:
        """Close the file that is open."""
        if self._opened is not None:
            self._opened.close()
        self._file = self._opened = None

    def _ranges(self, index: int) -> Iterator[tuple[OpenFile, int, int]]:
        """Yield (file, first, last) of the range within each file that a block touches."""
        first, last = index * self.block_bytes, (index + 1) * self.block_bytes
        for file in self.corpus.files_between(first, last):
            yield self._open(file), max(0, first - file.start), last - file.start

    def _open(self, file: InputFile) -> OpenFile:
        if self._opened is None or self._file is not file:
            self.close()
            settings = self.corpus.settings
            if file.layout == PARQUET:
                self._opened = ParquetRows(file, settings.invalid_utf8)
            else:
                self._opened = TextRecords(
                    file, settings.invalid_utf8, settings.max_expansion, settings.incomplete_records
                )
            self._file = file
        return self._opened


def _pieces(raw: bytes) -> Iterator[bytes]:
    if len(raw) <= 2 * PIECE_BYTES:
        yield raw
        return
    for start in range(0, len(raw), PIECE_BYTES):
        yield raw[start : start + PIECE_BYTES]
