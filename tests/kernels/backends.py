"""What the tests of all operations share: backends, types, and how near results must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)
BACKENDS = ["reference", "cpu", "emulator", CUDA]
PACKED = ["emulator", CUDA]  # their threads load eight elements at once
TYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # of the largest value


def device_of(backend: str) -> str:
    """Where a backend's tensors are."""
    return "cuda" if backend == "cuda" else "cpu"


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare with float64 results: the largest error is at most this share of the largest value."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.numel():
            error = (found[name].cpu().double() - value).abs().max() / value.abs().max().clamp(min=1e-3)
            assert error <= tolerance, f"{name} is off by {error:.1e} of its largest value"


def check_promises(operator: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Compare the results of an operator with what its fake promised a compiler: shapes, types, strides, own memory."""
    found = operator(*arguments)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(each) if isinstance(each, Tensor) else each for each in arguments]
        promised = operator(*fakes)
    results, others = ((each,) if isinstance(each, Tensor) else each for each in (found, promised))
    for result, fake in zip(results, others, strict=True):
        assert (result.shape, result.dtype, result.stride()) == (fake.shape, fake.dtype, fake.stride())
    given = [each for each in arguments if isinstance(each, Tensor)]
    memory = [each.data_ptr() for each in (*given, *results) if each.numel()]
    assert len(memory) == len(set(memory))
