"""A lock that keeps processes which start together from building the same; it goes with its process."""

from __future__ import annotations

import contextlib
import fcntl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LOCK_SECONDS = 600.0  # several times what a build takes


@contextlib.contextmanager
def only_one(folder: Path, name: str) -> Iterator[None]:
    """Keep other processes from building the same, for as long as one builds; the lock goes with its process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f".{name}.lock").open("w")
    except OSError as error:
        raise PermissionError(*error.args) from error
    with file:
        _lock(file.fileno(), name)
        yield


def _lock(file: int, name: str) -> None:
    """Wait for a lock; without it, after ``LOCK_SECONDS`` or where there are no locks, ranks build alike, twice."""
    end, said = time.monotonic() + LOCK_SECONDS, False
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError:
            return None
        if time.monotonic() > end:
            say(f"another process builds the {name} library for {LOCK_SECONDS:.0f} s already; it is built here too")
            return None
        if not said:
            say(f"waiting for another process, which builds the {name} library")
        said = True
        time.sleep(0.1)


def say(text: str) -> None:
    """A line of the build's, to stderr."""
    print(f"kernels: {text}", file=sys.stderr, flush=True)
