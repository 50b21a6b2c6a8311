"""NVIDIA's apex as a backend of the norms: told from PyPI's, and called right, here on a stand-in of its modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kernels import apex, dispatch
from kernels.norm import norm
from kernels.philox import seed_tensor
from tests.kernels.test_norm import case, exact, run

# The compiled module's functions as apex's csrc/layer_norm_cuda.cpp declares them, in torch.
COMPILED = """
import torch
import torch.nn.functional as F

calls = []

def _layer_norm(z, shape, weight, bias, eps):
    z = z.float()
    mean, rstd = z.mean(-1), torch.rsqrt(z.var(-1, correction=0) + eps)
    y = F.layer_norm(z, shape, weight.float(), bias.float(), eps)
    return y.to(weight.dtype), mean, rstd

def forward_affine(input, normalized_shape, gamma, beta, epsilon):
    assert input.dtype == gamma.dtype == beta.dtype
    calls.append("forward_affine")
    return _layer_norm(input, normalized_shape, gamma, beta, epsilon)

def forward_affine_mixed_dtypes(input, normalized_shape, gamma, beta, epsilon):
    assert input.dtype != gamma.dtype == beta.dtype
    calls.append("forward_affine_mixed_dtypes")
    return _layer_norm(input, normalized_shape, gamma, beta, epsilon)

def backward_affine(dout, mean, invvar, input_or_output, normalized_shape, gamma, beta, epsilon, memory_efficient):
    assert not memory_efficient and dout.dtype == gamma.dtype
    calls.append("backward_affine")
    normal = (input_or_output.float() - mean[:, None]) * invvar[:, None]
    scaled = dout.float() * gamma.float()
    dz = scaled - scaled.mean(-1, keepdim=True) - normal * (scaled * normal).mean(-1, keepdim=True)
    dgamma, dbeta = (dout.float() * normal).sum(0), dout.float().sum(0)
    return (dz * invvar[:, None]).to(input_or_output.dtype), dgamma.to(gamma.dtype), dbeta.to(beta.dtype)

def rms_forward_affine(input, normalized_shape, gamma, epsilon):
    calls.append("rms_forward_affine")
    rstd = torch.rsqrt(input.float().square().mean(-1) + epsilon)
    return (input.float() * rstd[:, None] * gamma.float()).to(gamma.dtype), rstd

rms_forward_affine_mixed_dtypes = rms_forward_affine

def rms_backward_affine(dout, invvar, input_or_output, normalized_shape, gamma, epsilon, memory_efficient):
    calls.append("rms_backward_affine")
    normal = input_or_output.float() * invvar[:, None]
    scaled = dout.float() * gamma.float()
    dz = scaled - normal * (scaled * normal).mean(-1, keepdim=True)
    return (dz * invvar[:, None]).to(input_or_output.dtype), (dout.float() * normal).sum(0).to(gamma.dtype)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Make an apex importable: NVIDIA's, with compiled norms or not, or PyPI's."""
    monkeypatch.setenv("KERNELS_BACKEND", "apex")
    monkeypatch.setitem(dispatch.DEVICE_OF, "apex", "cpu")

    def install(nvidia: bool = True, compiled: bool = True) -> Path:
        (tmp_path / "apex" / "optimizers").mkdir(parents=True)
        (tmp_path / "apex" / "__init__.py").touch()
        if nvidia:
            (tmp_path / "apex" / "optimizers" / "fused_adam.py").touch()
        if compiled:
            (tmp_path / "fused_layer_norm_cuda.py").write_text(COMPILED)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    dispatch.unavailable.cache_clear()
    yield install
    dispatch.unavailable.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("apex", apex.NORMS)]:
        del sys.modules[name]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("without", [(), ("shift",), ("bias", "residual")], ids=str)
@pytest.mark.parametrize(("dtype", "parameters"), [(torch.float32, None), (torch.bfloat16, torch.float32)], ids=str)
def test_norms(dropout, centre, without, dtype, parameters, installed, ran):
    installed()
    without = tuple({*without, "shift"}) if not centre else without
    made = case((19, 96), dtype=dtype, parameters=parameters, output=torch.float32, without=without)
    options = {"dropout": dropout, "seed": seed_tensor(3), "site": 2, "centre": centre}
    found, expected = run(made, output=torch.float32, **options), exact(made, **options)
    for name, value in expected.items():
        error = (found[name].double() - value).abs().max() / value.abs().max()
        assert error < (4e-6 if dtype == torch.float32 else 8e-3), name
    assert set(ran) == {"apex"}
    called = sys.modules[apex.NORMS].calls
    mixed = "" if dtype == torch.float32 else "_mixed_dtypes"
    assert called == (
        [f"forward_affine{mixed}", "backward_affine"] if centre else ["rms_forward_affine", "rms_backward_affine"]
    )


def test_types_that_apex_does_not_mix_go_to_the_reference(installed, ran):
    installed()
    made = case((3, 8), dtype=torch.bfloat16, parameters=torch.float32)
    run(made)
    assert set(ran) == {"reference"}


@pytest.mark.parametrize("centre", [True, False])
def test_no_rows(centre, installed, ran):
    installed()
    found = run(case((0, 8), without=() if centre else ("shift",)), centre=centre)
    assert found["weight"].abs().max() == 0 and found["y"].shape == (0, 8)
    assert set(ran) == {"apex"} and apex.NORMS not in sys.modules


@pytest.mark.parametrize(
    ("nvidia", "compiled", "message"),
    [
        (
            True,
            False,
            r"KERNELS_BACKEND is apex, whose compiled norms \(fused_layer_norm_cuda\) are not installed: build",
        ),
        (False, True, r"is apex, and the package apex that is installed is not NVIDIA's \(PyPI's apex is unrelated\)"),
    ],
)
def test_other_kinds_of_apex(nvidia, compiled, message, installed):
    installed(nvidia, compiled)
    with pytest.raises(dispatch.BackendError, match=message):
        norm(torch.ones(2, 8), torch.ones(8))


def test_no_apex(installed):
    with pytest.raises(dispatch.BackendError, match="KERNELS_BACKEND is apex, which is not installed: build https://"):
        norm(torch.ones(2, 8), torch.ones(8))


@pytest.mark.gpu
@pytest.mark.skipif(apex.norms_missing() is not None or not torch.cuda.is_available(), reason="no apex or CUDA device")
@pytest.mark.parametrize("centre", [True, False])
def test_norms_of_the_real_apex(centre, monkeypatch, ran):
    monkeypatch.setenv("KERNELS_BACKEND", "apex")
    made = case((300, 1024), "cuda", torch.bfloat16, torch.bfloat16, without=() if centre else ("shift",))
    options = {"dropout": 0.1, "seed": seed_tensor(3, "cuda"), "centre": centre}
    found, expected = run(made, **options), exact(made, **options)
    for name, value in expected.items():
        error = (found[name].cpu().double() - value).abs().max() / value.abs().max()
        assert error < 1e-2, name
    assert set(ran) == {"apex"}
