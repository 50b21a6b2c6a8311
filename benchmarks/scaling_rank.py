"""One rank of ``benchmarks/scaling.py``: the training command itself, with every collective counted and timed.

    RANK=0 WORLD_SIZE=2 ... python benchmarks/scaling_rank.py --jobs FILE [--core N] [--interface NAME]

FILE holds a JSON list of ``{"folder", "arguments"}``: runs of engine/pretrain.py with these arguments, which this
process does in turn. Nothing in the engine knows of it: torch's tensor collectives are replaced before anything else
is imported, and DeepSpeed and the engine call them by their names in torch.distributed. Each folder gets a
rank-R.json:
- ``steps``: for each optimizer step, from its beginning to the beginning of the next (the last step of a run, which
  saves, has none), ``{"step", "seconds", "ops": {collective: {"calls", "bytes", "blocked", "async_calls"}}}``.
  ``blocked`` is the time of the main thread inside a collective or a wait for one; a wait for a slower rank is part of
  it. Bytes are those of the whole tensor: what every rank holds after an all-gather, and before a reduce-scatter.
  ``async_calls`` are those that returned before the collective had ended.
- ``sent``: bytes that this host sent over the interface during the run, by the kernel; on the first rank of a host.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

# collective -> where the whole tensor stands among its arguments: position and name
WHOLE = {
    "all_reduce": (0, "tensor"),
    "reduce": (0, "tensor"),
    "broadcast": (0, "tensor"),
    "all_gather": (0, "tensor_list"),
    "all_gather_single": (0, "output_tensor"),
    "all_gather_into_tensor": (0, "output_tensor"),
    "_all_gather_base": (0, "output_tensor"),
    "gather": (1, "gather_list"),
    "scatter": (1, "scatter_list"),
    "reduce_scatter": (1, "input_list"),
    "reduce_scatter_single": (1, "input"),
    "reduce_scatter_tensor": (1, "input"),
    "_reduce_scatter_base": (1, "input"),
    "all_to_all_single": (0, "output"),
    "all_to_all": (0, "output_tensor_list"),
    "barrier": (-1, ""),
}
# torch has several names for one collective
SAME = {
    "all_gather_single": "all_gather", "all_gather_into_tensor": "all_gather", "_all_gather_base": "all_gather",
    "reduce_scatter_single": "reduce_scatter", "reduce_scatter_tensor": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter", "all_to_all_single": "all_to_all",
}  # fmt: skip


class Recorder:
    """Counts and times the collectives of this rank's main thread, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._begun = 0.0
        self._inside = False

    def install(self) -> None:
        """Put a recording function in the place of each of torch's collectives."""
        module = torch.distributed.distributed_c10d
        for name, place in WHOLE.items():
            recorded = self._recorded(name, place, getattr(module, name))
            setattr(module, name, recorded)
            setattr(torch.distributed, name, recorded)

    def begin_step(self, step: int) -> None:
        """End the record of the step before and begin the next."""
        now = time.perf_counter()
        if self._open is not None:
            self.steps.append({**self._open, "seconds": now - self._begun})
        self._open, self._begun = {"step": step, "ops": {}}, now

    def end(self) -> None:
        """Record no more; the last step, which saved, is left out."""
        self._open = None

    def forget(self) -> None:
        """Begin anew."""
        self.steps = []

    def _recorded(self, name: str, place: tuple[int, str], function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._open is None or self._inside:
                return function(*args, **kwargs)
            self._inside, begun = True, time.perf_counter()
            try:
                work = function(*args, **kwargs)
            finally:
                self._inside = False
            position, keyword = place
            whole = args[position] if 0 <= position < len(args) else kwargs.get(keyword)
            entry = self._entry(SAME.get(name, name))
            entry["calls"] += 1
            entry["bytes"] += num_bytes(whole)
            entry["blocked"] += time.perf_counter() - begun
            if work is None:
                return None
            entry["async_calls"] += 1
            return TimedWork(work, entry)

        return call

    def _entry(self, name: str) -> dict[str, float]:
        assert self._open is not None
        entry: dict[str, float] = self._open["ops"].setdefault(
            name, {"calls": 0, "bytes": 0, "blocked": 0.0, "async_calls": 0}
        )
        return entry


class TimedWork:
    """A collective under way; the time of a wait for it is added to its record."""

    def __init__(self, work: Any, entry: dict[str, float]) -> None:
        self._work, self._entry = work, entry

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for its end."""
        begun = time.perf_counter()
        try:
            return self._work.wait(*args, **kwargs)
        finally:
            self._entry["blocked"] += time.perf_counter() - begun

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def num_bytes(whole: Tensor | Iterable[Tensor] | None) -> int:
    """Bytes of a tensor, of a list of them, or of nothing."""
    if whole is None:
        return 0
    tensors = [whole] if isinstance(whole, Tensor) else whole
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def bytes_sent(interface: str) -> int:
    """Bytes that this host has sent over an interface, as the kernel counts them."""
    return int(Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text())


def main() -> int:
    """Run the jobs and write what was recorded; returns the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=Path, required=True, help="JSON file of the runs")
    parser.add_argument("--core", type=int, help="the CPU core that all threads of this rank share")
    parser.add_argument("--interface", help="whose bytes are read")
    own = parser.parse_args()
    if own.core is not None:
        os.sched_setaffinity(0, {own.core})
    recorder = Recorder()
    recorder.install()
    from engine import pretrain
    from engine.train.distributed import barrier, global_rank, init_distributed, local_rank
    from engine.train.watchdog import Watchdog

    progress = Watchdog.progress

    def progress_and_record(self: Watchdog, step: int) -> None:
        recorder.begin_step(step)
        progress(self, step)

    Watchdog.progress = progress_and_record  # type: ignore[method-assign]
    init_distributed()

    def count() -> int:
        barrier()
        return bytes_sent(own.interface) if own.interface and local_rank() == 0 else 0

    for job in json.loads(own.jobs.read_text()):
        recorder.forget()
        before = count()
        code = pretrain.main(job["arguments"])
        if code:
            return code
        recorder.end()
        record = {"steps": recorder.steps, "sent": count() - before}
        (Path(job["folder"]) / f"rank-{global_rank()}.json").write_text(json.dumps(record))
    return 0


if __name__ == "__main__":
    from engine.config.cli import exit_process

    exit_process(main())
