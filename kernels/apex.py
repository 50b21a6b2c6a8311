"""NVIDIA's apex: whether it is installed, told from the unrelated apex of PyPI, and its norms.

The norms are called as apex's own autograd functions call them, through its compiled module, which hands out the
statistics of the rows.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

BUILD = "build https://github.com/NVIDIA/apex with its CUDA extensions"
MARK = Path("optimizers") / "fused_adam.py"  # of NVIDIA's, since its first version
NORMS = "fused_layer_norm_cuda"

# R rows, W columns


def missing() -> str | None:
    """Why NVIDIA's apex is not there, as the end of a sentence about apex; None where it is.

    The apex of PyPI is another program of that name.
    """
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return f"which is not installed: {BUILD}"
    if not any((Path(folder) / MARK).is_file() for folder in spec.submodule_search_locations or []):
        return (
            f"and the package apex that is installed is not NVIDIA's (PyPI's apex is unrelated): remove it and {BUILD}"
        )
    return None


def norms_missing() -> str | None:
    """Why apex's norms are not there, as ``missing``: apex can be installed without its CUDA extensions."""
    if reason := missing():
        return reason
    if importlib.util.find_spec(NORMS) is None:
        return f"whose compiled norms ({NORMS}) are not installed: {BUILD}"
    return None


def _norms() -> ModuleType:
    return importlib.import_module(NORMS)


def norm_limit(width: int, types: tuple[torch.dtype, ...]) -> str | None:
    """Why apex's norms do not take these types: input, output, parameters; None where they do."""
    _, output, parameters = types
    return None if output == parameters else f"apex gives results of the parameters' type, {parameters}, not {output}"


def norm_forward(z: Tensor, weight: Tensor, shift: Tensor | None, centre: bool, eps: float) -> tuple[Tensor, ...]:
    """LayerNorm, or RMSNorm without ``centre``.

    Args:
        z: [R, W], contiguous.
        weight: [W].
        shift: [W], in the type of weight.
        centre: subtract the mean.
        eps: added to the variance.

    Returns:
        y [R, W] in the type of weight; mean (without elements where rows keep it) and rstd [R] fp32.
    """
    if not z.numel():  # no grid of blocks is that small
        mean, rstd = (weight.new_empty(z.shape[0], dtype=torch.float32) for _ in range(2))
        return torch.empty_like(z, dtype=weight.dtype), mean, rstd
    suffix = "" if z.dtype == weight.dtype else "_mixed_dtypes"
    shape = [z.shape[-1]]
    if not centre:
        y, rstd = getattr(_norms(), f"rms_forward_affine{suffix}")(z, shape, weight, eps)
        return y, rstd.new_empty(0), rstd
    shift = torch.zeros_like(weight) if shift is None else shift
    forward = getattr(_norms(), f"forward_affine{suffix}")
    y, mean, rstd = forward(z, shape, weight, shift, eps)
    return y, mean, rstd


def norm_backward(dy: Tensor, z: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``norm_forward``: for z [R, W], and of weight and shift [W] fp32."""
    if not z.numel():
        dweight, dshift = (torch.zeros(z.shape[-1], device=z.device) for _ in range(2))
        return torch.empty_like(z), dweight, dshift
    shape, eps, from_output = [z.shape[-1]], 0.0, False  # eps is in rstd
    if not mean.numel():
        dz, dweight = _norms().rms_backward_affine(dy, rstd, z, shape, weight, eps, from_output)
        return dz, dweight.float(), dy.float().sum(0)
    dz, dweight, dshift = _norms().backward_affine(
        dy, mean, rstd, z, shape, weight, torch.zeros_like(weight), eps, from_output
    )
    return dz, dweight.float(), dshift.float()
