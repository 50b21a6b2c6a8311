"""What may lie in the folder that shards are written to, and when it may be taken over."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from preprocess.files import TEMPORARY_SUFFIX
from preprocess.locks import lock
from preprocess.manifest import MANIFEST_NAME

TOKENIZER_FOLDER = "tokenizer"
HELDOUT_FOLDER = "heldout"
CACHE_FOLDER = ".plans"  # what training keeps beside the shards: no part of them
WORK_FOLDER = ".work"  # what an unfinished run has done so far
UNFINISHED_NAME = "UNFINISHED"  # there from the first write until the manifest is in place
RECORD_PATTERN = "block-*.json"  # in the work folder: one for each block that is done
DIGESTS_PATTERN = "digests/block-*.npy"  # in the work folder: one for each block that was compared with the others
SCRATCH_PATTERN = "scratch-*"  # in the work folder: temporary folders
OUR_FILE = re.compile(rf"shard-\d{{5,}}\.h5|(shard-\d{{5,}}\.h5|{re.escape(MANIFEST_NAME)})(\.[0-9a-f]+)?\.tmp")


def shard_name(block: int) -> str:
    """Return the file name of the shard of a block."""
    return f"shard-{block:05d}.h5"


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def claim(
    folder: Path, *, resume: bool = False, shared: bool = False, say: Callable[[str], None] = _note
) -> Iterator[bool]:
    """Hold ``folder`` for a run; the value is whether an unfinished run had left something there.

    The mark of an unfinished run goes when no exception passes. A ValueError is a fault of the inputs: if nothing is
    done that a later run can use, all that was written is removed, a new folder too.

    Args:
        resume: keep what an unfinished run has left; otherwise it is removed.
        shared: several runs work there at the same time, each on its own blocks; the mark then stays.
        say: gets a line if the file system has no locks.

    Raises:
        ValueError: if there is anything in it that no run of ours left there, or another run is at work there.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file; give a folder")
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    _refuse_foreign(folder, entries)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / UNFINISHED_NAME, "a+", encoding="utf-8") as mark:
        if not lock(mark, shared=shared, say=say):
            raise ValueError(f"another run is writing to --output {folder} now; wait for it, or give another one")
        if (folder / MANIFEST_NAME).exists():
            raise ValueError(f"another run has just finished --output {folder}; run the command again")
        mark.truncate(0)
        mark.write(f"Shards are being written here, or their run was stopped: there is no {MANIFEST_NAME} yet.\n")
        mark.flush()
        leftovers = [entry for entry in entries if entry.name != UNFINISHED_NAME]
        if not resume:
            _remove(leftovers)
        if not shared:
            remove_temporary_files(folder)
        try:
            yield bool(leftovers)
        except ValueError:
            if not shared and not _has_work(folder):
                _remove([entry for entry in folder.iterdir() if is_ours(entry.name)])
                if is_new:
                    with contextlib.suppress(OSError):  # somebody has put something there meanwhile
                        folder.rmdir()
            raise
        finally:
            if not shared:
                remove_temporary_files(folder)
        if not shared:
            finish(folder)


def _has_work(folder: Path) -> bool:
    """Whether an unfinished run has done something that took time."""
    return any(any((folder / WORK_FOLDER).glob(pattern)) for pattern in (RECORD_PATTERN, DIGESTS_PATTERN))


def _refuse_foreign(folder: Path, entries: Sequence[Path]) -> None:
    unfinished = (folder / UNFINISHED_NAME).is_file()
    foreign = [entry.name for entry in entries if not (unfinished and is_ours(entry.name))]
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise ValueError(
            f"--output {folder} is not empty and has no {MANIFEST_NAME} (it holds {shown}); give a new or empty folder"
        )


def _remove(entries: Sequence[Path]) -> None:
    for entry in entries:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)


@contextlib.contextmanager
def hold_part(folder: Path, share: tuple[int, int]) -> Iterator[None]:
    """Keep a second run of the same part out, and parts of another number, where the file system has locks.

    Args:
        folder: which is claimed already.
        share: (number of the part from 0, how many there are).

    Raises:
        ValueError: if such a run is at work.
    """
    part, count = share[0] + 1, share[1]
    work = folder / WORK_FOLDER
    work.mkdir(exist_ok=True)
    with open(work / f"part-{part}-of-{count}.lock", "a+", encoding="utf-8") as own:
        if not lock(own):
            raise ValueError(f"part {part}/{count} of {folder} is being made by another run now")
        for path in work.glob("part-*-of-*.lock"):
            other, _, other_count = path.stem.removeprefix("part-").partition("-of-")
            if other_count != str(count):  # its blocks are partly ours
                with open(path, "a+", encoding="utf-8") as other_file:
                    if not lock(other_file):
                        raise ValueError(
                            f"part {other}/{other_count} of {folder} is being made now: parts that run at the same "
                            f"time need the same number of parts, and this one is {part}/{count}"
                        )
        yield


def is_ours(name: str) -> bool:
    """Whether an entry of an unfinished folder was made by a run of ours."""
    if name in (UNFINISHED_NAME, TOKENIZER_FOLDER, HELDOUT_FOLDER, WORK_FOLDER):
        return True
    return OUR_FILE.fullmatch(name) is not None


def remove_temporary_files(folder: Path) -> None:
    """Remove what workers that were stopped left half-written."""
    for pattern in (
        f"*{TEMPORARY_SUFFIX}",
        f"{HELDOUT_FOLDER}/*{TEMPORARY_SUFFIX}",
        f"{WORK_FOLDER}/**/*{TEMPORARY_SUFFIX}",
    ):
        for entry in folder.glob(pattern):
            entry.unlink(missing_ok=True)
    for scratch in (folder / WORK_FOLDER).glob(SCRATCH_PATTERN):
        shutil.rmtree(scratch, ignore_errors=True)


def finish(folder: Path) -> None:
    """Remove what belongs to an unfinished run: its work folder, and last its mark."""
    shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
    (folder / UNFINISHED_NAME).unlink(missing_ok=True)
