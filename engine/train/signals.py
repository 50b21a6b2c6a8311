"""Asking a run to stop: by SIGTERM, by SIGUSR1 or by a file in its folder. The run saves and ends with its own code."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from engine.train.distributed import global_rank, shared_store, world_size

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOP_FILE = "STOP"
STOP_ASKED = "stop-asked"  # in the store of the ranks: what asked another rank than 0
SECONDS_BETWEEN_LOOKS = 1.0


class StopRequest:
    """Remembers that this process was asked to stop; the loop looks at ``requested`` between two steps.

    A signal may reach one rank or all, once or several times: the loop asks all ranks at each step, so that they stop
    together. Between ``install`` and ``restore`` the signals end nothing by themselves.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Prepare; nothing is installed yet.

        Args:
            folder: where a file named STOP asks too, whatever the launcher does with signals; rank 0 alone looks.
        """
        self._file = folder / STOP_FILE if folder is not None and global_rank() == 0 else None
        self._arrived: str | None = None
        self._earlier: dict[signal.Signals, Any] = {}
        self._looked = float("-inf")
        self._told = False

    def install(self) -> None:
        """Take the signals over; in the main thread only, as Python asks."""
        self._earlier = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}

    def restore(self) -> None:
        """Give the signals back, and remove the file that was obeyed, so that the same command goes on."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}
        if self._file is not None and self._arrived == self._name_of_file():
            self._file.unlink(missing_ok=True)

    @property
    def requested(self) -> str | None:
        """What asked this process to stop: ``SIGTERM``, ``SIGUSR1`` or the path of the file; None if nothing did."""
        if self._arrived is None and self._file is not None:
            now = time.monotonic()
            if now - self._looked >= SECONDS_BETWEEN_LOOKS:
                self._looked = now
                if self._file.exists():
                    self._arrived = self._name_of_file()
        return self._arrived

    def tell_rank_zero(self) -> None:
        """On another rank, while rank 0 does something else than steps: let it know what asked this process to stop."""
        if self._arrived is not None and not self._told:
            shared_store().set(STOP_ASKED, self._arrived)
            self._told = True

    def requested_on_any(self) -> str | None:
        """On rank 0: as ``requested``, but of all ranks, as far as they have told it."""
        if self.requested is None and world_size() > 1 and shared_store().check([STOP_ASKED]):
            self._arrived = shared_store().get(STOP_ASKED).decode()
        return self.requested

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._arrived = signal.Signals(number).name

    def _name_of_file(self) -> str:
        return f"the file {self._file}"
