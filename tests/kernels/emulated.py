"""Drivers of the CUDA kernels as programs of their own, under the emulator: built in seconds, without torch."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from kernels import build

DRIVERS = Path(__file__).with_name("drivers")
OPERATIONS = sorted(path.stem for path in DRIVERS.glob("*.cpp"))
SCHEDULES = ("0", "1", "7", "99", "12345")
# A product stands between reads of `square` and the next writes; there the emulator waits for all, which CUDA does not
UNSEEN = "__syncwarp();  // `square` has been read"
BARRIER = re.compile(r"(?:__sync(?:threads|warp)|wait_for_copies<\d+>)\(\);")  # of threads, or of a thread's copies


def compile_driver(operation: str, folder: Path, source: str | None = None, *flags: str) -> Path:
    """Compile the kernels of an operation with their driver.

    Args:
        operation: the name of a file below csrc/cuda and of a driver.
        folder: for the program.
        source: CUDA source to compile in place of the file.
        flags: of the compiler, more.
    """
    kernels = build.SOURCES / "cuda" / f"{operation}.cu"
    changed = folder / f"{operation}.cu"
    changed.write_text((source or kernels.read_text()).replace('"../common/', '"'))
    common = (*build.emulator_flags(), *flags, f"-I{build.SOURCES / 'common'}", f"-I{DRIVERS}")
    program = folder / operation
    build.run_compiler(
        [str(build.host_compiler()), *common, str(changed), str(DRIVERS / f"{operation}.cpp"), "-o", str(program)],
        folder,
    )
    return program


def run_driver(program: Path, schedule: str = "0") -> subprocess.CompletedProcess[str]:
    """Run a driver under a schedule; its lines are in stdout."""
    env = {**os.environ, "KERNELS_SCHEDULE": schedule, "OMP_NUM_THREADS": "1"}
    return subprocess.run([program], env=env, capture_output=True, text=True, check=False, timeout=200)


def cuda_source(operation: str) -> str:
    """The CUDA source of an operation, with the headers that have barriers in it."""
    text = (build.SOURCES / "cuda" / f"{operation}.cu").read_text()
    for header in (build.SOURCES / "common").glob("*.h"):
        if BARRIER.search(header.read_text()):
            inside = header.read_text().replace("#pragma once\n", "")
            text = text.replace(f'#include "../common/{header.name}"\n', inside)
    return text


def barriers(operation: str) -> list[int]:
    """Numbers of the barriers in an operation's CUDA source, but for the one that no schedule misses."""
    text = cuda_source(operation)
    found = enumerate(BARRIER.finditer(text))
    return [number for number, each in found if not text.startswith(UNSEEN, each.start())]


def without_barrier(operation: str, number: int, instead: str = "") -> str:
    """The CUDA source of an operation whose barrier ``number`` is replaced."""
    text = cuda_source(operation)
    found = list(BARRIER.finditer(text))[number]
    return text[: found.start()] + instead + text[found.end() :]
