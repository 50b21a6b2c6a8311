"""Errors that say where in a corpus file the text is bad."""

from __future__ import annotations

CHUNK_BYTES = 1 << 20
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}


def check_no_nul(path: str, begin: int, data: bytes) -> None:
    """Refuse data with a NUL byte; ``begin`` is its place in the file."""
    position = data.find(b"\0")
    if position >= 0:
        offset = begin + position
        raise ValueError(
            f"{path} is not text: NUL byte at offset {offset:,} (line {line_number(path, offset):,}); "
            f"the corpus must be UTF-8 text{_hint(path)}"
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
