"""Locks on files, which keep runs out of each other's way."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable
from typing import TextIO

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def lock(file: TextIO, *, shared: bool = False, say: Callable[[str], None] = lambda line: None) -> bool:
    """Lock a file while it is open; where the file system has no locks, tell the user so.

    Args:
        file: opened to read and write ("a+"): over NFS a shared lock needs the one, an exclusive lock the other.
        shared: others may have the same lock at the same time.
        say: gets the line for the user.

    Returns:
        False if another process has it.

    Raises:
        OSError: if it cannot be locked for another reason.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        say(f"note: the file system of {file.name} has no locks: see to it that no second run works there")
    return True
