"""Fine-tunings in processes of their own, several at once, a GPU each where there are GPUs."""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from engine.config.cli import UsageError
from engine.downstream.process import FinetuneProcess, write_settings
from preprocess.locks import lock

LOCK = ".lock"
SETTINGS, LOG, RUN = "settings.yaml", "log.txt", "run"
RESULTS = ("summary.json", "results.json")  # of several seeds, of one run
Environment = dict[str, str]


@dataclass(frozen=True)
class Done:
    """A fine-tuning that has ended.

    Attributes:
        name: of the job.
        results: what it wrote; None where it failed.
        problem: why it failed, with the end of its log.
        seconds: from its start in this session to its end.
    """

    name: str
    results: dict[str, Any] | None
    problem: str
    seconds: float


class FinetuneJobs:
    """Runs jobs, at most as many at once as there are slots; used as a context that ends what still runs."""

    def __init__(self, slots: Sequence[Environment], timeout: float) -> None:
        """Begin with nothing under way.

        Args:
            slots: for each job at once, variables of its environment.
            timeout: seconds after which a job is ended and has failed.
        """
        self._free, self._timeout = list(range(len(slots))), timeout
        self._slots = slots
        self._running: dict[str, FinetuneProcess] = {}
        self._done: queue.Queue[tuple[int, Done]] = queue.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.close()

    @property
    def running(self) -> list[str]:
        """Names of the jobs under way."""
        return list(self._running)

    @property
    def has_room(self) -> bool:
        """Whether another job can begin."""
        return bool(self._free)

    def begin(self, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        """Start a job in a folder, or go on with it: its settings, its log and its run folder stand there."""
        slot = self._free.pop(0)
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(folder / SETTINGS, settings)
        options = ["--output", str(folder / RUN)]
        process = FinetuneProcess(folder / SETTINGS, options, folder / LOG, self._slots[slot])
        self._running[name] = process
        threading.Thread(target=self._wait, args=(slot, name, folder, process), daemon=True).start()

    def _wait(self, slot: int, name: str, folder: Path, process: FinetuneProcess) -> None:
        """The thread of a job."""
        begun, results, problem = time.monotonic(), None, ""
        try:
            if code := process.wait(self._timeout):
                problem = f"exit code {code}; the end of {folder / LOG}:\n{process.last_lines()}"
            else:
                results = read_results(folder / RUN)
        except (OSError, ValueError, TimeoutError) as error:
            problem = str(error)
        self._done.put((slot, Done(name, results, problem, time.monotonic() - begun)))

    def next_done(self) -> Done:
        """Wait for the next job to end; only while there is one under way."""
        slot, done = self._done.get()
        self._free.append(slot)
        self._free.sort()
        del self._running[done.name]
        return done


def claim_folder(output: Path) -> TextIO:
    """Make a folder, and keep other commands out of it while the file returned is open.

    Raises:
        UsageError: if another one is at work in it.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = open(output / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (for the life of the command)
    file.seek(0)
    if not lock(file, say=lambda line: print(line, file=sys.stderr, flush=True)):
        holder = file.read().strip()
        file.close()
        raise UsageError(
            f"another sweep or suite is at work in --output {output}{f' ({holder})' if holder else ''}; wait for its "
            "end, or give another folder"
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def read_results(run: Path) -> dict[str, Any]:
    """What a finished run wrote: its figures, or of several seeds the mean of each.

    Raises:
        ValueError: if it wrote nothing.
    """
    for name in RESULTS:
        if (run / name).is_file():
            results = json.loads((run / name).read_text(encoding="utf-8"))
            assert isinstance(results, dict)
            return results
    raise ValueError(f"{run} has no {RESULTS[-1]}")


def figures_of(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures among results: dev_accuracy and so on; of several seeds the means."""
    if "figures" in results:
        return {name: float(of["mean"]) for name, of in results["figures"].items()}
    return {
        name: float(value)
        for name, value in results.items()
        if name.startswith(("dev_", "test_")) and isinstance(value, int | float) and not isinstance(value, bool)
    }


def deviations_of(results: Mapping[str, Any]) -> dict[str, float]:
    """The standard deviation of each figure over several seeds; nothing of one run."""
    return {name: float(of["sd"]) for name, of in results.get("figures", {}).items() if len(of["values"]) > 1}


def slots_for(jobs: int) -> list[Environment]:
    """Environments of as many jobs as asked for: a GPU each, in turns, or a share of the CPU's cores.

    Args:
        jobs: at once; 0: one for each GPU, or one where there is none.
    """
    gpus = visible_gpus()
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(jobs or len(gpus))]
    jobs = jobs or 1
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{} for _ in range(jobs)]
    return [{"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // jobs))} for _ in range(jobs)]


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES calls them."""
    import torch  # takes seconds

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]
