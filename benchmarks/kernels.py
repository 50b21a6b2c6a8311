"""Each operation of kernels/ against torch's own, forward and backward, in one run.

    OMP_NUM_THREADS=2 python benchmarks/kernels.py --device cpu --output benchmarks/results/kernels_cpu_epyc_zen4.json
    python3 benchmarks/kernels.py --device cuda --limit 300 --write

The sides of a case take turns; a ratio is the median of the rounds' ratios, so what slows the machine for a while slows
all sides. The bandwidth is that of the bytes an operation must move at least, beside a copy of as many bytes that takes
its turn too. Before it is timed each of our results is compared with the reference backend's. On a GPU a CUDA graph
replays a pass, so that Python's time is not measured; at few tokens ours and torch's are timed without one too
("eager"), as the engine calls them, and the worse of the two ratios counts. Lines that begin with { are JSON, printed
as results come; --write puts the speeds of this device into kernels/measured.json, from which dispatch decides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this file's folder: it is called kernels too

import torch

from benchmarks import attention_cases, kernel_cases, optimizer_cases
from benchmarks.kernel_cases import Case, Run, Setting
from kernels import dispatch

ROOT = Path(__file__).resolve().parent.parent
CASES = {**kernel_cases.CASES, **optimizer_cases.CASES, **attention_cases.CASES}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_SIZES = {4096: (768,)}
CUDA_SIZES = {4096: (768, 1024, 1600, 4096), 65536: (768, 1024, 1600, 4096)}
GRAPH_SECONDS, GROUP_SECONDS = 0.01, 0.02  # on a GPU: of replays before timing, and of those timed together
SMALL_COPY = 1 << 20
EAGER_ROWS, EAGER = 4096, " eager"  # up to so many tokens Python may be slower than the GPU
MIN_ROUNDS, CASE_SECONDS = 3, 30.0  # a slow case has fewer rounds


def settings_of(options: argparse.Namespace) -> Iterator[tuple[str, Setting]]:
    """Operations and sizes; on a GPU one size after another, so that a run that is stopped has all operations."""
    sizes = CPU_SIZES if options.device == "cpu" else CUDA_SIZES
    dtypes = options.dtypes or (["fp32", "bf16"] if options.device == "cpu" else ["bf16"])
    for number, (rows, width) in enumerate((rows, width) for rows, widths in sizes.items() for width in widths):
        for operation in options.operations or CASES:
            if operation in optimizer_cases.CASES and number:
                continue
            if operation in attention_cases.CASES and width != sizes[rows][0]:  # more heads are more of the same
                continue
            for dtype in dtypes[:1] if operation in optimizer_cases.CASES else dtypes:
                yield operation, Setting(options.device, rows, width, DTYPES[dtype])


@contextlib.contextmanager
def forced(backend: str) -> Iterator[None]:
    """KERNELS_BACKEND for a while."""
    before = os.environ.get("KERNELS_BACKEND")
    os.environ["KERNELS_BACKEND"] = backend
    try:
        yield
    finally:
        os.environ.pop("KERNELS_BACKEND")
        if before is not None:
            os.environ["KERNELS_BACKEND"] = before


def error_of(case: Case, backend: str) -> float:
    """The largest difference of our results to the reference backend's, as a share of a result's largest value.

    Raises:
        ValueError: if it is above what the types explain.
    """
    run = case.result or case.sides["kernels"]
    with forced(backend):
        found = [tensor.clone() for tensor in run()]
    with forced("reference"):
        expected = [tensor.clone() for tensor in run()]
    pairs = [(ours.double(), theirs.double()) for ours, theirs in zip(found, expected, strict=True)]
    error = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs if b.numel())
    if not error <= case.tolerance:
        raise ValueError(f"{case.operation}, {case.name}: off the reference by {error:.1e} of the largest value")
    return error


def clock_cpu(run: Callable[[], Any]) -> Callable[[], float]:
    """Times one call, in seconds; our side ran when it was compared."""

    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return once


def clock_cuda(run: Callable[[], Any]) -> Callable[[], float]:
    """Times replays of a call as a CUDA graph, in seconds a call; the call itself where it cannot be captured."""
    return clock_eager(captured(run))


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """A CUDA graph of a call, or the call itself."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        print(f"not captured, so Python's time counts too: {str(error).splitlines()[0]}", flush=True)
        torch.cuda.synchronize()
        return run
    return graph.replay


def clock_eager(run: Callable[[], Any]) -> Callable[[], float]:
    """Times calls on a GPU, in seconds a call: Python's time where that is more."""
    first = _between_events(run, 3)
    _between_events(run, max(1, min(200, int(GRAPH_SECONDS / first))))
    calls = max(1, min(500, int(GROUP_SECONDS / first)))
    return lambda: _between_events(run, calls)


def _between_events(run: Callable[[], Any], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / calls


def copy_of(size: int, device: str) -> Run:
    """A copy that reads and writes so many bytes together."""
    source = torch.ones(max(SMALL_COPY, size // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: [target.copy_(source)]


def measure(case: Case, setting: Setting, backend: str, rounds: int) -> dict[str, Any]:
    """Compare, then time all sides of a case in turns."""
    error = error_of(case, backend)
    sides = dict(case.sides)
    if case.moved:
        sides["copy"] = copy_of(case.moved, setting.device)
    clock = clock_cuda if setting.device == "cuda" else clock_cpu
    with forced(backend):
        failed, clocks = {}, {}
        for name, run in sides.items():
            try:
                clocks[name] = clock(run)
            except Exception as problem:  # another's kernel, or memory: the rest goes on
                if name in ("kernels", "copy"):
                    raise
                failed[name] = str(problem).splitlines()[0]
        if setting.device == "cuda" and setting.rows <= EAGER_ROWS and "torch" in clocks:
            clocks |= {name + EAGER: clock_eager(sides[name]) for name in ("kernels", "torch")}
        times: dict[str, list[float]] = {name: [] for name in clocks}
        start = time.monotonic()
        for number in range(rounds):
            if number >= MIN_ROUNDS and time.monotonic() - start > CASE_SECONDS:
                break
            for name, take in clocks.items():
                times[name].append(take())
    return {
        **_described(case, setting),
        "error": error,
        **_figures(case, times),
        **({"failed": failed} if failed else {}),
    }


def _described(case: Case, setting: Setting) -> dict[str, Any]:
    dtype = next(name for name, dtype in DTYPES.items() if dtype == setting.dtype)
    size = {} if case.operation in optimizer_cases.CASES else {"rows": setting.rows, "dtype": dtype}
    return {"operation": case.operation, "case": case.name, "width": setting.width, **size}


def _figures(case: Case, times: dict[str, list[float]]) -> dict[str, Any]:
    def ratio(a: str, b: str) -> float:
        return statistics.median(one / other for one, other in zip(times[a], times[b], strict=True))

    figures: dict[str, Any] = {"microseconds": {name: statistics.median(each) * 1e6 for name, each in times.items()}}
    others = [name for name in times if name not in ("kernels", "copy", "kernels" + EAGER)]
    figures["speed"] = {name: ratio(name, "kernels" + EAGER * name.endswith(EAGER)) for name in others}
    if case.moved:
        figures["gigabytes_per_second"] = case.moved / figures["microseconds"]["kernels"] / 1e3
        scale = case.moved / max(case.moved, 2 * SMALL_COPY)
        figures["share_of_copy"] = {
            name: scale * ratio("copy", name) for name in times if name != "copy" and not name.endswith(EAGER)
        }
    return figures


def memory_of(operation: str, setting: Setting, side: str) -> int:
    """The most bytes that a side takes beside its inputs, in a process of its own."""
    dtype = next(name for name, dtype in DTYPES.items() if dtype == setting.dtype)
    command = [sys.executable, str(Path(__file__).resolve()), "--device", setting.device, "--peak_of", side]
    command += [
        "--operations",
        operation,
        "--dtypes",
        dtype,
        "--rows",
        str(setting.rows),
        "--width",
        str(setting.width),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def print_peak(operation: str, setting: Setting, side: str, backend: str) -> None:
    """What ``memory_of`` reads."""
    case = next(iter(CASES[operation](setting)))
    with forced(backend):
        if setting.device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            case.sides[side]()
            print(torch.cuda.max_memory_allocated() - before)
            return
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
        case.sides[side]()
        print(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    others = list(dict.fromkeys(name for result in results for name in result["speed"]))
    head = ["operation", "what", "size", "ms", *[f"/ {name}" for name in others], "GB/s", "of a copy", "memory"]
    lines = [head, ["---"] * len(head)]
    for result in results:
        size = f"{result['rows']} x {result['width']} {result['dtype']}" if "rows" in result else f"{result['width']}"
        speeds = [f"{result['speed'][name]:.2f}" if name in result["speed"] else "" for name in others]
        share = f"{result['share_of_copy']['kernels']:.0%}" if "share_of_copy" in result else ""
        rate = f"{result['gigabytes_per_second']:.0f}" if share else ""
        memory = f"{result['memory']:.2f}" if "memory" in result else ""
        milliseconds = f"{result['microseconds']['kernels'] / 1e3:.3g}"
        lines.append([result["operation"], result["case"], size, milliseconds, *speeds, rate, share, memory])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gains(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What dispatch must know: by operation the geometric mean over its cases of how many times as fast as torch.

    A case that was timed eagerly too counts by the worse of its ratios.
    """

    def mean(ratios: list[float]) -> float:
        return float(f"{math.exp(statistics.fmean(map(math.log, ratios))):.3g}")

    found: dict[str, dict[str, float]] = {}
    for operation in dict.fromkeys(result["operation"] for result in results):
        cases = [result for result in results if result["operation"] == operation and "torch" in result["speed"]]
        if not cases:
            continue
        speeds = [case["speed"] for case in cases]
        gain = found[operation] = {"speed": mean([min(s["torch"], s.get("torch" + EAGER, math.inf)) for s in speeds])}
        if memory := [case["memory"] for case in cases if "memory" in case]:
            gain["memory"] = mean(memory)
        for library in ("apex", "flash_attn"):
            if both := [case["speed"] for case in cases if library in case["speed"]]:
                gain[library] = mean([speed["torch"] / speed[library] for speed in both])
    return found


def write_gains(device: str, found: dict[str, dict[str, float]]) -> None:
    """Put the measurements of a device into the table of dispatch; what was not measured now stays."""
    measured = json.loads(dispatch.MEASURED.read_text(encoding="utf-8"))
    measured.setdefault(device, {}).update(found)
    _save(
        dispatch.MEASURED,
        json.dumps({name: dict(sorted(measured[name].items())) for name in sorted(measured)}, indent=2),
    )


def _save(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Where this runs."""
    if options.device == "cuda":
        name = torch.cuda.get_device_name()
        return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "rounds": options.rounds}
    model = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "").partition(": ")[2]
    return {
        "device": model or platform.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "rounds": options.rounds,
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--operations", nargs="+", choices=CASES, help="not all")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="cpu: fp32 bf16; cuda: bf16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no case is begun")
    parser.add_argument("--output", type=Path, help="JSON file, written after each case")
    parser.add_argument("--write", action="store_true", help="into kernels/measured.json")
    parser.add_argument("--rows", type=int, help="tokens, in place of the usual numbers")
    parser.add_argument("--width", type=int, help="in place of the usual widths")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"error: torch {torch.__version__} of {sys.executable} sees no CUDA device")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases; 1 where one failed, which the others survive."""
    options, end = parse(arguments), time.monotonic()
    torch.manual_seed(1)
    chosen = [
        (operation, Setting(options.device, options.rows or each.rows, options.width or each.width, each.dtype))
        for operation, each in settings_of(options)
    ]
    if options.peak_of:
        print_peak(*chosen[0], options.peak_of, options.device)
        return 0
    end += options.limit
    with forced(options.device):
        results, failed = run_cases(list(dict.fromkeys(chosen)), options, end)
    print(table(results))
    if options.write:
        write_gains(dispatch.device_name(torch.device(options.device)), gains(results))
    return int(failed > 0)


def run_cases(
    chosen: Sequence[tuple[str, Setting]], options: argparse.Namespace, end: float
) -> tuple[list[dict[str, Any]], int]:
    """The results, and how many settings failed; each is printed and saved as it comes."""
    results: list[dict[str, Any]] = []
    failed = 0
    for operation, setting in chosen:
        if time.monotonic() > end:
            print(
                f"stopped after {options.limit:.0f} s; not run: {operation} {setting.rows} x {setting.width} and later"
            )
            break
        try:
            for case in CASES[operation](setting):
                result = measure(case, setting, options.device, options.rounds)
                if case.by_memory:
                    peaks = {side: memory_of(operation, setting, side) for side in ("kernels", "torch")}
                    result |= {"peak_bytes": peaks, "memory": peaks["kernels"] / peaks["torch"]}
                results.append(result)
                print(json.dumps(result), flush=True)
                if options.output:
                    _save(options.output, json.dumps({"machine": machine(options), "results": results}, indent=1))
        except (ValueError, RuntimeError, subprocess.CalledProcessError) as problem:
            failed += 1
            print(f"error: {operation} {setting.rows} x {setting.width}: {problem}", file=sys.stderr, flush=True)
    return results, failed


if __name__ == "__main__":
    raise SystemExit(main())
