"""A side's process (model_worker.py) as models.py sees it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.model_cases import Case
from benchmarks.model_sides import Side

WORKER = Path(__file__).resolve().parent / "model_worker.py"


class SideFailedError(Exception):
    """A side that will answer no more; the text says why."""


class Process:
    """A side's process."""

    def __init__(self, side: Side, case: Case, device: str, together: bool) -> None:
        """Start it.

        Args:
            side: what it trains.
            case: on what.
            device: cuda or cpu.
            together: whether sequences share rows where the side packs them.
        """
        self.side = side
        reader, writer = os.pipe()
        command = [sys.executable, str(WORKER), "--device", device, "--answers", str(writer)]
        command += ["--side", json.dumps(asdict(side)), "--case", json.dumps(asdict(case))]
        command += ["--together"] * together
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=sys.stderr, text=True, pass_fds=[writer], env=environment
        )
        os.close(writer)
        self._answers, self._buffer = reader, b""

    def ask(self, do: str, limit: float, **more: Any) -> dict[str, Any]:
        """The answer to a command.

        Raises:
            SideFailedError: if it is an error, or none comes within the limit's seconds.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SideFailedError(f"{do}: the process has ended") from None
        return self.answer(limit, do)

    def answer(self, limit: float, do: str = "start") -> dict[str, Any]:
        """The next answer, as ``ask``."""
        end = time.monotonic() + limit
        while b"\n" not in self._buffer:
            if not select.select([self._answers], [], [], max(0.0, end - time.monotonic()))[0]:
                raise SideFailedError(f"{do}: no answer after {limit:.0f} s")
            read = os.read(self._answers, 1 << 16)
            if not read:
                raise SideFailedError(f"{do}: the process ended with exit code {self._process.wait()}")
            self._buffer += read
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideFailedError(f"{do}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        os.close(self._answers)
