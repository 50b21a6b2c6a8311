"""Run the drivers of the CUDA kernels under compute-sanitizer's memcheck and racecheck: no torch, no network.

    python3 tools/gpu_sanitize.py [--operations norm ...] [--tools memcheck racecheck]
    python3 tools/gpu_sanitize.py --compile      only compile them, which needs nvcc alone

A driver (tests/kernels/drivers) launches all kernels of an operation on arrays that end where the data does, and prints
a digest of the results for each case; the digests must be the same in every run. Each run's result is a line of JSON in
runs/gpu-sanitize/, written when it ends. Exit code 1: something was found; 2: something needed is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernels import build

ROOT = Path(__file__).resolve().parent.parent
DRIVERS = ROOT / "tests" / "kernels" / "drivers"
OPERATIONS = tuple(sorted(path.stem for path in DRIVERS.glob("*.cpp")))
TOOLS = ("memcheck", "racecheck")
LIMIT_SECONDS = 7.5 * 60
FOUND = 7  # exit code that compute-sanitizer is told to end with


@dataclass
class Run:
    """What came of one run of a driver."""

    operation: str
    tool: str  # plain, or one of compute-sanitizer's
    status: str  # ok, found, failed, differs, stopped
    seconds: float
    output: str


def sanitizer() -> str | None:
    """compute-sanitizer: in PATH, or beside nvcc."""
    nvcc = build.cuda_compiler()
    beside = [str(Path(nvcc).resolve().parent / "compute-sanitizer")] if nvcc else []
    return next(filter(None, map(shutil.which, ["compute-sanitizer", *beside])), None)


def missing(only_compile: bool) -> str | None:
    """What this machine lacks; None where it has all."""
    if reason := build.missing("cuda"):
        return reason
    if only_compile:
        return None
    if sanitizer() is None:
        return "there is no compute-sanitizer (part of the CUDA toolkit), neither in PATH nor beside nvcc"
    if shutil.which("nvidia-smi") is None or subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode:
        return "nvidia-smi lists no GPU"
    return None


def compile_driver(operation: str, folder: Path, architecture: str = "sm_90") -> Path:
    """Compile an operation's kernels with its driver by nvcc, with the lines of their sources.

    Raises:
        BuildError: with what nvcc said.
    """
    flags = [flag for flag in build.CUDA_FLAGS if flag not in ("-Xptxas", "-v")]
    sources = [str(build.SOURCES / "cuda" / f"{operation}.cu"), "-x", "cu", str(DRIVERS / f"{operation}.cpp")]
    program = folder / operation
    include = [f"-I{build.SOURCES / 'common'}", f"-I{DRIVERS}"]
    command = [str(build.cuda_compiler()), *flags, f"-arch={architecture}", *include, *sources, "-o", str(program)]
    build.run_compiler(command, folder)
    return program


def run(program: Path, tool: str, limit: float) -> Run:
    """Run a driver plainly or under a tool of compute-sanitizer."""
    checked = [str(sanitizer()), "--tool", tool, "--error-exitcode", str(FOUND)]
    checked += ["--leak-check", "full"] if tool == "memcheck" else []
    command = [*(checked if tool in TOOLS else []), str(program)]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, limit), check=False)
    except subprocess.TimeoutExpired as error:
        return Run(program.name, tool, "stopped", time.monotonic() - start, str(error))
    status = {0: "ok", FOUND: "found"}.get(done.returncode, "failed")
    return Run(program.name, tool, status, time.monotonic() - start, done.stdout + done.stderr)


def digests(output: str) -> list[str]:
    """A driver's own lines among those of compute-sanitizer."""
    return [line for line in output.splitlines() if not line.startswith("=========")]


def check(program: Path, tools: Sequence[str], end: float) -> list[Run]:
    """Run a driver twice plainly and once under each tool; all must print the same."""
    runs = [run(program, tool, end - time.monotonic()) for tool in ("plain", "plain", *tools)]
    for each in runs:
        if each.status == "ok" and digests(each.output) != digests(runs[0].output):
            each.status = "differs"
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and run; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--compile", action="store_true", help="do not run them")
    options = parser.parse_args(arguments)
    if reason := missing(options.compile):
        print(f"gpu-sanitize: not possible here: {reason}", file=sys.stderr)
        return 2
    end, bad = time.monotonic() + LIMIT_SECONDS, 0
    results = ROOT / "runs" / "gpu-sanitize" / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        for operation in options.operations:
            try:
                program = compile_driver(operation, Path(folder), "sm_90" if options.compile else "native")
            except build.BuildError as error:
                print(f"gpu-sanitize: {operation} does not compile:\n{error}", file=sys.stderr)
                return 1
            if options.compile:
                print(f"gpu-sanitize: {operation} compiled")
                continue
            results.parent.mkdir(parents=True, exist_ok=True)
            for each in check(program, options.tools, end):
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(each)) + "\n")
                print(f"gpu-sanitize: {operation} {each.tool}: {each.status} ({each.seconds:.0f} s)", flush=True)
                if each.status != "ok":
                    bad += 1
                    print(each.output, file=sys.stderr)
    if not options.compile:
        print(f"gpu-sanitize: results in {results.relative_to(ROOT)}")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
