"""Files that are whole or absent: temporary name, fsync, rename; and digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"
CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def open_atomically(path: Path, num_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file to write to; without an exception it is then synced, and renamed to ``path``.

    Each call has its own temporary name, so processes that write the same file at once do not disturb each other.

    Args:
        num_bytes: how much will be written, if that is known, for a message.

    Raises:
        OSError: with a text that names the folder and its free space when the disk is full.
    """
    temporary = path.with_name(f"{path.name}.{os.urandom(6).hex()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_to_disk(path.parent)
    except BaseException as failure:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(path, num_bytes, failure) from failure
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to a file that is then whole; see ``open_atomically``."""
    with open_atomically(path, len(data)) as file:
        file.write(data)


def _disk_full(path: Path, num_bytes: int | None, failure: OSError) -> OSError:
    free = shutil.disk_usage(path.parent).free
    needed = "more" if num_bytes is None else f"{num_bytes:,}"
    return OSError(
        failure.errno,
        f"{os.strerror(failure.errno or errno.ENOSPC)}: {path.name} needs {needed} bytes and {path.parent} "
        f"has {free:,} free; free some space there, or give another --output",
    )


def sync_to_disk(path: Path) -> None:
    """Bring a file, or a folder's entries and renames, to the disk: they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
