"""The emulator's tensor cores and copies against the tables of the PTX ISA (9.7.14, "Matrix Fragments", "ldmatrix")."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import build
from tests.kernels.emulated import SCHEDULES

pytestmark = pytest.mark.skipif(build.missing("emulator") is not None, reason=str(build.missing("emulator")))
SOURCE = Path(__file__).with_name("warp_matrix.cpp")


def element(matrix: int, rows: int, columns: int) -> Tensor:
    """The numbers of a matrix of warp_matrix.cpp: [rows, columns]."""
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    return ((row * 7 + column * 5 + matrix * 3 + row * column) % 13 - 6).double()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warp_matrix")
    flags = (*build.emulator_flags(), f"-I{build.SOURCES / 'common'}")
    build.run_compiler([str(build.host_compiler()), *flags, str(SOURCE), "-o", str(folder / "program")], folder)
    return folder / "program"


def run(program: Path, what: str, schedule: str = "0") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "KERNELS_SCHEDULE": schedule, "OMP_NUM_THREADS": "1"}
    return subprocess.run([program, what], env=env, capture_output=True, text=True, check=False, timeout=60)


def shown(program: Path, what: str, schedule: str = "0") -> Tensor:
    """What each thread shows: [32, numbers]."""
    done = run(program, what, schedule)
    assert done.returncode == 0, done.stderr
    return torch.tensor([[float(each) for each in line.split()] for line in done.stdout.splitlines()]).double()


def gathered(fragments: Tensor) -> Tensor:
    """d [16, 8] of what each thread has of it: [32, 4]."""
    matrix = torch.full((16, 8), torch.nan).double()
    for lane in range(32):
        for i in range(4):
            matrix[lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2] = fragments[lane, i]
    return matrix


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_products_of_fragments_filled_by_the_tables(program, dtype, schedule):
    expected = element(2, 16, 8) + element(0, 16, 16) @ element(1, 16, 8)
    assert torch.equal(gathered(shown(program, dtype, schedule)[:, :4]), expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_products_of_matrices_loaded_from_shared_memory(program, dtype, schedule):
    found = shown(program, f"loaded_{dtype}", schedule)
    straight, turned = (torch.cat([gathered(found[:, i : i + 4]) for i in (j, j + 4)], dim=1) for j in (0, 8))
    a, b = element(0, 16, 16), element(1, 16, 16)
    assert torch.equal(straight, a @ b)
    assert torch.equal(turned, a @ b.T)


@pytest.mark.parametrize("what", ["load", "transposed"])
def test_each_thread_loads_what_the_table_of_ldmatrix_gives_it(program, what):
    found, matrix = shown(program, what), element(0, 16, 16)
    for lane in range(32):
        for m in range(4):
            part = matrix[m // 2 * 8 :, m % 2 * 8 :][:8, :8]
            part = part.T if what == "transposed" else part
            expected = part[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert torch.equal(found[lane, 2 * m : 2 * m + 2], expected), (lane, m)


def test_copies_are_there_when_their_group_was_waited_for_and_not_before(program):
    before, one, two, all_three = shown(program, "copy")[:, :12].reshape(32, 4, 3).transpose(0, 1)
    assert before.isnan().all()
    assert (one[:, 0] == 7).all() and one[:, 1:].isnan().all()
    assert (two[:, :2] == torch.tensor([7, 15])).all() and two[:, 2].isnan().all()
    assert (all_three == torch.tensor([7, 15, 0])).all()


def test_addresses_that_are_no_multiple_of_16_bytes_are_named(program):
    for what, message in (
        ("load_off", "emulator: a row of a matrix begins at no multiple of 16 bytes"),
        ("copy_off", "emulator: an asynchronous copy is between addresses that are no multiples of 16 bytes"),
    ):
        done = run(program, what)
        assert done.returncode < 0 and message in done.stderr


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_votes_sums_and_exchanges_between_threads(program, schedule):
    found = shown(program, "others", schedule)
    assert found[:, 0].isnan().all()  # dynamic shared memory that nobody filled
    assert (found[:, 1] == 1).all() and (found[:, 2] == 0).all()
    for lane in range(32):
        quad = range(lane // 4 * 4, lane // 4 * 4 + 4)
        assert found[lane, 3] == max(each * 7 % 13 for each in quad)
        assert found[lane, 4] == math.fsum(quad)
        assert found[lane, 5:13].tolist() == [number for each in quad for number in (each, lane % 4)]
    places = found[:, 13].long()
    for t in range(4):  # columns 2t and 2t + 1 of four matrices d
        assert places.view(4, 8)[:, 2 * t : 2 * t + 2].flatten().tolist() == list(range(8 * t, 8 * t + 8))
