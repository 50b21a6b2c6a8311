"""Locks of torch's compiler that nobody holds are removed, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.train import build_locks
from engine.train.build_locks import clear_stale_locks


def make_lock(root: Path, folder: str, age: float = 0.0) -> Path:
    lock = root / folder / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (time.time() - age, time.time() - age))
    return lock


def test_a_lock_that_nobody_holds_goes(tmp_path):
    locks = [make_lock(tmp_path, "cpu_adam"), make_lock(tmp_path, "py311_cpu/async_io")]
    notes = clear_stale_locks(tmp_path)
    assert not any(lock.exists() for lock in locks)
    assert len(notes) == 2 and notes[0] == f"removed {locks[0]}, which a start left that was killed while it compiled"
    assert clear_stale_locks(tmp_path) == [] and clear_stale_locks(tmp_path / "absent") == []


def test_a_lock_that_a_process_holds_stays(tmp_path):
    """torch's own lock, held by another process."""
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    program = (
        "import sys, time; from torch.utils.file_baton import FileBaton; b = FileBaton(sys.argv[1]); "
        "assert b.try_acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert clear_stale_locks(tmp_path) == [] and lock.exists()
        holder.kill()
    assert len(clear_stale_locks(tmp_path)) == 1 and not lock.exists()


@pytest.mark.parametrize(("age", "kept"), [(60.0, True), (7200.0, False)])
def test_on_a_shared_disk_a_young_lock_may_be_another_hosts(age, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(build_locks, "_is_shared", lambda path: True)
    lock = make_lock(tmp_path, "cpu_adam", age)
    (note,) = clear_stale_locks(tmp_path)
    assert lock.exists() is kept
    assert ("if no other start is compiling, remove it" in note) is kept


def test_this_disk_is_not_shared(tmp_path):
    assert not build_locks._is_shared(tmp_path / "lock")
