"""The documents of a block of the input."""

from __future__ import annotations

import bisect
import operator
from collections.abc import Callable, Iterator
from typing import Protocol

from preprocess.cleaning.drops import Drops
from preprocess.corpus.corpus import Corpus, InputFile
from preprocess.corpus.document import Document
from preprocess.corpus.layouts import PARQUET
from preprocess.corpus.records import RecordParser
from preprocess.corpus.runs import TextFile

PIECE_BYTES = 1 << 20


class OpenFile(Protocol):
    """A file of the corpus that can be read by ranges."""

    def runs(self, first: int, last: int) -> Iterator[tuple[int, bytes]]: ...

    def line_number(self, offset: int) -> int: ...

    def close(self) -> None: ...


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
        self._opened: tuple[InputFile, OpenFile, RecordParser] | None = None

    def documents(self, index: int, on_text: Callable[[bytes], None] = lambda _: None) -> Iterator[Document]:
        """Yield the documents of a block.

        Args:
            on_text: gets the raw bytes of the block, uncompressed and once each, in order and in pieces.

        Raises:
            ValueError: naming the file and the place, for whatever is wrong with it.
        """
        for _, opened, parser, first, last in self._ranges(index):
            parser.drops = self.drops
            for offset, run in opened.runs(first, last):
                _give(run, on_text)
                yield from parser.documents(offset, run)
            self.num_replaced += parser.take_replaced()

    def raw(self, index: int) -> Iterator[bytes]:
        """Yield the raw bytes of a block in pieces, as ``documents`` gives them to ``on_text``."""
        for _, opened, _, first, last in self._ranges(index):
            for _, run in opened.runs(first, last):
                pieces: list[bytes] = []
                _give(run, pieces.append)
                yield from pieces

    def close(self) -> None:
        """Close the file that is open."""
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def _ranges(self, index: int) -> Iterator[tuple[InputFile, OpenFile, RecordParser, int, int]]:
        """Yield (file, the same opened, its parser, range within it) for each file that a block touches."""
        first, last = index * self.block_bytes, (index + 1) * self.block_bytes
        start_of = operator.attrgetter("start")
        files = self.corpus.files
        begin = max(0, bisect.bisect_right(files, first, key=start_of) - 1)
        end = bisect.bisect_left(files, last, key=start_of)
        for file in files[begin:end]:
            if file.start + file.num_bytes > first:
                opened, parser = self._open(file)
                yield file, opened, parser, max(0, first - file.start), last - file.start

    def _open(self, file: InputFile) -> tuple[OpenFile, RecordParser]:
        if self._opened is None or self._opened[0] is not file:
            self.close()
            settings = self.corpus.settings
            if file.layout == PARQUET:
                raise NotImplementedError
            opened = TextFile(file, settings.max_expansion)
            parser = RecordParser(file, opened.line_number, self.drops, settings.invalid_utf8, opened.head)
            self._opened = (file, opened, parser)
        return self._opened[1:]


def _give(run: bytes, on_text: Callable[[bytes], None]) -> None:
    if len(run) <= 2 * PIECE_BYTES:
        on_text(run)
        return
    for start in range(0, len(run), PIECE_BYTES):
        on_text(run[start : start + PIECE_BYTES])
