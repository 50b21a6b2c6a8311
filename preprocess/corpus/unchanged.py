"""A corpus file must stay as it was when it was looked at."""

from __future__ import annotations

import os

from preprocess.corpus.corpus import InputFile


def check_unchanged(file: InputFile) -> None:
    """Refuse a file that is not the one that was looked at: another size or time of change."""
    try:
        found = os.stat(file.path)
    except OSError as error:
        raise ValueError(f"cannot read {file.path}: {error.strerror}; it was there before") from error
    if found.st_size != file.stored_bytes:
        raise ValueError(
            f"{file.path} had {file.stored_bytes:,} bytes and now has {found.st_size:,}: it changes while it is read"
        )
    if found.st_mtime_ns != file.modified_ns:
        raise changed(file)


def changed(file: InputFile) -> ValueError:
    """Return the error for a file that is not what it was."""
    return ValueError(f"{file.path} was written to after it was looked at: it changes while it is read")
