"""The file of dropped texts that the user asked for: where it may lie, and what goes into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from preprocess.building.work import WorkFolder
from preprocess.files import open_atomically


def join_dropped(path: Path, work: WorkFolder, num_blocks: int) -> None:
    """Join the dropped texts of all blocks into the file that the user asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path) as joined:
        for block in range(num_blocks):
            with open(work.dropped_path(block), "rb") as part:
                shutil.copyfileobj(part, joined)


def check_dropped(dropped: str, output: Path, arguments: Sequence[str], files: Sequence[str]) -> None:
    """Refuse to write what is dropped into the output, into the corpus, or over a folder.

    Args:
        arguments: [NAME=]PATH of the corpus.
        files: of the corpus.

    Raises:
        ValueError: naming the file and what is in the way.
    """
    path = os.path.abspath(dropped)
    if os.path.isdir(path):
        raise ValueError(f"--dropped {dropped} is a folder; give a file")
    if path.startswith(os.path.join(os.path.abspath(output), "")):
        raise ValueError(f"--dropped {dropped} lies in --output {output}; give a file elsewhere")
    folders = [argument for argument in map(path_of_argument, arguments) if os.path.isdir(argument)]
    if any(path.startswith(os.path.join(os.path.abspath(folder), "")) for folder in folders):
        raise ValueError(f"--dropped {dropped} lies in the corpus, so the next run would read it; give another file")
    if os.path.exists(path) and any(os.path.samefile(path, file) for file in files):
        raise ValueError(f"--dropped {dropped} is a file of the corpus, and would be overwritten; give another file")


def path_of_argument(argument: str) -> str:
    """Return the path of a ``[NAME=]PATH`` argument."""
    return argument if os.path.lexists(argument) else argument.partition("=")[2] or argument
