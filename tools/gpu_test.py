"""Run the tests marked gpu with this interpreter as it is: no virtual environment, no network.

    python3 tools/gpu_test.py [more arguments for pytest]

The kernels' tests come first. Results go to runs/gpu-test/: a line of JSON for each test when it ends, and JUnit's XML
at the end. Only files that have such tests are collected, so that libraries which only others need may be missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 7.8 * 60
OPTIONAL = ("deepspeed", "hdf5plugin", "jsonargparse", "transformers")


def missing_libraries() -> list[str]:
    """Return the optional libraries that this interpreter does not have; tests that need one are skipped."""
    return [name for name in OPTIONAL if importlib.util.find_spec(name) is None]


def gpu_test_files() -> list[Path]:
    """Return the test files with tests marked gpu, those of the kernels first."""
    marked = re.compile(r"\bmark\.gpu\b")
    kernels = ROOT / "tests" / "kernels"
    files = sorted((ROOT / "tests").rglob("test_*.py"), key=lambda path: (kernels not in path.parents, path))
    files.remove(ROOT / "tests" / "test_conftest.py")  # it only speaks of the mark
    return [path for path in files if kernels in path.parents or marked.search(path.read_text(encoding="utf-8"))]


def describe_gpu() -> str:
    """Return the device and versions.

    Raises:
        SystemExit: without torch or a CUDA device, saying what is missing.
    """
    for name in ("torch", "pytest"):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(f"error: {sys.executable} has no {name}; name another: make gpu-test PYTHON=...")
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(f"error: torch {torch.__version__} of {sys.executable} sees no CUDA device")
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, Python {python}"


def main() -> int:
    """Run the tests and return pytest's exit code."""
    print(f"gpu-test: {describe_gpu()}")
    absent, files = missing_libraries(), gpu_test_files()
    if not files:
        print("gpu-test: this version has no tests that need a GPU")
        return 0
    results = ROOT / "runs" / "gpu-test" / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    reports = [f"--junitxml={results.with_suffix('.xml')}", "-p", "tools.json_lines"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *reports, *map(str, files), *sys.argv[1:]]
    environment = {**os.environ, "JSON_LINES": str(results)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        print(
            f"gpu-test: stopped after {LIMIT_SECONDS:.0f} s; {results.relative_to(ROOT)} has what ended",
            file=sys.stderr,
        )
        return 124
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what a test may have left; the group is ours alone
        process.wait()
    for name in absent:
        print(f"gpu-test: not run: what needs {name}, which {sys.executable} cannot import (the skipped tests above)")
    print(f"gpu-test: results in {results.relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
