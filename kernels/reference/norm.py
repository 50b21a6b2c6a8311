"""Norms in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.philox import drop

# R rows, W columns


def add(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, threshold: int, seed: Tensor | None, site: int
) -> Tensor:
    """residual + dropout(x + bias): [R, W] in the type of x."""
    compute = torch.promote_types(x.dtype, torch.float32)
    z = x.to(compute)
    if bias is not None:
        z = z + bias.to(compute)
    z = drop(z, threshold, seed, site)
    if residual is not None:
        z = z + residual.to(compute)
    return z.to(x.dtype)


def norm_forward(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    shift: Tensor | None,
    *,
    output: torch.dtype,
    centre: bool,
    eps: float,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise residual + dropout(x + bias), row by row.

    LayerNorm: Ba et al. 2016, arXiv:1607.06450. RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467.

    Returns:
        y [R, W] in the output type, z [R, W] in that of x, mean [R] (without elements where rows keep it) and
        rstd [R], both in the type of the computation.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    z = add(x, bias, residual, threshold, seed, site)
    rows = z.to(compute)
    mean = rows.mean(-1) if centre else rows.new_empty(0)
    centred = rows - mean[:, None] if centre else rows
    rstd = torch.rsqrt(centred.square().mean(-1) + eps)
    y = centred * rstd[:, None] * weight.to(compute)
    if shift is not None:
        y = y + shift.to(compute)
    return y.to(output), z, mean, rstd


def norm_backward(
    dy: Tensor,
    dz: Tensor | None,
    z: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``norm_forward``.

    Returns:
        dx [R, W], dresidual [R, W], both in the type of z; dweight [W], dshift [W], dbias [W] in the type of the
        computation.
    """
    compute = torch.promote_types(z.dtype, torch.float32)
    gradient, rows = dy.to(compute), z.to(compute)
    normalised = (rows - mean[:, None] if mean.numel() else rows) * rstd[:, None]
    scaled = gradient * weight.to(compute)
    inner = scaled - normalised * (scaled * normalised).mean(-1, keepdim=True)
    if mean.numel():
        inner = inner - scaled.mean(-1, keepdim=True)
    total = inner * rstd[:, None]
    dx, dresidual, dbias = add_backward(total, dz, threshold, seed, site)
    return dx.to(z.dtype), dresidual.to(z.dtype), (gradient * normalised).sum(0), gradient.sum(0), dbias


def add_backward(
    gradient: Tensor, dz: Tensor | None, threshold: int, seed: Tensor | None, site: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``add``: of x and residual [R, W] in the type of ``gradient``, of bias [W] in fp32 or more.

    Args:
        gradient: of the sum, from the norm: [R, W].
        dz: that which reaches the sum by itself.
        threshold: of the dropout.
        seed: of the mask.
        site: of the call.
    """
    compute = torch.promote_types(gradient.dtype, torch.float32)
    total = gradient.to(compute)
    if dz is not None:
        total = total + dz.to(compute)
    dropped = drop(total, threshold, seed, site)
    return dropped.to(gradient.dtype), total.to(gradient.dtype), dropped.sum(0)


def dropout_add(x: Tensor, residual: Tensor | None, threshold: int, seed: Tensor | None, site: int) -> Tensor:
    """residual + dropout(x): [R, W]."""
    out = drop(x.to(torch.promote_types(x.dtype, torch.float32)), threshold, seed, site)
    return (out if residual is None else out + residual).to(x.dtype)
