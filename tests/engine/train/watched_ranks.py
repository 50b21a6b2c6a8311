"""Ranks that take steps under the watchdog until one of them meets with something; started as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from engine.config.cli import exit_process, run_command
from tests import commands

EVENT_STEP, STEPS = 3, 6


@dataclass
class Ended:
    """How a rank ended; a code of None says that it did not, and was killed."""

    code: int | None
    output: str
    pid: int
    seconds: float


def run_watched(event: str, who: int, timeout: float, folder: Path, ranks: int = 2) -> list[Ended]:
    """Start ranks; ``event`` happens to rank ``who``; returns how each ended, counted from the event."""
    env = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(commands.free_port())}
    command = [sys.executable, "-m", "tests.engine.train.watched_ranks", event, str(who), str(timeout), str(folder)]
    logs = [(folder / f"{rank}.log").open("w") for rank in range(ranks)]
    processes = [
        subprocess.Popen(
            command,
            cwd=commands.REPOSITORY,
            env=commands.environment({**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
            stdout=logs[rank],
            stderr=logs[rank],
        )
        for rank in range(ranks)
    ]
    happened, stamp = 0.0, folder / "happened"
    ends: dict[int, float] = {}
    deadline = time.monotonic() + 60
    while len(ends) < ranks - (event == "stop") and time.monotonic() < deadline:
        if not happened and stamp.exists():
            happened = time.monotonic()
        for rank, process in enumerate(processes):
            if rank not in ends and process.poll() is not None:
                ends[rank] = time.monotonic()
        time.sleep(0.02)
    codes = [process.poll() for process in processes]
    for process in processes:
        process.kill()
        process.wait()
    return [
        Ended(codes[rank], (folder / f"{rank}.log").read_text(), processes[rank].pid, ends.get(rank, 0.0) - happened)
        for rank in range(ranks)
    ]


def _main() -> None:
    import torch

    from engine.train.distributed import from_rank_zero, global_rank, init_distributed
    from engine.train.watchdog import Watchdog

    event, who, timeout, folder = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
    init_distributed()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with Ctrl-C ignored
    with Watchdog(timeout):  # what an earlier watch left in the store must not disturb the next one
        torch.distributed.barrier()
    with Watchdog(timeout) as watchdog:
        for step in range(STEPS):
            watchdog.progress(step)
            if step == EVENT_STEP and who in (global_rank(), -1):
                (folder / "happened").touch()
                _happen(event, timeout)
            if event == "alone" and step == EVENT_STEP:
                from_rank_zero(lambda: time.sleep(3 * timeout))
            torch.distributed.all_reduce(torch.ones(3))
    print("all steps taken", flush=True)


def _happen(event: str, timeout: float) -> None:
    if event in ("kill", "stop", "interrupt"):
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "interrupt": signal.SIGINT}[event]
        os.kill(os.getpid(), number)
        time.sleep(0.1)
    elif event == "hang":
        while True:
            time.sleep(0.05)
    elif event == "fail":
        raise RuntimeError("shapes differ")
    elif event in ("late", "all late"):
        time.sleep(timeout * (0.7 if event == "late" else 2.5))


if __name__ == "__main__":
    exit_process(run_command(_main))
