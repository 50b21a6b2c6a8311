"""What the ranks tell of themselves every few seconds, and how one that is gone, frozen or hung is found in it.

No network and no clock of its own: engine/train/watchdog.py carries the beats from rank to rank.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

ALIVE, ENDED, FAILED = "alive", "ended", "failed"
LAUNCHER = -1  # stands for a rank where torchrun's agent keeps the store
# Where the main thread may stand for long while the others wait for it: compilers, and work that one rank does for all.
PATIENT_FILES = (
    "/torch/_dynamo/",
    "/torch/_inductor/",
    "/torch/utils/cpp_extension.py",
    "/torch/utils/file_baton.py",
    "/engine/checkpoint/",
    "/engine/train/profiling.py",  # writes the trace of a rank
)
PATIENT_FUNCTIONS = ("from_rank_zero", "open_rows")
GONE_OR_FROZEN = "its process or its machine is gone or frozen"
LIBRARIES = ("/site-packages/", os.path.dirname(os.__file__), "<frozen ")


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank tells of itself.

    Attributes:
        rank: its number.
        host: name of its machine.
        pid: its process there.
        namespace: which process numbers those are: two containers of a host may use the same.
        number: one more with every beat.
        state: ``alive``, ``ended`` (well, or together with the others) or ``failed`` by itself.
        text: how it failed.
        collectives: collective operations that it has begun, in groups of all ranks.
        progress: how often its loop reported progress.
        patient: its main thread does what may take long.
        place: where its main thread stands.
    """

    rank: int
    host: str
    pid: int
    namespace: str
    number: int = 0
    state: str = ALIVE
    text: str = ""
    collectives: int = 0
    progress: int = 0
    patient: bool = False
    place: str = ""

    @property
    def name(self) -> str:
        """The rank in a message."""
        if self.rank == LAUNCHER:
            return f"the launcher (its store at {self.host})"
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"

    def encode(self) -> str:
        """As text for the store."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str | bytes) -> Beat:
        """From the store's text."""
        return cls(**json.loads(text))


def first_beat(rank: int) -> Beat:
    """The beat of this process before anything has happened."""
    space = Path("/proc/self/ns/pid")
    namespace = os.readlink(space) if space.is_symlink() else ""
    return Beat(rank=rank, host=platform.node(), pid=os.getpid(), namespace=namespace)


def launcher_beat() -> Beat:
    """The launcher that keeps the ranks' store; it has no main thread that others could wait for."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return Beat(rank=LAUNCHER, host=address, pid=0, namespace="", patient=True)


def next_beat(beat: Beat, progress: int) -> Beat:
    """The beat that follows, with what this process does now."""
    patient, place = main_thread()
    return replace(
        beat,
        number=beat.number + 1,
        collectives=collectives_begun(),
        progress=progress,
        patient=patient,
        place=place,
    )


def collectives_begun() -> int:
    """Collective operations that this process has begun in groups of all ranks.

    The backends number them to find ranks that do not follow the same program; the sum over groups grows alike on all.
    """
    world = torch.distributed.distributed_c10d._world
    size = torch.distributed.get_world_size()
    groups: list[Any] = list(world.pg_map)
    return sum(group._get_sequence_number_for_group() for group in groups if group.size() == size)


def main_thread() -> tuple[bool, str]:
    """Whether the main thread does what may take long, and the innermost line outside libraries where it stands."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    patient, place, innermost = False, "", ""
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        line = f"{function}, line {frame.f_lineno} of {file}"
        innermost = innermost or line
        if not place and not any(part in file for part in LIBRARIES):
            place = line
        patient = patient or function in PATIENT_FUNCTIONS or any(part in file for part in PATIENT_FILES)
        frame = frame.f_back
    return patient, place or innermost


def is_gone(beat: Beat, here: Beat) -> bool:
    """Whether the process of a beat has ended, as far as this process can see it: on its own host only."""
    if (beat.host, beat.namespace) != (here.host, here.namespace) or not here.namespace:
        return False
    try:
        state = Path(f"/proc/{beat.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in ("Z", "X")


class Judge:
    """Finds the rank that the others wait for in vain, in the beats that are heard here.

    A look that comes late counts as one of twice the interval: a machine that slept finds nobody guilty.
    """

    def __init__(self, rank: int, timeout: float, interval: float, now: float) -> None:
        """Begin to listen.

        Args:
            rank: who judges; it knows that it lives.
            timeout: seconds of silence, or of standing still while others wait, that a rank may take.
            interval: seconds between two looks.
            now: seconds of any clock that does not jump back.
        """
        self._rank, self._timeout, self._interval = rank, timeout, interval
        self._looked, self._clock = now, 0.0
        self._heard: dict[int, tuple[int, float]] = {}
        self._behind: dict[int, tuple[tuple[int, int], float]] = {}

    def look(self, beats: Mapping[int, Beat], now: float) -> tuple[int, str] | None:
        """Take in what is known of the ranks now; the rank that is lost, and a sentence about it, or None."""
        self._clock += min(now - self._looked, 2 * self._interval)
        self._looked = now
        alive = {rank: beat for rank, beat in beats.items() if beat.state == ALIVE}
        return self._silent(alive) or self._standing_still(alive)

    def _silent(self, alive: Mapping[int, Beat]) -> tuple[int, str] | None:
        for rank, beat in alive.items():
            number, since = self._heard.get(rank, (-1, self._clock))
            if beat.number != number:
                self._heard[rank] = (beat.number, self._clock)
            elif rank != self._rank and self._clock - since > self._timeout:
                return rank, f"{beat.name} has given no sign of life for {self._clock - since:.0f} s: {GONE_OR_FROZEN}"
        return None

    def _standing_still(self, alive: Mapping[int, Beat]) -> tuple[int, str] | None:
        furthest = max((beat.collectives for beat in alive.values()), default=0)
        for rank, beat in sorted(alive.items(), key=lambda item: item[1].collectives):
            position = (beat.collectives, beat.progress)
            if beat.patient or beat.collectives == furthest:
                self._behind.pop(rank, None)
                continue
            earlier, since = self._behind.setdefault(rank, (position, self._clock))
            if earlier != position:
                self._behind[rank] = (position, self._clock)
            elif self._clock - since > self._timeout:
                waited = f"{self._clock - since:.0f} s"
                return (
                    rank,
                    f"{beat.name} lives but has kept the others waiting for {waited}: it stands in {beat.place}",
                )
        return None
