"""``--profile``: a trace of some steps of a start, by torch's profiler."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

FOLDER = "profile"
WAIT, WARMUP, ACTIVE = 2, 1, 3  # steps of a start: left alone, profiled for nothing, written down
MAX_RANKS = 8  # ranks that write: a host's worth; all ranks of a large run would fill the disk with the same
MAX_MICRO_BATCHES = 5  # of a step: a trace of hundreds would take minutes to write and not open in a browser
TABLE_ROWS = 40

part = torch.profiler.record_function  # names a part of a step in a trace: data, forward, backward, ...


def phases(steps: int) -> tuple[int, int, int]:
    """How many steps of a start are left alone, profiled for nothing and written down.

    Where fewer are to be taken than the whole needs, it waits less, and then writes down less.
    """
    active = max(1, min(ACTIVE, steps - WARMUP))
    warmup = min(WARMUP, steps - active)
    return min(WAIT, steps - active - warmup), warmup, active


class StepProfiler:
    """Profiles some of the first steps of a start on the first ranks, and writes what it saw into the run folder."""

    def __init__(self, folder: Path, rank: int, first_step: int, steps: int, say: Callable[[str], None]) -> None:
        """Plan which steps.

        Args:
            folder: of the run.
            rank: of this process.
            first_step: steps that the run has taken.
            steps: steps that this start will take.
            say: tells a line of the log.
        """
        self._folder, self._rank, self._say = folder / FOLDER, rank, say
        wait, warmup, active = phases(steps)
        self._first, self._done = first_step + wait + warmup + 1, first_step
        self._last = self._first + active - 1
        self._profiler: Any = None
        self._activities = [torch.profiler.ProfilerActivity.CPU]
        self._recording, self._told = True, False
        if rank >= MAX_RANKS or steps < 1:
            return
        say(f"profile: steps {self._first} to {self._last} will be written to {self._folder}")
        if warmup < WARMUP:
            say("note: --profile: the only step is profiled without a warmup, and its first calls take longer")
        if torch.cuda.is_available():
            self._activities.append(torch.profiler.ProfilerActivity.CUDA)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the warmup: told above
            self._profiler = torch.profiler.profile(
                activities=self._activities,
                schedule=torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=1),
                on_trace_ready=self._write,
                acc_events=True,  # else it warns of what a second cycle would clear
            )

    def __enter__(self) -> StepProfiler:
        if self._profiler is not None:
            self._profiler.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._profiler is not None:
            self._profiler.stop()  # writes what a start that ends early has recorded
            if self._done < self._first:
                self._say(f"note: --profile: nothing was profiled, as this start ended before step {self._first}")

    def micro_batch(self, number: int, count: int) -> None:
        """A micro-batch of the running step begins; of many in a step, those in the middle are left out.

        Args:
            number: of the micro-batch, from 0.
            count: micro-batches of the step on this rank.
        """
        if self._profiler is None or not self._first <= self._done + 1 <= self._last:
            return
        recording = number < MAX_MICRO_BATCHES - 1 or number == count - 1
        if recording != self._recording:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # kernels that are under way belong to what was begun before
            self._profiler.toggle_collection_dynamic(recording, self._activities)
            self._recording = recording
        if not recording and not self._told:
            self._told = True
            self._say(
                f"profile: of the {count} micro-batches of a step the first {MAX_MICRO_BATCHES - 1} and the last are "
                "written"
            )

    def step(self) -> None:
        """A step of the run has ended."""
        self._done += 1
        if self._profiler is not None:
            self._profiler.step()

    def _write(self, profiler: Any) -> None:
        """The trace and the table of operators; on a disk that is full or gone, a note and no more."""
        if self._done < self._first:
            return
        name = f"rank-{self._rank}-step-{self._first}-{self._done}"
        try:
            self._folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
            key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            table = profiler.key_averages().table(sort_by=key, row_limit=TABLE_ROWS, max_name_column_width=60)
            (self._folder / f"{name}.txt").write_text(table + "\n", encoding="utf-8")
        except (OSError, RuntimeError) as error:
            text = f"note: --profile: {self._folder / name} could not be written: {error}"
            tqdm.write(text, file=sys.stderr)  # from any rank
            return
        self._say(f"profile: {self._folder / name}.json.gz (open it in ui.perfetto.dev), {name}.txt")


@contextlib.contextmanager
def profiled(profiler: StepProfiler | None) -> Iterator[Callable[[], None]]:
    """What tells a profiler of each step's end; nothing where there is none."""
    if profiler is None:
        yield lambda: None
        return
    with profiler:
        yield profiler.step
