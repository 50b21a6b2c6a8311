"""Errors that say where in a text file the text is bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from preprocess.corpus.streams import PARQUET_MAGIC, ByteStream, compression_of

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 8
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF32_MARKS = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")


class Readable(Protocol):
    """Bytes at any offset, as of ``streams.ByteStream``."""

    def read(self, offset: int, size: int) -> bytes: ...


def check_no_nul(path: str, begin: int, data: bytes, line_at: Callable[[int], int] | None = None) -> None:
    """Refuse data with a NUL byte; ``begin`` is its place in the file, ``line_at`` tells the line of a place."""
    position = data.find(b"\0")
    if position >= 0:
        if begin == 0:
            _check_packed(path, data)
        offset = begin + position
        line = line_at(offset) if line_at else line_number(path, offset)
        raise ValueError(
            f"{path} is not text: NUL byte at offset {offset:,} (line {line:,}); the text must be UTF-8"
            f"{_hint(path, data)}"
        )


def _check_packed(path: str, data: bytes) -> None:
    """Refuse the uncompressed data of a compressed file if it is of another kind; ``data`` is its beginning."""
    stream = ByteStream(path)
    head = stream.read(0, HEAD_BYTES)
    stream.close()
    compression = compression_of(head)
    if not compression or data.startswith(head):
        return
    if data.startswith(PARQUET_MAGIC):
        raise ValueError(
            f"{path} is a parquet file inside {compression}: unpack it first (`{compression} -dc {path} > NEW_FILE`); "
            "parquet compresses its columns itself"
        )
    if data.startswith((*UTF16_MARKS, *UTF32_MARKS)):
        encoding = "UTF-32" if data.startswith(UTF32_MARKS) else "UTF-16"
        raise ValueError(
            f"{path} is {encoding} inside {compression}: convert it: {compression} -dc {path} | "
            f"iconv -f {encoding} -t UTF-8 > NEW_FILE"
        )


def utf8_error(path: str, byte: int, offset: int, line: int) -> ValueError:
    """Return the error for a byte that is not UTF-8, at an offset and line of the uncompressed corpus file."""
    return ValueError(
        f"{path} is not UTF-8: byte 0x{byte:02x} at offset {offset:,} (line {line:,}); convert it, for example "
        "with `iconv -f ENCODING -t UTF-8`, or give --invalid_utf8 drop (leaves such documents out) or "
        "--invalid_utf8 replace (puts U+FFFD in place of bad bytes)"
    )


def invalid_utf8(path: str, offset: int) -> ValueError:
    """Return the error for a byte of a plain file that must be UTF-8 throughout, as the tables of finetune are."""
    stream = ByteStream(path)
    byte, head = stream.read(offset, 1), stream.read(0, HEAD_BYTES)
    stream.close()
    return ValueError(
        f"{path} is not UTF-8: byte 0x{byte.hex()} at offset {offset:,} (line {line_number(path, offset):,})"
        f"{_hint(path, head)}; convert it, for example with `iconv -f ENCODING -t UTF-8`, or drop bad "
        "bytes with `iconv -c -t UTF-8`"
    )


def line_of(stream: Readable, offset: int) -> int:
    """Return the number, from 1, of the line that holds a byte of a stream."""
    number, position = 1, 0
    while position < offset and (chunk := stream.read(position, min(CHUNK_BYTES, offset - position))):
        number += chunk.count(b"\n")
        position += len(chunk)
    return number


def line_number(path: str, offset: int) -> int:
    """Return the number, from 1, of the line that holds a byte of a plain file."""
    stream = ByteStream(path)
    number = line_of(stream, offset)
    stream.close()
    return number


def _hint(path: str, data: bytes) -> str:
    """Return what the bytes may be instead of UTF-8."""
    stream = ByteStream(path)
    head = stream.read(0, HEAD_BYTES)
    stream.close()
    if data.startswith(head) and (name := compression_of(head)):
        return f" (this is a {name} file: unpack it first)"
    is_wide = head.startswith(UTF16_MARKS) or 4 * data.count(b"\0") > len(data)
    return " (this looks like UTF-16)" if is_wide else ""
