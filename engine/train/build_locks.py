"""Locks that a start which was killed while it compiled an operator has left behind.

torch compiles DeepSpeed's operators once, under a lock file in the operator's folder, and waits without end where the
lock is there. The process that holds a lock keeps the file open: one that nobody has open is stale.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

LOCK = "lock"
SHARED_FILE_SYSTEMS = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "glusterfs", "fuse")
SECONDS_ON_SHARED_DISKS = 1800.0  # another host may hold a lock there; no operator takes so long


def build_root() -> Path:
    """Where torch keeps compiled operators."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def clear_stale_locks(root: Path) -> list[str]:
    """Remove the locks below a folder that no process holds.

    Args:
        root: folder of compiled operators; it need not exist.

    Returns:
        A sentence for the log for each lock that was removed or looks stale.
    """
    notes = []
    for lock in [*root.glob(f"*/{LOCK}"), *root.glob(f"*/*/{LOCK}")]:
        with contextlib.suppress(FileNotFoundError):  # its holder was done just now
            age = time.time() - lock.stat().st_mtime
            if lock.stat().st_uid != os.getuid() or lock.resolve() in _open_files():
                continue
            if _is_shared(lock) and age < SECONDS_ON_SHARED_DISKS:
                notes.append(f"{lock} is held by another host or stale: if no other start is compiling, remove it")
                continue
            lock.unlink()
            notes.append(f"removed {lock}, which a start left that was killed while it compiled")
    return notes


def _open_files() -> set[Path]:
    """Files that a process of this user on this host has open."""
    return set(_walk_open_files())


def _walk_open_files() -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    yield Path(os.readlink(descriptor))


def _is_shared(path: Path) -> bool:
    """Whether a file may be on a disk that other hosts see too."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return True
    parents = {str(parent) for parent in path.resolve().parents}
    kinds = {mount[1]: mount[2] for mount in mounts if mount[1] in parents}
    return kinds[max(kinds, key=len)].startswith(SHARED_FILE_SYSTEMS) if kinds else True
