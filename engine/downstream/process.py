"""One fine-tuning as a process of its own: its command, its environment, its end. Never imports torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from engine.launch.environment import NAMES
from preprocess.files import write_atomically

CHILD = Path(__file__).resolve().parent / "child.py"
LAUNCHER_NAMES = (*NAMES, "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "DS_ENV_FILE")
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "GROUP_", "ROLE_", "SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_", "MV2_")
TAIL_LINES = 15
SECONDS_TO_END = 10.0


def clean_environment(environ: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """The environment of one rank that no launcher started: without what tells ranks apart, with ``more``."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in LAUNCHER_NAMES and not name.startswith(LAUNCHER_PREFIXES)
    }
    return {**kept, **more}


class FinetuneProcess:
    """A running finetune/run.py, which ends with this process; its log goes to a file."""

    def __init__(self, settings: Path, options: Sequence[str], log: Path, more: Mapping[str, str]) -> None:
        """Start it.

        Args:
            settings: YAML file for its --config.
            options: further arguments.
            log: gets what it prints.
            more: variables of its environment.
        """
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(CHILD), "--config", str(settings), *options],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=clean_environment(os.environ, more),
                start_new_session=True,
            )
        self._stdin: IO[bytes] | None = self._process.stdin
        self._lock = threading.Lock()

    def wait(self, seconds: float) -> int:
        """Its exit code, when it has ended.

        Raises:
            TimeoutError: if it has not ended in time; it is ended then.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"it was ended after {seconds:g} s (timeout); the end of {self.log}:\n{self.last_lines()}"
            ) from None
        finally:
            self.close()

    def close(self) -> None:
        """End it at once, if it has not ended; may be called from any thread, more than once."""
        with self._lock:
            if self._stdin is not None:
                self._stdin.close()  # the child watches it
                self._stdin = None
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_lines(self) -> str:
        """The end of its log."""
        return tail(self.log.read_text(encoding="utf-8", errors="replace"), TAIL_LINES)


def write_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Write a task's settings as a file for --config; JSON is YAML."""
    write_atomically(file, (json.dumps(settings, indent=1, ensure_ascii=False) + "\n").encode())


def tail(text: str, lines: int) -> str:
    """The last lines of a log, without its progress bars."""
    kept = [line.rpartition("\r")[2].rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in kept[-lines:])
