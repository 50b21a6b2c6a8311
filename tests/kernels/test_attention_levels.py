"""Attention on a CPU at each level of instructions, in a process each: a level is chosen once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from kernels import build

pytestmark = pytest.mark.skipif(build.missing("cpu") is not None, reason=str(build.missing("cpu")))
EVERY = (*build.CPU_LEVELS, None)  # None: all that this machine has, which may multiply bf16 numbers
NAMES = "must be one of v2, v3, v4, v4bf16"

SCRIPT = """
import itertools, torch
from kernels.attention import packed_attention
from kernels.philox import seed_tensor

LENGTHS = (37, 0, 1, 200, 64, 9, 133)  # whole blocks of queries and tiles of keys, parts, and none
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1.5e-3}

def run(qkv, dout, bias, dtype, **options):
    leaves = [qkv.to(dtype).requires_grad_(), bias.detach().requires_grad_()]
    boundaries = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
    out = packed_attention(leaves[0], boundaries, dout.shape[1], max(LENGTHS), bias=leaves[1], **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(dtype))]

for dtype, size, (mask, dropout) in itertools.product(TOLERANCE, (32, 64, 96, 128), (("full", 0.1), ("causal", 0.0))):
    torch.manual_seed(size)
    qkv, dout = torch.randn(sum(LENGTHS) + 5, 8, size).to(dtype), torch.randn(sum(LENGTHS) + 5, 4, size).to(dtype)
    bias, options = torch.randn(4, 2 * max(LENGTHS) - 1), {"mask": mask, "dropout": dropout, "seed": seed_tensor(3)}
    ours = run(qkv, dout, bias, dtype, **options)
    for name, found, exact in zip(("out", "qkv", "bias"), ours, run(qkv, dout, bias, torch.float64, **options)):
        error = float((found.double() - exact).abs().max() / exact.abs().max())
        assert error <= TOLERANCE[dtype], (name, dtype, size, mask, error)
"""


@pytest.mark.parametrize("level", EVERY)
def test_each_level_of_instructions(level):
    env = {**os.environ, "PYTHONPATH": str(build.SOURCES.parents[1]), "KERNELS_BACKEND": "cpu"}
    env.pop("KERNELS_CPU_LEVEL", None)
    if level is not None:
        env["KERNELS_CPU_LEVEL"] = level
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif("v4" not in build.CPU_LEVELS, reason="this CPU has one level")
@pytest.mark.parametrize(
    ("value", "multiplies", "said"),
    [
        ("v4", False, ""),
        ("v4bf16", True, ""),
        ("", True, ""),
        (None, True, ""),
        ("v4b", True, NAMES),
        ("V2", True, NAMES),
    ],
)
def test_names_of_levels(value, multiplies, said):
    script = "import ctypes, torch, kernels.build; library = ctypes.CDLL(str(kernels.build.build('cpu')));"
    script += "print(library.kernels_cpu_level(), bool(library.kernels_cpu_multiplies_bf16() & 1))"
    env = {**os.environ, "PYTHONPATH": str(build.SOURCES.parents[1])}
    env.pop("KERNELS_CPU_LEVEL", None)
    if value is not None:
        env["KERNELS_CPU_LEVEL"] = value
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    highest = 4 if torch.cpu._is_avx512_supported() else 3 if torch.cpu._is_avx2_supported() else 2
    multiplies = multiplies and torch.cpu._is_avx512_bf16_supported()
    assert done.stdout.split() == [str(highest), str(multiplies)]
    assert said in done.stderr and bool(said) == ("KERNELS_CPU_LEVEL" in done.stderr)
