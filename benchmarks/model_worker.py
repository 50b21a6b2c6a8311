"""A side of models.py in a process of its own, which trains when it is told to.

A process each: what one side's memory, compiled code or broken kernel does is no other side's matter, and which kernels
run is settled once. Commands are JSON objects on standard input, a line each; answers go to the pipe --answers. In
between the process waits, with no more than weights and optimizer state on the GPU, and prepares no batches.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.model_cases import Case, make_objective, make_rows, sequences_of
from benchmarks.model_sides import OUT_OF_MEMORY, Side, Stepper, build_side, switch_kernels, why_no_deepspeed
from engine.config.train import TrainConfig
from engine.data.batch import PackedBatch
from engine.data.source import Prefetcher, step_batches
from engine.train.flops import batch_flops
from engine.train.timeline import StepSettings, Timeline
from kernels import overview

DISTINCT_STEPS = 4  # of a text; then they are repeated
ENDLESS = 10**9
MATMUL = {"cuda": 8192, "cpu": 2048}  # rows and columns of the product that a device is measured by
LARGEST = 10  # kernels that a profile names
WARMUP = 3
Batches = Generator[Any, None, None]


class Text:
    """The steps of a text for one side, over and over; a source of batches for the engine's prefetcher."""

    def __init__(
        self, stepper: Stepper, side: Side, case: Case, text: str, together: bool, device: torch.device
    ) -> None:
        objective, arch = make_objective(case)
        self._rows = make_rows(case, text, DISTINCT_STEPS, objective.sequence_layout.per_sequence, together)
        batches = [objective.collate(rows) for rows in self._rows]
        self.sequences = [sequences_of(rows) for rows in self._rows]
        self.tokens = [batch.num_tokens for batch in batches]
        self.flops = [batch_flops(arch, batch) for batch in batches]
        self._stepper, self._side, self._device = stepper, side, device
        config = TrainConfig(steps=ENDLESS, batch_size=case.rows, micro_batch_size=case.rows)
        self._timeline = Timeline([config.stage(case.length, {})])

    def batch(self, positions: range, step: StepSettings) -> PackedBatch:
        """What the prefetcher asks for."""
        batch: PackedBatch = self._stepper.batch(self._rows[step.step % DISTINCT_STEPS])
        return batch

    def describe(self, positions: range, step: StepSettings) -> str:
        """For an error of the prefetcher."""
        return f"step {step.step}"

    def batches(self, first: int) -> Batches:
        """What the side trains on from a step on, until it is closed."""
        if self._side.program != "ours":
            return self._ready(first)
        return self._ahead(first) if self._side.ahead else self._in_step(first)

    def _ahead(self, first: int) -> Batches:
        """Batches of the engine, prepared by its thread while steps are taken."""
        prefetcher = Prefetcher(self, self._timeline, first, 0, 1, self._side.fixed_shapes, self._device)
        try:
            for work in prefetcher:
                yield work.batches[0]
        finally:
            prefetcher.close()

    def _in_step(self, first: int) -> Batches:
        """Batches of the engine, prepared when they are asked for."""
        for step in range(first, ENDLESS):
            yield step_batches(self, self._timeline.at(step), 0, 1, self._side.fixed_shapes).batches[0]

    def _ready(self, first: int) -> Batches:
        """Batches that were prepared before the clock runs."""
        for step in range(first, ENDLESS):
            yield self._stepper.batch(self._rows[step % DISTINCT_STEPS])


class Worker:
    """Answers commands."""

    def __init__(self, side: Side, case: Case, device: torch.device, together: bool) -> None:
        self._side, self._case, self._device, self._together = side, case, device, together
        self._stepper: Stepper | None = None
        self._texts: dict[str, Text] = {}
        self._open: dict[str, Batches] = {}  # of this turn
        self._taken = dict.fromkeys(case.texts, 0)
        self.commands: dict[str, Callable[..., dict[str, Any]]] = {
            "prepare": self.prepare,
            "time": self.time,
            "matmul": self.matmul,
            "profile": self.profile,
        }

    def prepare(self) -> dict[str, Any]:
        """Build the side and train on each text for a few steps."""
        begun = time.perf_counter()
        switch_kernels(self._side)
        self._stepper = build_side(self._side, self._case, self._device)
        for name in self._case.texts:
            together = self._together and self._side.program == "ours"
            self._texts[name] = Text(self._stepper, self._side, self._case, name, together, self._device)
            losses = self._train(name, WARMUP)
        self._rest()
        ours = self._side.program == "ours"
        return {
            "seconds": time.perf_counter() - begun,
            "loss": float(losses[-1]),
            "kernels": {name: who for name, (who, _) in overview.runs(self._device).items()} if ours else {},
            "deepspeed": self._side.deepspeed if ours else None,
        }

    def time(self, text: str, steps: int) -> dict[str, Any]:
        """Train for some steps by the clock, after one that fills the allocator's cache again."""
        if self._device.type == "cuda":
            self._train(text, 1)
            torch.cuda.reset_peak_memory_stats()
        source, first = self._texts[text], self._taken[text]
        begun = time.perf_counter()
        losses = self._train(text, steps)
        seconds = time.perf_counter() - begun
        memory = self._peak_memory()
        self._rest()
        taken = [number % DISTINCT_STEPS for number in range(first, first + steps)]
        return {
            "seconds": seconds,
            "steps": steps,
            "sequences": sum(source.sequences[number] for number in taken),
            "tokens": sum(source.tokens[number] for number in taken),
            "flops": sum(source.flops[number] for number in taken),
            "loss": float(losses[-1]),
            "memory_bytes": memory,
        }

    def matmul(self) -> dict[str, Any]:
        """Operations a second of a bf16 matrix product of random numbers, the median of ten."""
        size = MATMUL[self._device.type]
        left, right = (torch.randn(size, size, device=self._device).bfloat16() for _ in range(2))
        times = []
        for _ in range(13):
            self._synchronize()
            begun = time.perf_counter()
            left @ right
            self._synchronize()
            times.append(time.perf_counter() - begun)
        del left, right
        self._rest()
        return {"tflops": 2 * size**3 / statistics.median(times[3:]) / 1e12}

    def profile(self, text: str) -> dict[str, Any]:
        """The largest kernels (on a CPU: operators) of one step."""
        on_gpu = self._device.type == "cuda"
        activities = [torch.profiler.ProfilerActivity.CPU]
        if on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._train(text, 1)
        with torch.profiler.profile(activities=activities) as profiler:
            self._train(text, 1)
        self._rest()
        return largest(profiler.key_averages(), on_gpu)

    def _train(self, text: str, steps: int) -> list[torch.Tensor]:
        assert self._stepper is not None, "prepare comes first"
        if text not in self._open:
            self._open[text] = self._texts[text].batches(self._taken[text])
        batches, losses = self._open[text], []
        for _ in range(steps):
            losses.append(self._stepper.step(next(batches)))
        self._taken[text] += steps
        self._synchronize()
        return losses

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _rest(self) -> None:
        """Prepare no more batches, and give back the memory that only steps need."""
        for batches in self._open.values():
            batches.close()
        self._open.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _peak_memory(self) -> int:
        """Of the tensors of this side; on a CPU, of the process since it began."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def largest(events: Sequence[Any], on_gpu: bool) -> dict[str, Any]:
    """What took the most time: on a GPU kernels and copies, else operators without those that they call."""

    def time_of(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    wanted = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    found = [event for event in events if event.device_type == wanted and time_of(event) > 0]
    if on_gpu:  # ranges that were named in the program last as long as what they hold
        found = [event for event in found if not getattr(event, "is_user_annotation", False)]
    total = sum(map(time_of, found))
    found.sort(key=time_of, reverse=True)
    rows = [
        {"name": e.key, "calls": e.count, "ms": time_of(e) / 1e3, "share": time_of(e) / total} for e in found[:LARGEST]
    ]
    return {"total_ms": total / 1e3, "largest": rows}


def reason_of(error: BaseException) -> str:
    """A line."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"{OUT_OF_MEMORY}: {str(error).splitlines()[0]}"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def main() -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--side", "--case"):
        parser.add_argument(name, type=json.loads, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--answers", type=int, required=True)
    options = parser.parse_args()
    side = Side(**options.side)
    if side.deepspeed and why_no_deepspeed():
        side = Side(**{**options.side, "deepspeed": False})
    case = Case(**{**options.case, "texts": tuple(options.case["texts"])})
    if options.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    worker = Worker(side, case, device, options.together)
    with open(options.answers, "w", encoding="utf-8") as answers:
        print(json.dumps({"up": True}), file=answers, flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            try:
                answer = worker.commands[command.pop("do")](**command)
            except Exception as error:  # told, and the parent goes on with the other sides
                answer = {"error": reason_of(error)}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
