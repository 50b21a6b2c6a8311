"""Run the benchmarks on a CUDA device one after another, in less than 8 minutes, saving each result as it comes.

The kernels are built before, where they are not there yet; no clock runs then, and how long it took is told.

    python3 benchmarks/gpu_bench.py [--only kernels | models] [--output runs/gpu-bench] [--limit 470]

Every benchmark is a command that prints JSON objects, one a line, among other lines; they are kept with the device, the
versions, the command and its whole output. What needs a library that this interpreter lacks is reported as not run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("torch", "deepspeed", "transformers", "triton")


@dataclass(frozen=True)
class Benchmark:
    """One command.

    Args:
        name: names its result file.
        command: arguments after the interpreter; the first is a script of this checkout, or -m.
        needs: libraries without which it cannot run.
        limit: seconds after which it is stopped.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    limit: float = 400


KERNELS = ("benchmarks/kernels.py", "--device", "cuda", "--limit", "180", "--write")
MODELS = ("benchmarks/models.py", "--device", "cuda", "--limit", "250")
BUILD = Benchmark("build", ("-m", "kernels", "--build", "cuda"), limit=1200)
BENCHMARKS = (  # the models run on what was measured of the kernels
    Benchmark("kernels", KERNELS, needs=("torch",), limit=205),
    Benchmark("models", MODELS, needs=("torch", "numpy", "h5py", "yaml")),
)


@dataclass
class Result:
    """What came out of a benchmark; written before the next one starts."""

    name: str
    status: str  # ok, failed, stopped, not run
    reason: str = ""
    seconds: float = 0.0
    command: list[str] = field(default_factory=list)
    measurements: list[Any] = field(default_factory=list)
    output: list[str] = field(default_factory=list)


def describe_machine() -> dict[str, Any]:
    """Return device name, memory and versions.

    Raises:
        SystemExit: without torch or a CUDA device, saying what is missing.
    """
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(f"error: {sys.executable} has no torch; name another interpreter: make gpu-bench PYTHON=...")
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(f"error: torch {torch.__version__} of {sys.executable} sees no CUDA device")
    device = torch.cuda.get_device_properties(0)
    versions = {name: _version(name) for name in VERSIONS}
    return {
        "device": device.name,
        "num_devices": torch.cuda.device_count(),
        "memory_bytes": device.total_memory,
        "cuda": torch.version.cuda,
        "python": ".".join(map(str, sys.version_info[:3])),
        **versions,
    }


def why_not(benchmark: Benchmark) -> str:
    """Return why a benchmark cannot run here; empty where it can."""
    if not (ROOT / benchmark.command[0]).is_file():
        return f"{benchmark.command[0]} is not in this version"
    absent = [name for name in benchmark.needs if importlib.util.find_spec(name) is None]
    return f"{sys.executable} cannot import {', '.join(absent)}" if absent else ""


def run_benchmark(benchmark: Benchmark, limit: float) -> Result:
    """Run a benchmark in a process group of its own, its lines passing through, for `limit` seconds at most."""
    command = [sys.executable, *benchmark.command]
    result = Result(benchmark.name, "ok", command=command)
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    stopping = threading.Timer(limit, kill_group, (process.pid,))
    stopping.start()
    try:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            result.output.append(line.rstrip("\n"))
            result.measurements += measurements(line)
        process.wait()
    finally:
        stopping.cancel()
        kill_group(process.pid)  # what it may have left running; the group is ours alone
        process.wait()
    result.seconds = round(time.monotonic() - start, 1)
    if process.returncode == -signal.SIGKILL and result.seconds >= limit:
        result.status, result.reason = "stopped", f"after {limit:.0f} s; what it had printed by then is kept"
    elif process.returncode:
        result.status, result.reason = "failed", f"exit code {process.returncode}"
    return result


def measurements(line: str) -> list[Any]:
    """Return the JSON object of a line, if it is one."""
    if not line.startswith("{"):
        return []
    try:
        return [json.loads(line)]
    except json.JSONDecodeError:
        return []  # a line that only looks like one; it stays in the output


def kill_group(pid: int) -> None:
    """Kill the process group that a process of ours leads."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write JSON under a temporary name, then rename."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what can run; 1 where a benchmark failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu-bench")
    parser.add_argument("--limit", type=float, default=470, help="seconds for all of them together")
    parser.add_argument("--only", choices=[benchmark.name for benchmark in BENCHMARKS])
    options = parser.parse_args(arguments)
    machine = describe_machine()
    print(f"gpu-bench: {machine['device']}, torch {machine['torch']}, CUDA {machine['cuda']}")
    folder = options.output / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    results = [run_benchmark(BUILD, BUILD.limit)]
    save(folder / f"{BUILD.name}.json", {"machine": machine, **asdict(results[0])})
    print(f"gpu-bench: {BUILD.name}: {results[0].seconds:.0f} s", flush=True)
    end = time.monotonic() + options.limit
    for benchmark in BENCHMARKS:
        if options.only not in (None, benchmark.name):
            continue
        reason = why_not(benchmark)
        if not reason and end - time.monotonic() < 10:
            reason = f"the {options.limit:.0f} s for all benchmarks were over"
        if reason:
            result = Result(benchmark.name, "not run", reason)
        else:
            result = run_benchmark(benchmark, min(benchmark.limit, end - time.monotonic()))
        save(folder / f"{benchmark.name}.json", {"machine": machine, **asdict(result)})
        results.append(result)
    for result in results:
        print(f"gpu-bench: {result.name}: {result.status}{': ' if result.reason else ''}{result.reason}")
    print(f"gpu-bench: results in {folder}")
    if any(result.name == "models" and result.measurements for result in results):
        print(f"docs/performance.md takes them by: python benchmarks/performance_table.py {folder / 'models.json'}")
    return int(any(result.status == "failed" for result in results))


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
