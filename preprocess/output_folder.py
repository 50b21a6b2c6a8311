"""What may lie in the folder that shards are written to, and when it may be taken over."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from preprocess.files import TEMPORARY_SUFFIX, write_atomically
from preprocess.manifest import MANIFEST_NAME

TOKENIZER_FOLDER = "tokenizer"
HELDOUT_FOLDER = "heldout"
UNFINISHED_NAME = "UNFINISHED"  # there from the first write until the manifest is in place
SHARD_NAME = re.compile(r"shard-\d{5,}\.h5")


def shard_name(block: int) -> str:
    """Return the file name of the shard of a block."""
    return f"shard-{block:05d}.h5"


def take_over(folder: Path) -> bool:
    """Make ``folder`` ready for a new run; return whether leftovers of an unfinished one were removed.

    Raises:
        ValueError: if there is anything in it that no run of ours left there.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file; give a folder")
    unfinished = (folder / UNFINISHED_NAME).is_file()
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    foreign = [entry.name for entry in entries if not (unfinished and is_ours(entry.name))]
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise ValueError(
            f"--output {folder} is not empty and has no {MANIFEST_NAME} (it holds {shown}); give a new or empty folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / UNFINISHED_NAME, b"shards are being written here; no manifest.json yet\n")
    for entry in entries:
        if entry.name != UNFINISHED_NAME:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return len(entries) > 1


def is_ours(name: str) -> bool:
    """Whether an entry of an unfinished folder was made by a run of ours."""
    if name in (UNFINISHED_NAME, TOKENIZER_FOLDER, HELDOUT_FOLDER):
        return True
    return (
        SHARD_NAME.fullmatch(name.removesuffix(TEMPORARY_SUFFIX)) is not None
        or name == MANIFEST_NAME + TEMPORARY_SUFFIX
    )


def remove_temporary_files(folder: Path) -> None:
    """Remove what workers that were stopped left half-written."""
    for entry in [*folder.glob(f"*{TEMPORARY_SUFFIX}"), *folder.glob(f"*/*{TEMPORARY_SUFFIX}")]:
        entry.unlink(missing_ok=True)


def finish(folder: Path) -> None:
    """Remove the mark of an unfinished run."""
    (folder / UNFINISHED_NAME).unlink(missing_ok=True)
