"""How ranks tell the thread that finishes a checkpoint, through small files beside it, that their part is written."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.files import write_text

SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
NAMED_RANKS = 8


@dataclass(frozen=True)
class Report:
    """What a rank says of its part.

    Attributes:
        token: names the save, so that what an earlier one left can never be taken for it.
        files: size and sha256 of each file it wrote.
        failed: it could not write; its own process knows why.
    """

    token: str
    files: dict[str, dict[str, Any]]
    failed: bool = False


def report_file(rank: int) -> str:
    """Name of a rank's report."""
    return f"rank-{rank:05d}.json"


def publish_report(folder: Path, rank: int, report: Report) -> None:
    """Let the others see it, once what it speaks of is on the disk."""
    write_text(folder / report_file(rank), json.dumps(asdict(report)))


def collect_reports(
    folder: Path, ranks: int, token: str, cancelled: threading.Event, timeout: float
) -> dict[str, dict[str, Any]] | None:
    """Wait for the reports of all ranks; no rank communicates, so it may run beside training.

    The folder is listed once a round, whatever the number of ranks, and ever less often.

    Args:
        folder: of the checkpoint, which all ranks see.
        ranks: how many there are.
        token: of this save.
        cancelled: set where waiting is of no use any more.
        timeout: seconds after which a missing rank is an error.

    Returns:
        Size and sha256 of the files of all ranks; None if a rank failed or the wait was cancelled.

    Raises:
        TimeoutError: naming ranks that reported nothing in time.
    """
    waiting = {report_file(rank): rank for rank in range(ranks)}
    files: dict[str, dict[str, Any]] = {}
    deadline, pause = time.monotonic() + timeout, SHORTEST_PAUSE
    while True:
        for name in sorted(waiting.keys() & set(os.listdir(folder))):
            report = Report(**json.loads((folder / name).read_text(encoding="utf-8")))
            if report.token == token:
                if report.failed:
                    return None
                files.update(report.files)
                del waiting[name]
        if not waiting:
            return files
        if time.monotonic() > deadline:
            missing = sorted(waiting.values())
            more = f" and {len(missing) - NAMED_RANKS} more" if len(missing) > NAMED_RANKS else ""
            names = ", ".join(map(str, missing[:NAMED_RANKS]))
            raise TimeoutError(errno.ETIMEDOUT, f"no word of rank {names}{more} in {timeout:.0f} s")
        if cancelled.wait(pause):
            return None
        pause = min(pause * 1.5, LONGEST_PAUSE)


def remove_reports(folder: Path, ranks: int) -> None:
    """They have said what they had to say; the manifest holds it now."""
    for rank in range(ranks):
        (folder / report_file(rank)).unlink(missing_ok=True)
