"""Errors that say where in a corpus file the text is bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

CHUNK_BYTES = 1 << 20
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}


class Readable(Protocol):
    """Bytes at any offset, as of ``streams.ByteStream``."""

    def read(self, offset: int, size: int) -> bytes: ...


def check_no_nul(path: str, begin: int, data: bytes, line_at: Callable[[int], int] | None = None) -> None:
    """Refuse data with a NUL byte; ``begin`` is its place in the file, ``line_at`` tells the line of a place."""
    position = data.find(b"\0")
    if position >= 0:
        offset = begin + position
        line = line_at(offset) if line_at else line_number(path, offset)
        is_wide = 4 * data.count(b"\0") > len(data)
        hint = (" (this looks like UTF-16 or UTF-32)" if is_wide else "") if line_at else _hint(path)
        raise ValueError(
            f"{path} is not text: NUL byte at offset {offset:,} (line {line:,}); the corpus must be UTF-8 text{hint}"
        )


def invalid_utf8(path: str, offset: int) -> ValueError:
    """Return the error for a byte that is not UTF-8."""
    with open(path, "rb") as file:
        file.seek(offset)
        byte = file.read(1)
    return ValueError(
        f"{path} is not UTF-8: byte 0x{byte.hex()} at offset {offset:,} (line {line_number(path, offset):,})"
        f"{_hint(path)}; convert it, for example with `iconv -f ENCODING -t UTF-8`, or drop bad "
        "bytes with `iconv -c -t UTF-8`"
    )


def utf8_error(path: str, byte: int, offset: int, line: int) -> ValueError:
    """Return the error for a byte that is not UTF-8, at an offset and line of the uncompressed file."""
    return ValueError(
        f"{path} is not UTF-8: byte 0x{byte:02x} at offset {offset:,} (line {line:,}); convert it, for example "
        "with `iconv -f ENCODING -t UTF-8`, or give --invalid_utf8 drop (leaves such documents out) or "
        "--invalid_utf8 replace (puts U+FFFD in place of bad bytes)"
    )


def line_of(stream: Readable, offset: int) -> int:
    """Return the number, from 1, of the line that holds a byte of a stream."""
    number, position = 1, 0
    while position < offset and (chunk := stream.read(position, min(CHUNK_BYTES, offset - position))):
        number += chunk.count(b"\n")
        position += len(chunk)
    return number


def line_number(path: str, offset: int) -> int:
    """Return the number, from 1, of the line that holds a byte."""
    number = 1
    with open(path, "rb") as file:
        while offset > 0 and (chunk := file.read(min(CHUNK_BYTES, offset))):
            number += chunk.count(b"\n")
            offset -= len(chunk)
    return number


def _hint(path: str) -> str:
    with open(path, "rb") as file:
        head = file.read(8)
    for magic, name in COMPRESSED.items():
        if head.startswith(magic):
            return f" (this is a {name} file: unpack it first)"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return " (this looks like UTF-16)"
    return ""
