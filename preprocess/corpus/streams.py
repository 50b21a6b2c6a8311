"""The uncompressed bytes of a file at any offset: cheap forwards, and a little backwards."""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

FEED_BYTES = 1 << 18  # compressed bytes given to a decoder at once
PIECE_BYTES = 1 << 20  # uncompressed bytes that a decoder gives at most at once
ZSTD_FEED_BYTES = 1 << 11  # zstd's decoder gives all that it can: up to 32 KiB for each byte
WINDOW_BYTES = 2 << 20  # kept behind the last read of a compressed file
TRUSTED_BYTES = 64 << 20  # what any file may expand to
MAX_XZ_MEMORY = 512 << 20

PARQUET_MAGIC = b"PAR1"
MAGICS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2"}


class Decoder(Protocol):
    """One member (stream, frame) of a compressed file, as in ``bz2`` and ``lzma``."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class ByteStream:
    """Bytes of an ordinary file.

    Args:
        path: the file.

    Raises:
        ValueError: if it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = _open_to_read(path)

    def read(self, offset: int, size: int) -> bytes:
        """Return the ``size`` bytes from ``offset``; fewer only at the end of the file."""
        return os.pread(self.file.fileno(), size, offset) if size <= PIECE_BYTES else self._read_much(offset, size)

    def _read_much(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(size)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class CompressedStream(ByteStream):
    """Uncompressed bytes of a compressed file.

    Args:
        path: the file.
        compression: "gzip", "zstd", "xz" or "bzip2".
        max_expansion: how many times larger than the file its text may be, above ``TRUSTED_BYTES``.

    Raises:
        ValueError: by any method, if the file is cut off, damaged or expands too much, naming it and the offset.
    """

    def __init__(self, path: str, compression: str, max_expansion: int) -> None:
        super().__init__(path)
        self.compression = compression
        self.max_expansion = max_expansion
        self.window = bytearray()
        self.start = 0  # of the window
        self.pieces = self._decode()

    def read(self, offset: int, size: int) -> bytes:
        """Return the ``size`` bytes from ``offset``; fewer only at the end of the file."""
        if offset < self.start:
            self.file.seek(0)
            self.window = bytearray()
            self.start = 0
            self.pieces = self._decode()
        while self.start + len(self.window) < offset + size:
            surplus = min(offset, self.start + len(self.window)) - WINDOW_BYTES - self.start
            if surplus > WINDOW_BYTES:
                del self.window[:surplus]
                self.start += surplus
            piece = next(self.pieces, None)
            if piece is None:
                break
            self.window += piece
        return bytes(self.window[offset - self.start : offset - self.start + size])

    def close(self) -> None:
        """Close the file."""
        self.pieces = iter(())
        super().close()

    def _decode(self) -> Iterator[bytes]:
        """Yield the uncompressed bytes in pieces of bounded size, member after member."""
        num_bytes = num_read = 0
        data = b""
        decoder: Decoder | None = None
        feed_bytes = ZSTD_FEED_BYTES if self.compression == "zstd" else FEED_BYTES
        while True:
            if not data and (decoder is None or decoder.needs_input):
                data = self.file.read(feed_bytes)
                num_read += len(data)
                if not data:
                    break
            if decoder is None:
                data = self._next_member(data, num_read, num_bytes)
                decoder = new_decoder(self.path, self.compression) if data else None
                continue
            try:
                piece = decoder.decompress(data, PIECE_BYTES)
            except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
                raise ValueError(
                    f"{self.path} is damaged: its {self.compression} data cannot be unpacked near byte {num_read:,} of "
                    f"the file, after {num_bytes:,} bytes of text ({error}); fetch or make the file again"
                ) from None
            data = decoder.unused_data if decoder.eof else b""
            num_bytes += len(piece)
            self._check_expansion(num_bytes, num_read)
            if piece:
                yield piece
            if decoder.eof:
                decoder = None
        if decoder is not None:
            raise ValueError(
                f"{self.path} is cut off: its {self.compression} data ends in the middle at byte {num_read:,} of the "
                f"file, after {num_bytes:,} bytes of text; fetch or make the file again"
            )

    def _next_member(self, data: bytes, num_read: int, num_bytes: int) -> bytes:
        """Return the data from the next member on, with the start of its header; b"" at the end of the file."""
        data = data.lstrip(b"\0") if num_bytes else data  # padding
        while data and len(data) < 4 and (more := self.file.read(4)):
            data += more
            num_read += len(more)
        magics = [magic for magic, name in MAGICS.items() if name == self.compression]
        is_skippable = self.compression == "zstd" and data[1:4] == b"\x2a\x4d\x18" and data[0] >> 4 == 5
        if data and not is_skippable and not any(data.startswith(magic[:4]) for magic in magics):
            raise ValueError(
                f"{self.path} is damaged: at byte {num_read - len(data):,} of the file, behind a complete part of "
                f"{self.compression} data ({num_bytes:,} bytes of text so far), there is something else; fetch or make "
                "the file again"
            )
        return data

    def _check_expansion(self, num_bytes: int, num_read: int) -> None:
        if num_bytes > TRUSTED_BYTES and num_bytes > self.max_expansion * num_read:
            raise ValueError(
                f"{self.path} expands to more than {self.max_expansion:,} times its size ({num_bytes:,} bytes of text "
                f"from {num_read:,} bytes of {self.compression} data so far): that is no ordinary text; leave it out, "
                "or allow more with --max_expansion"
            )


class GzipDecoder:
    """A gzip member with the methods of ``bz2.BZ2Decompressor``."""

    def __init__(self) -> None:
        self.decoder = zlib.decompressobj(31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self.decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self.decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        text = self.decoder.decompress(self.decoder.unconsumed_tail + data, max_length)
        self.needs_input = len(text) < max_length and not self.decoder.unconsumed_tail
        return text


class ZstdDecoder:
    """A zstd frame with the methods of ``bz2.BZ2Decompressor``; it gives all that it can."""

    def __init__(self, path: str) -> None:
        try:
            import zstandard
        except ImportError:
            raise ValueError(
                f"{path} is a zstd file: reading it needs the package zstandard; install it with "
                "`pip install zstandard`, or unpack the file first"
            ) from None
        self.error = zstandard.ZstdError
        self.decoder = zstandard.ZstdDecompressor().decompressobj()
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self.decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self.decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        try:
            return self.decoder.decompress(data)
        except self.error as error:
            raise ValueError(str(error)) from None


def new_decoder(path: str, compression: str) -> Decoder:
    """Return a decoder for one member of a compressed file."""
    if compression == "gzip":
        return GzipDecoder()
    if compression == "bzip2":
        return bz2.BZ2Decompressor()
    if compression == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY)
    return ZstdDecoder(path)


def _open_to_read(path: str) -> BinaryIO:
    """Open a file for reading; failure is a ValueError."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def compression_of(head: bytes) -> str:
    """Return the compression that a file's first bytes show, or ""."""
    return next((name for magic, name in MAGICS.items() if head.startswith(magic)), "")


def open_stream(path: str, compression: str, max_expansion: int) -> ByteStream:
    """Open a file to read its uncompressed bytes."""
    return CompressedStream(path, compression, max_expansion) if compression else ByteStream(path)
