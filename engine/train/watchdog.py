"""A thread on every rank that notices when another one is gone, frozen or hung, names it, and ends the run.

Every rank writes a beat (engine/train/heartbeat.py) into the store that the process group met in. Rank 0 reads the
beats of all; the others read that of rank 0. Who finds a rank lost leaves a verdict in the store, which all obey.

One thread talks with the store, since a store on a frozen machine never answers; a second one looks at the clock.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import TracebackType

import torch

from engine.config.cli import EXIT_RANK_LOST, RankLostError, RunStopped, SharedError
from engine.train.distributed import barrier, gather_objects, global_rank, local_rank, world_size
from engine.train.heartbeat import (
    ALIVE,
    ENDED,
    FAILED,
    GONE_OR_FROZEN,
    LAUNCHER,
    Beat,
    Judge,
    first_beat,
    is_gone,
    launcher_beat,
    next_beat,
)

COMMUNICATION = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed out", re.IGNORECASE)
HURRY = 0.2  # seconds between beats where an error is being explained
ROUNDS_TO_HEAR = 3  # exchanges with the store after which what a failed rank said has been read
SECONDS_BROKEN = 1.0  # without the store, after which rank 0 counts as gone
SECONDS_TO_LEAVE = 30.0
CONNECT_TIMEOUT = timedelta(seconds=10)
_watches = itertools.count(1)


class Watchdog:
    """Watches over the ranks of a run while it is a context::

        with Watchdog(timeout) as watchdog:
            ...
            watchdog.progress(step)

    A lost rank ends all others within ``timeout`` and a few seconds with exit code 76, wherever they stand. An
    exception that leaves the context because another rank was lost becomes RankLostError. One rank alone watches
    nothing.
    """

    def __init__(self, timeout: float) -> None:
        """Prepare; nothing is started yet.

        Args:
            timeout: seconds that a rank may be silent, or keep the others waiting without any progress.
        """
        self.timeout = timeout
        self._interval = min(timeout / 10, 1 + world_size() / 256)  # 5 s for 1,024 ranks: 200 short writes a second
        self._link: _Link | None = None
        self._stopped = threading.Event()
        self._explaining = threading.Event()
        self._progress = 0

    def start(self) -> Watchdog:
        """Begin to watch; all ranks together, after the process group was made."""
        if world_size() > 1 and self._link is None:
            beats = gather_objects(first_beat(global_rank()).encode())  # each knows all from now on
            self._link = _Link(list(map(Beat.decode, beats)), self._interval, lambda: self._progress)
            self._link.start()
            self._link.connected.wait(CONNECT_TIMEOUT.total_seconds())
            barrier()  # a store that dies while a rank connects holds that rank up for longer than it explains
            threading.Thread(target=self._watch, args=(self._link,), name="watchdog", daemon=True).start()
        return self

    def progress(self, step: int) -> None:
        """The loop goes on: called by every rank at least once a step."""
        self._progress += 1

    def stop(self, failure: str | None = None) -> None:
        """Watch no more, and tell the others that this rank ended: well, or how it failed."""
        if self._link is not None and not self._stopped.is_set():
            self._stopped.set()
            self._link.end(failure)

    def explain_failure(self, error: BaseException) -> str | None:
        """Find the rank whose end made a collective fail here; takes some seconds, and one rank prints what it found.

        Args:
            error: what a collective raised.

        Returns:
            A sentence with rank, host and process; None where the error is none of communication or all ranks live.
        """
        link = self._link
        if link is None or self._stopped.is_set() or not is_communication_error(error):
            return None
        self._explaining.set()
        link.hurry()
        deadline = time.monotonic() + 5 * self._interval + 5
        while time.monotonic() < deadline:
            if found := link.verdict or link.culprit():
                link.announce(found)
                return found[1]
            time.sleep(HURRY / 2)
        self._explaining.clear()
        return None

    def __enter__(self) -> Watchdog:
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop; an error because of a lost rank becomes RankLostError, and any other is told to the others."""
        text = None if error is None else self._explain_undisturbed(error)
        if text is not None:
            self._stopped.set()
            last_resort = threading.Timer(SECONDS_TO_LEAVE, os._exit, (EXIT_RANK_LOST,))  # cleaning up may hang
            last_resort.daemon = True
            last_resort.start()
            raise RankLostError(text, tell=False) from error
        self.stop(None if error is None or isinstance(error, (RunStopped, SharedError)) else _in_words(error))

    def _explain_undisturbed(self, error: BaseException) -> str | None:
        """Explain a failure though the launcher, which ends all ranks after the first, says SIGTERM meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return self.explain_failure(error)
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        text = self.explain_failure(error)
        if text is None:
            signal.signal(signal.SIGTERM, handler)
        return text

    def _watch(self, link: _Link) -> None:
        judge = Judge(global_rank(), self.timeout, self._interval, time.monotonic())
        while not self._stopped.wait(self._interval):
            found = link.verdict or judge.look(link.watched(), time.monotonic())
            if found is None or self._explaining.is_set():
                continue
            link.announce(found)
            if not self._stopped.is_set() and not self._explaining.is_set():
                os._exit(EXIT_RANK_LOST)


class _Link(threading.Thread):
    """Writes this rank's beats into the store and reads those of others, for as long as the process lives."""

    def __init__(self, beats: list[Beat], interval: float, progress: Callable[[], int]) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.verdict: tuple[int, str] | None = None
        self._interval, self._progress = interval, progress
        self._beat = beats[global_rank()]
        self._beats = {beat.rank: beat for beat in beats}
        self._heard = dict.fromkeys(self._beats, time.monotonic())
        self._in_store: set[int] = set()
        self._claim: tuple[int, str] | None = None
        self._broken_since: float | None = None
        self._hurried: float | None = None
        self._rounds = self._exchanges = 0
        self._wake, self._announced, self._ended = threading.Event(), threading.Event(), threading.Event()
        self.connected = threading.Event()
        generation = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._prefix = f"watchdog/{generation}/{next(_watches)}/"  # what an earlier one left tells of its own time

    def run(self) -> None:
        """Exchange beats until this rank has ended."""
        store: torch.distributed.Store | None = None
        while True:
            last = self._beat.state != ALIVE
            try:
                store = store or _connect()
                self.connected.set()
                self._exchange(store)
                self._exchanges += 1
                self._broken_since = None
            except (RuntimeError, OSError, ValueError):  # of networks and stores, and what a torn answer holds
                store, now = None, time.monotonic()
                self._broken_since = self._broken_since or now
            self._rounds += 1
            if last:
                self._ended.set()
                return
            self._wake.wait(HURRY if self._hurried else self._interval)
            self._wake.clear()

    def _exchange(self, store: torch.distributed.Store) -> None:
        self._beat = next_beat(self._beat, self._progress())
        store.set(self._key(self._beat.rank), self._beat.encode())
        verdict, claim = self._prefix + "verdict", self._claim
        if claim is not None and not self._announced.is_set():
            written = store.compare_set(verdict, "", json.dumps([*claim, self._beat.rank]))
            if json.loads(written)[-1] == self._beat.rank:
                _tell(claim)
            self._announced.set()
        if store.check([verdict]):
            lost, text, _ = json.loads(store.get(verdict))
            self.verdict = (lost, text)
        everyone = range(world_size()) if self._beat.rank == 0 or self._hurried else range(1)
        self._in_store.update(r for r in everyone if r not in self._in_store and store.check([self._key(r)]))
        keys, now = [self._key(rank) for rank in everyone if rank in self._in_store], time.monotonic()
        for beat in map(Beat.decode, store.multi_get(keys) if keys else []):
            if self._beats[beat.rank].number != beat.number:
                self._heard[beat.rank] = now
            self._beats[beat.rank] = beat

    def _key(self, rank: int) -> str:
        return f"{self._prefix}{rank}"

    def watched(self) -> dict[int, Beat]:
        """The beats that this rank judges by: rank 0 those of all, the others that of rank 0.

        A store in the launcher has one too: how often it has answered.
        """
        beats = dict(self._beats) if self._beat.rank == 0 else {0: self._beats[0]}
        if not launcher_keeps_store():
            return beats
        return {LAUNCHER: replace(launcher_beat(), number=self._exchanges), **beats}

    def hurry(self) -> None:
        """Beat faster from now on and read all ranks' beats, since something has happened."""
        self._hurried = self._hurried or time.monotonic()
        self._rounds = 0
        self._wake.set()

    def culprit(self) -> tuple[int, str] | None:
        """The rank that ended by itself or cannot be heard any more, as far as is known now."""
        others = [beat for rank, beat in sorted(self._beats.items()) if rank != self._beat.rank]
        for beat in others:
            if beat.state == FAILED:
                return beat.rank, f"{beat.name} failed: {beat.text}"
        if self._rounds < ROUNDS_TO_HEAR and self._broken_since is None:
            return None  # a rank that failed tells it before it goes
        for beat in others:
            if beat.state == ALIVE and is_gone(beat, self._beat):
                return beat.rank, f"{beat.name} was killed or crashed: its process is gone"
        now = time.monotonic()
        if self._broken_since is not None:
            if now - self._broken_since < SECONDS_BROKEN or launcher_keeps_store():
                return None
            return 0, f"{self._beats[0].name} is gone: it does not answer on its port any more"
        silence = {beat.rank: now - max(self._heard[beat.rank], self._hurried or now) for beat in others}
        longest = max((beat.rank for beat in others if beat.state == ALIVE), key=silence.__getitem__, default=None)
        if longest is not None and silence[longest] > 3 * self._interval + 1:
            return longest, f"{self._beats[longest].name} gives no sign of life: {GONE_OR_FROZEN}"
        return None

    def announce(self, found: tuple[int, str]) -> None:
        """Leave a verdict for all ranks, and print it if it is the first; returns when the others have had time."""
        if self.verdict is None:
            self._claim = found
            self._wake.set()
            gone_with_store = found[0] == (LAUNCHER if launcher_keeps_store() else 0)
            if not self._announced.wait(2 if gone_with_store else 10) and (self._beat.rank <= 1 or local_rank() == 0):
                _tell(found)  # without the store, nobody can say who speaks for all
        time.sleep(2 * self._interval)  # the store must stay until all have read, and who tells must have told

    def end(self, failure: str | None) -> None:
        """Beat once more, with how this rank ended."""
        self._beat = replace(self._beat, state=ENDED if failure is None else FAILED, text=failure or "")
        self._wake.set()
        self._ended.wait(2)
        if failure is not None:
            time.sleep(2 * self._interval)


def is_communication_error(error: BaseException) -> bool:
    """Whether an exception, or one that caused it, says that the ranks' connections failed."""
    link: BaseException | None = error
    seen: set[int] = set()  # an exception that is raised again may be its own context
    while link is not None and id(link) not in seen:
        if isinstance(link, torch.distributed.DistError):
            return True
        if isinstance(link, RuntimeError) and COMMUNICATION.search(str(link)):
            return True
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return False


def launcher_keeps_store() -> bool:
    """Whether the ranks' store lives in the launcher, as torchrun's does, and not in rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _connect() -> torch.distributed.Store:
    """A connection of our own: the process group's may wait in a call of its own for long."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    socket.create_connection((address, port), CONNECT_TIMEOUT.total_seconds()).close()  # torch prints its stack if not
    return torch.distributed.TCPStore(address, port, is_master=False, timeout=CONNECT_TIMEOUT, wait_for_workers=False)


def _tell(found: tuple[int, str]) -> None:
    print(f"\nerror: {found[1]}; the other ranks stop", file=sys.stderr, flush=True)  # a progress bar has its own line


def _in_words(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted by Ctrl-C"
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
