"""Standard input to a file that can be read in parts."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 1 << 20
NAME = "stdin"


def spool_standard_input(folder: Path, stream: BinaryIO | None = None) -> Path:
    """Write standard input to the file ``stdin`` in a folder, and return it.

    Args:
        folder: made if it is not there.
        stream: read instead of standard input.

    Raises:
        ValueError: if standard input is a terminal.
        OSError: with a text that names the folder and its free space when the disk is full.
    """
    source = stream or sys.stdin.buffer
    if source.isatty():
        raise ValueError("--corpus - reads standard input, which is a terminal; pipe a text into the command")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    written = 0
    try:
        with open(path, "wb") as file:
            while chunk := source.read(CHUNK_BYTES):
                file.write(chunk)
                written += len(chunk)
    except OSError as failure:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if failure.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(folder).free
            raise OSError(
                failure.errno,
                f"{os.strerror(failure.errno)}: standard input is kept in {folder} while it is read; more than "
                f"{written:,} bytes have come, and {free:,} are free there now; free some space there, or keep "
                "it elsewhere (--output of shards; of tokenizer, the environment variable TMPDIR)",
            ) from failure
        raise
    return path
