"""What the emulator is for: equal bits under every schedule, and an eye for missing barriers and wrong accesses."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels import build
from tests.kernels.emulated import (
    BARRIER,
    DRIVERS,
    OPERATIONS,
    SCHEDULES,
    UNSEEN,
    barriers,
    compile_driver,
    cuda_source,
    run_driver,
    without_barrier,
)

pytestmark = pytest.mark.skipif(build.missing("emulator") is not None, reason=str(build.missing("emulator")))
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")
MUTANTS = [(operation, number) for operation in OPERATIONS for number in barriers(operation)]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the driver of each operation prints."""
    lines = {}
    for operation in OPERATIONS:
        done = run_driver(compile_driver(operation, tmp_path_factory.mktemp(operation)))
        assert done.returncode == 0, done.stderr
        lines[operation] = done.stdout
    return lines


def test_each_cuda_source_has_a_driver():
    assert sorted(path.stem for path in (build.SOURCES / "cuda").glob("*.cu")) == OPERATIONS
    assert all((DRIVERS / f"{operation}.cpp").is_file() for operation in OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_sanitizers_find_nothing_and_schedules_give_equal_bits(operation, right, tmp_path):
    program = compile_driver(operation, tmp_path, None, *SANITIZERS)
    assert len(right[operation].splitlines()) >= 3
    for schedule in SCHEDULES:
        done = run_driver(program, schedule)
        assert (done.returncode, done.stdout) == (0, right[operation]), done.stderr


def test_one_barrier_alone_is_excepted():
    assert [cuda_source(operation).count(UNSEEN) for operation in OPERATIONS].count(0) == len(OPERATIONS) - 1
    assert sum(len(BARRIER.findall(cuda_source(operation))) for operation in OPERATIONS) == len(MUTANTS) + 1


@pytest.mark.parametrize(("operation", "number"), MUTANTS, ids=str)
def test_a_missing_barrier_is_caught(operation, number, right, tmp_path):
    program = compile_driver(operation, tmp_path, without_barrier(operation, number))
    runs = [run_driver(program, schedule) for schedule in SCHEDULES]
    assert any(done.stdout != right[operation] or "waits at a barrier" in done.stderr for done in runs)


def test_a_barrier_that_some_threads_never_reach_is_named(tmp_path):
    barrier = BARRIER.search(cuda_source("norm"))
    assert barrier is not None
    mutant = without_barrier("norm", 0, f"if (threadIdx.x != 5) {barrier.group()}")
    done = run_driver(compile_driver("norm", tmp_path, mutant))
    assert done.returncode < 0 and "waits at a barrier that some of its threads never reach" in done.stderr


def test_shared_memory_that_nobody_filled_is_caught(right, tmp_path):
    first = "(turn > 0 ? *cell : 0.0f)"
    assert first in cuda_source("norm")
    program = compile_driver("norm", tmp_path, cuda_source("norm").replace(first, "*cell"))
    assert run_driver(program).stdout != right["norm"]


def sanitized_mutant(folder: Path, old: str, new: str) -> str:
    text = (build.SOURCES / "cuda" / "norm.cu").read_text()
    assert old in text
    return run_driver(compile_driver("norm", folder, text.replace(old, new, 1), *SANITIZERS)).stderr


def test_sanitizers_find_a_read_beyond_the_row(tmp_path):
    said = sanitized_mutant(tmp_path, "if (pack >= packs) continue;", "if (pack > packs) continue;")
    assert "AddressSanitizer: heap-buffer-overflow" in said
