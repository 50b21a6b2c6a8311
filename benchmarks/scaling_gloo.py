"""One rank of a look at gloo alone: what its collectives send, and whether one runs while the main thread computes.

    RANK=0 WORLD_SIZE=2 ... python benchmarks/scaling_gloo.py --bytes 4194304 --calls 8 --interface lo
    RANK=0 WORLD_SIZE=2 ... python benchmarks/scaling_gloo.py --bytes 4194304 --calls 5 --beside 0.2

Rank 0 prints one JSON line. With ``--interface``: bytes that a rank sends, on average, for each byte of a whole tensor,
by collective, as the kernel counts them. With ``--beside SECONDS``: medians over the calls of the time of that much
arithmetic, of an all-reduce, and of both where the all-reduce is begun first and waited for last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

distributed = torch.distributed
Begin = Callable[[], "distributed.Work | None"]


def collectives(size: int) -> dict[str, Begin]:
    """Functions that begin a collective with ``size`` bytes as its whole tensor; the calls are DeepSpeed's."""
    ranks = distributed.get_world_size()
    numbers = size // 4 // ranks * ranks
    whole, part = torch.ones(numbers), torch.ones(numbers // ranks)
    return {
        "all_reduce": lambda: distributed.all_reduce(whole, async_op=True),
        "reduce_scatter": lambda: distributed.reduce_scatter_tensor(part, whole, async_op=True),
        "all_gather": lambda: distributed.all_gather_into_tensor(whole, part, async_op=True),
        "reduce": lambda: distributed.reduce(whole, ranks - 1, async_op=True),
        "broadcast": lambda: distributed.broadcast(whole, 0, async_op=True),
    }


def finish(work: distributed.Work | None) -> None:
    """Wait for a collective."""
    if work is not None:
        work.wait()


def matrix_work(seconds: float) -> Callable[[], None]:
    """Arithmetic that takes about so long on this core, by itself."""
    matrix = torch.ones(256, 256)
    for _ in range(50):  # warm
        matrix @ matrix
    begun = time.perf_counter()
    for _ in range(100):
        matrix @ matrix
    repeats = max(1, round(100 * seconds / (time.perf_counter() - begun)))

    def work() -> None:
        for _ in range(repeats):
            matrix @ matrix

    return work


def timed(function: Callable[[], None]) -> float:
    """Seconds of a call that all ranks begin together."""
    distributed.barrier()
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def beside(begin: Begin, seconds: float, calls: int) -> dict[str, float]:
    """Medians of arithmetic alone, the collective alone, both; they take turns."""
    work = matrix_work(seconds)

    def both() -> None:
        begun = begin()
        work()
        finish(begun)

    sides: dict[str, Callable[[], None]] = {"compute": work, "transfer": lambda: finish(begin()), "both": both}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(calls):
        for name, side in sides.items():
            times[name].append(timed(side))
    return {name: statistics.median(found) for name, found in times.items()}


def sent_per_byte(calls: dict[str, Begin], size: int, repeats: int, interface: str) -> dict[str, float]:
    """Bytes that a rank sends, on average, for each byte of the whole tensor, by collective."""
    counter = Path(f"/sys/class/net/{interface}/statistics/tx_bytes")
    first_of_host = os.environ["LOCAL_RANK"] == "0"
    found = {}
    for name, begin in calls.items():
        distributed.barrier()
        before = int(counter.read_text())
        distributed.barrier()  # no rank sends before all have read
        for _ in range(repeats):
            finish(begin())
        distributed.barrier()
        sent = torch.tensor(float(int(counter.read_text()) - before) if first_of_host else 0.0)
        distributed.all_reduce(sent)
        found[name] = float(sent) / repeats / size / distributed.get_world_size()
    return found


def main() -> None:
    """Run as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--interface", default="lo", help="whose bytes are counted")
    parser.add_argument("--beside", type=float, help="seconds of arithmetic")
    parser.add_argument("--core", type=int, help="the CPU core that all threads of this rank share")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    calls = collectives(arguments.bytes)
    found = (
        sent_per_byte(calls, arguments.bytes, arguments.calls, arguments.interface)
        if arguments.beside is None
        else beside(calls["all_reduce"], arguments.beside, arguments.calls)
    )
    if distributed.get_rank() == 0:
        print(json.dumps(found), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
