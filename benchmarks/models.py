"""Whole models on a device: samples and real tokens a second, MFU and memory of this engine and of transformers.

    python3 benchmarks/models.py --device cuda [--limit 900] [--output results.json]
    OMP_NUM_THREADS=2 python benchmarks/models.py --device cpu --techniques [--cases bert-small gpt2]

Sides: this engine (bf16, packed rows, fixed shapes); the same with torch.compile; the same on torch's own operators;
and the loop that people run: transformers' model class on padded batches that lie ready, SDPA, torch.compile, autocast,
fused AdamW, clipping. Dropout is equal (hidden 0.1, attention --attention_dropout). --techniques goes from that loop,
eager, to the engine in steps of one technique each, on the same sequences.

Each side is a process. They take turns, round by round, one at a time on the device; speeds are medians, ratios are
medians of each round's ratio. Only real tokens count, also for the MFU: operations of a step by engine.train.flops over
the peak of the data sheet, where it has the GPU, and over a product of two matrices that is timed in each round.
Half-filled text has uniform lengths in pairs that fill a row, so that half of a padded batch is padding. Results are
printed as they come, JSON a line: a case's line comes again, with more sides or rounds, and the last one counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.model_cases import ON_CPU, ON_GPU, TEXTS, Case
from benchmarks.model_process import Process, SideFailedError
from benchmarks.model_sides import OUT_OF_MEMORY, Side, why_no_deepspeed
from engine.train.flops import peak_flops
from kernels import dispatch

START_SECONDS, TURN_SECONDS = 120.0, 90.0
LEAST_SECONDS, LEAST_SIDE_SECONDS = 25.0, 10.0  # a case or a side is not begun with less
TIME_IS_OVER = "the time was over"
MAIN, COMPILED, TORCH, PLAIN = "ours", "ours, compiled", "ours, torch's operators", "transformers"
TECHNIQUES = (
    "a plain loop of transformers, fp32",
    "the same loop in bf16 (autocast)",
    "this engine, padded, torch's operators",
    "packed rows: no padding",
    "the head sees the targets alone",
    "fused kernels, but for attention",
    "the attention kernel",
    "fixed shapes",
    "batches ahead, and no waits for the device",
    "torch.compile",
)
COMPILED_TOO = ("bert-large-128", "gpt2-1024")  # unless sides are named
SIDES = {
    "cuda": (
        Side(name=MAIN, fixed_shapes=True, ahead=True),
        Side(name=PLAIN, program="transformers", compiled=True),
        Side(name=TORCH, fixed_shapes=True, ahead=True, kernels=False, attention_kernel=False),
        Side(name=COMPILED, fixed_shapes=True, ahead=True, compiled=True),
    ),
    "cpu": (
        Side(name=MAIN),
        Side(name=PLAIN, program="transformers"),
        Side(name=TORCH, kernels=False, attention_kernel=False),
    ),
}


def ladder(device: str) -> tuple[Side, ...]:
    """From the plain loop to the engine, a technique a step."""
    loop = Side(name="", program="transformers")
    bare = Side(name="", packed=False, targets_only=False, kernels=False, attention_kernel=False)
    steps = [
        (TECHNIQUES[0], replace(loop, precision="fp32")),
        (TECHNIQUES[1], loop),
        (TECHNIQUES[2], bare),
        (TECHNIQUES[3], bare := replace(bare, packed=True)),
        (TECHNIQUES[4], bare := replace(bare, targets_only=True)),
        (TECHNIQUES[5], bare := replace(bare, kernels=True)),
        (TECHNIQUES[6], bare := replace(bare, attention_kernel=True)),
        (TECHNIQUES[7], bare := replace(bare, fixed_shapes=True)),
        (TECHNIQUES[8], bare := replace(bare, ahead=True)),
        (TECHNIQUES[9], replace(bare, compiled=True)),
    ]
    chosen = steps[:-3] if device == "cpu" else steps[1:]  # the last are made for GPUs, where nobody trains in fp32
    return tuple(replace(side, name=name) for name, side in chosen)


class Measurement:
    """A case's sides and what is known of them."""

    def __init__(self, name: str, case: Case, options: argparse.Namespace, end: float) -> None:
        self._name, self._case, self._options, self._end = name, case, options, end
        together = not options.techniques
        self.waiting = [Process(side, case, options.device, together) for side in sides_of(name, options)]
        self._running: list[Process] = []
        self._not_run: dict[str, str] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._turns: dict[str, dict[str, list[dict[str, Any]]]] = {text: {} for text in case.texts}
        self._matmul: list[float] = []
        self._peak = peak_flops(None) if options.device == "cuda" else None

    def prepare(self) -> Iterator[dict[str, Any]]:
        """Let each side warm up and take a first turn; a result after each."""
        while self.waiting:
            process = self.waiting.pop(0)
            if self._running and self._end - time.monotonic() < LEAST_SIDE_SECONDS:
                self._drop(process, TIME_IS_OVER)
                continue
            try:
                process.answer(self._left(START_SECONDS))
                self._facts[process.side.name] = process.ask("prepare", self._left(self._options.side_limit))
                self._running.append(process)
                self._turn(process)
            except SideFailedError as problem:
                self._drop(process, str(problem))
            yield from self.results()

    def rounds(self) -> Iterator[dict[str, Any]]:
        """The other rounds, as many as there is time for; then the results and a profile of the engine."""
        for _ in range(self._options.rounds - 1):
            for process in list(self._running):
                if process in self._running and time.monotonic() < self._end:
                    self._turn_or_drop(process)
        yield from self.results()
        profiled = next((process for process in self._running if process.side.program == "ours"), None)
        if profiled is None or self._options.techniques or time.monotonic() > self._end:
            return
        try:
            text = self._case.texts[0]
            found = profiled.ask("profile", self._left(TURN_SECONDS), text=text)
            yield {"what": "profile", **self._facts_of(text), "side": profiled.side.name, **found}
        except SideFailedError as problem:
            print(f"{self._name}: no profile: {problem}", file=sys.stderr, flush=True)

    def _facts_of(self, text: str) -> dict[str, Any]:
        case = {key: value for key, value in asdict(self._case).items() if key != "texts"}
        return {"name": self._name, "text": text, **case}

    def close(self) -> None:
        """End all processes."""
        for process in [*self.waiting, *self._running]:
            process.close()

    def _turn_or_drop(self, process: Process) -> None:
        """A turn; where memory is short, without the side that matters least."""
        try:
            self._turn(process)
        except SideFailedError as problem:
            least = self._running[-1]
            if OUT_OF_MEMORY not in str(problem) or least is process:
                self._drop(process, str(problem))
                return
            self._drop(least, f"ended after its first turns, since {process.side.name} ran {OUT_OF_MEMORY}")
            self._turn_or_drop(process)

    def _turn(self, process: Process) -> None:
        if not self._running or process is self._running[0]:
            self._matmul.append(process.ask("matmul", self._left(TURN_SECONDS))["tflops"])
        for text in self._case.texts:
            taken = process.ask("time", self._left(TURN_SECONDS), text=text, steps=self._options.steps)
            self._turns[text].setdefault(process.side.name, []).append(taken)

    def _left(self, limit: float) -> float:
        return max(1.0, min(limit, self._end - time.monotonic()))

    def _drop(self, process: Process, reason: str) -> None:
        if time.monotonic() > self._end and reason != TIME_IS_OVER:
            reason = f"{reason}; {TIME_IS_OVER}"
        self._not_run[process.side.name] = reason
        print(f"{self._name}: {process.side.name}: {reason}", file=sys.stderr, flush=True)
        if process in self._running:
            self._running.remove(process)
        process.close()

    def results(self) -> Iterator[dict[str, Any]]:
        """What is known by now, by text."""
        for text, turns in self._turns.items():
            if turns:
                matmul = statistics.median(self._matmul)
                sides = {side: figures(taken, self._facts[side], matmul, self._peak) for side, taken in turns.items()}
                yield {
                    "what": "techniques" if self._options.techniques else "speed",
                    **self._facts_of(text),
                    "matmul_tflops": matmul,
                    "sides": sides,
                    "ratios": ratios(turns, self._options.techniques),
                    "not_run": dict(self._not_run),
                }


def figures(
    turns: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], matmul: float, peak: float | None
) -> dict[str, Any]:
    """A side's medians over its turns.

    Args:
        turns: what each counted.
        facts: of the side when it was prepared.
        matmul: TFLOP/s of a product.
        peak: FLOP/s of the device; without it there is no MFU.
    """

    def median_of(name: str) -> float:
        return statistics.median(turn[name] / turn["seconds"] for turn in turns)

    flops = median_of("flops")
    return {
        "samples_per_second": median_of("sequences"),
        "tokens_per_second": median_of("tokens"),
        "mfu": None if peak is None else flops / peak,
        "share_of_matmul": flops / (matmul * 1e12),
        "memory_bytes": max(turn["memory_bytes"] for turn in turns),
        "seconds_a_step": statistics.median(turn["seconds"] / turn["steps"] for turn in turns),
        "rounds": len(turns),
        "loss": turns[-1]["loss"],
        "prepared_in": facts["seconds"],
        "kernels": facts["kernels"],
        "deepspeed": facts["deepspeed"],
    }


def ratios(turns: Mapping[str, Sequence[Mapping[str, Any]]], of_neighbours: bool) -> dict[str, float]:
    """Medians of the ratios of real tokens a second, of the engine's sides to the others; of each side to the last."""

    def ratio(ours: str, theirs: str) -> float:
        pairs = zip(turns[ours], turns[theirs], strict=False)
        return statistics.median(a["tokens"] / a["seconds"] * b["seconds"] / b["tokens"] for a, b in pairs)

    names = list(turns)
    if of_neighbours:
        found = [(name, before) for before, name in pairwise(names)]
        found += [(name, names[0]) for name in names[2:]]
    else:
        found = [(MAIN, name) for name in names if name != MAIN and MAIN in names]
        found += [(name, PLAIN) for name in names if name not in (MAIN, PLAIN) and PLAIN in names]
    return {f"{ours} / {theirs}": ratio(ours, theirs) for ours, theirs in found}


def describe_machine(options: argparse.Namespace) -> dict[str, Any]:
    """Where this runs.

    Raises:
        SystemExit: if a GPU is asked for that is not there.
    """
    versions = {"torch": torch.__version__, "threads": None, "python": platform.python_version()}
    if options.device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit(f"error: torch {torch.__version__} of {sys.executable} sees no CUDA device")
        device = torch.cuda.get_device_properties(0)
        versions |= {"device": device.name, "memory_bytes": device.total_memory, "cuda": torch.version.cuda}
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
        model = next((line for line in lines if line.startswith("model name")), "").partition(": ")[2]
        threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
        versions |= {"device": model or platform.machine(), "threads": threads}
    return {**versions, "command": " ".join(sys.argv), "note": why_no_deepspeed()}


def build_kernels(device: str) -> float:
    """Build what the sides run on, before a clock runs; returns the seconds. What cannot be built is told."""
    begun = time.monotonic()
    reason = dispatch.unavailable(device)
    seconds = time.monotonic() - begun
    print(f"kernels: {device} {reason or f'is there after {seconds:.1f} s'}", file=sys.stderr, flush=True)
    return seconds


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the defaults of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="+", choices=[*ON_GPU, *ON_CPU], help="cuda: all; cpu: bert-small gpt2")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, help="of those that a case has")
    parser.add_argument("--rows", type=int, help="of a step, in place of the case's")
    parser.add_argument("--sides", nargs="+", help="by name or its beginning; not all")
    parser.add_argument("--techniques", action="store_true", help="what each technique gives")
    parser.add_argument("--attention_dropout", type=float, help="in place of the case's")
    parser.add_argument("--steps", type=int, help="of a turn; cuda: 6, cpu: 2")
    parser.add_argument("--rounds", type=int, help="cuda: 3, cpu: 5")
    parser.add_argument("--limit", type=float, default=600, help="seconds for everything")
    parser.add_argument("--side_limit", type=float, default=120, help="seconds that a side may take to warm up")
    parser.add_argument("--output", type=Path, help="JSON file of all results")
    options = parser.parse_args(arguments)
    options.cases = options.cases or (list(ON_GPU) if options.device == "cuda" else ["bert-small", "gpt2"])
    options.steps = options.steps or (6 if options.device == "cuda" else 2)
    options.rounds = options.rounds or (3 if options.device == "cuda" else 5)
    return options


def sides_of(name: str, options: argparse.Namespace) -> list[Side]:
    """What is timed in a case.

    Raises:
        SystemExit: for a side that there is not.
    """
    sides = ladder(options.device) if options.techniques else SIDES[options.device]
    names = [side.name for side in sides]
    chosen = {given: _named(given, names) for given in options.sides or ()}
    if wrong := [given for given, found in chosen.items() if not found]:
        raise SystemExit(f"error: there is no side {wrong[0]!r}; there are: {'; '.join(names)}")
    if chosen:
        return [side for side in sides if any(side.name in found for found in chosen.values())]
    return [side for side in sides if side.name != COMPILED or name in COMPILED_TOO]


def _named(given: str, names: Sequence[str]) -> list[str]:
    return [given] if given in names else [name for name in names if name.startswith(given)]


def case_of(name: str, options: argparse.Namespace) -> Case:
    """A case as the options change it."""
    case = {**ON_CPU, **ON_GPU}[name]
    texts = tuple(text for text in case.texts if not options.texts or text in options.texts)
    dropout = case.attention_dropout if options.attention_dropout is None else options.attention_dropout
    return replace(case, rows=options.rows or case.rows, texts=texts, attention_dropout=dropout)


def run_cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Results as they come; on a GPU the processes of the next case start while this one's rounds are taken."""
    end = time.monotonic() + options.limit
    cases = [(name, case) for name in options.cases if (case := case_of(name, options)).texts]
    following: Measurement | None = None
    try:
        for number, (name, case) in enumerate(cases):
            if end - time.monotonic() < LEAST_SECONDS and number:
                late = ", ".join(later for later, _ in cases[number:])
                yield {"what": "not run", "names": late, "reason": f"the {options.limit:.0f} s were over"}
                return
            measurement, following = following or Measurement(name, case, options, end), None
            try:
                yield from measurement.prepare()
                if options.device == "cuda" and number + 1 < len(cases):
                    following = Measurement(*cases[number + 1], options, end)
                yield from measurement.rounds()
            finally:
                measurement.close()
    finally:
        if following is not None:
            following.close()


def show(result: Mapping[str, Any]) -> str:
    """A result for a reader."""
    if result["what"] == "profile":
        lines = [f"{result['name']}, {result['text']}: {result['side']}: {result['total_ms']:.1f} ms of"]
        lines += [f"{e['ms']:9.2f} ms {e['share']:6.1%} {e['calls']:5d}  {e['name'][:90]}" for e in result["largest"]]
        return "\n".join(lines)
    if result["what"] == "not run":
        return f"not run: {result['names']}: {result['reason']}"
    lines = [f"{result['name']}, {result['text']} (a product: {result['matmul_tflops']:.3g} TFLOP/s):"]
    for name, found in result["sides"].items():
        mfu = "no MFU" if found["mfu"] is None else f"MFU {found['mfu']:.1%}"
        lines.append(
            f"  {name:40} {found['samples_per_second']:9.2f} samples/s {found['tokens_per_second']:10.0f} tokens/s, "
            f"{mfu}, of a product {found['share_of_matmul']:.1%}, "
            f"{found['memory_bytes'] / 2**30:.1f} GiB, {found['rounds']} rounds"
        )
    lines += [f"  {name:60} {ratio:.2f}" for name, ratio in result["ratios"].items()]
    return "\n".join([*lines, *(f"  not run: {name}: {why}" for name, why in result["not_run"].items())])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; 1 if a side failed, unless for want of time."""
    options = parse(arguments)
    machine = describe_machine(options)
    machine["kernels_built_in"] = build_kernels(options.device)
    saved: dict[tuple[str, ...], dict[str, Any]] = {}
    for result in run_cases(options):
        saved[result["what"], result.get("name", ""), result.get("text", "")] = result
        print(json.dumps({**result, "machine": machine}), flush=True)
        print(show(result), file=sys.stderr, flush=True)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            temporary = options.output.with_suffix(".tmp")
            temporary.write_text(json.dumps({"machine": machine, "results": list(saved.values())}, indent=1) + "\n")
            temporary.replace(options.output)
    reasons = [reason for result in saved.values() for reason in result.get("not_run", {}).values()]
    return int(any(TIME_IS_OVER not in reason for reason in reasons))


if __name__ == "__main__":
    raise SystemExit(main())
