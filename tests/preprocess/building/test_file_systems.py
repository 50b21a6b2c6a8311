"""Folders on file systems that lack locks or hard links, and locks over NFS."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

import preprocess.building.work
from preprocess.building.work import WorkFolder
from preprocess.output_folder import claim, hold_part


@pytest.fixture
def locked_as_over_nfs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """There flock is made of byte range locks, which need a descriptor open to read or to write."""
    real, seen = fcntl.flock, []

    def flock(file, operation: int) -> None:
        needed = os.O_RDONLY if operation & fcntl.LOCK_SH else os.O_WRONLY
        access = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if access not in (needed, os.O_RDWR):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        seen.append(operation)
        real(file, operation)

    monkeypatch.setattr("fcntl.flock", flock)
    return seen


def test_locks_over_nfs(tmp_path: Path, locked_as_over_nfs: list[int]) -> None:
    with claim(tmp_path / "out", shared=True, resume=True), hold_part(tmp_path / "out", (0, 2)):
        with (
            pytest.raises(ValueError, match=r"part 1/2 of .*out is being made by another run now"),
            claim(tmp_path / "out", shared=True, resume=True),
            hold_part(tmp_path / "out", (0, 2)),
        ):
            pass
        with (
            pytest.raises(ValueError, match=r"another run is writing to --output .*out now"),
            claim(tmp_path / "out", resume=True),
        ):
            pass
    assert {operation & ~fcntl.LOCK_NB for operation in locked_as_over_nfs} == {fcntl.LOCK_SH, fcntl.LOCK_EX}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_no_locks_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(file, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    told: list[str] = []
    with claim(tmp_path / "out", shared=True, say=told.append), hold_part(tmp_path / "out", (0, 2)):
        pass
    mark = tmp_path / "out" / "UNFINISHED"
    assert told == [f"note: the file system of {mark} has no locks: see to it that no second run works there"]


def test_other_failures_of_locks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="Input/output error"), claim(tmp_path / "out"):
        pass


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_plans_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(preprocess.building.work.os, "link", link)
    work = WorkFolder(tmp_path)
    work.make()
    assert work.offer_plan({"first": 1}) == {"first": 1}
    assert work.offer_plan({"second": 2}) == {"first": 1}
    assert json.loads((work.path / "plan.json").read_text()) == {"first": 1}
    assert not list(work.path.glob("*.tmp"))


def test_plan_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(preprocess.building.work.os, "link", fail)
    monkeypatch.setattr(preprocess.building.work, "sync_to_disk", fail)
    monkeypatch.setattr(preprocess.building.work.os, "fsync", fail)
    work = WorkFolder(tmp_path)
    work.make()
    with pytest.raises(OSError, match="No space left on device"):
        work.offer_plan({"first": 1})
    assert {path.name for path in work.path.iterdir()} == {"digests", "duplicates", "dropped"}


def test_temporary_folders_of_dead_runs_go(tmp_path: Path) -> None:
    """Those of other parts may be in use."""
    work = WorkFolder(tmp_path / "out")
    with claim(tmp_path / "out", shared=True):
        work.make()
        (work.path / "scratch-0-of-2-abc").mkdir()
    with claim(tmp_path / "out", shared=True, resume=True):
        assert (work.path / "scratch-0-of-2-abc").exists()
    with claim(tmp_path / "out", resume=True):
        assert not (work.path / "scratch-0-of-2-abc").exists() and work.path.exists()
