"""Activations in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# R rows, W columns of the result, C columns of the input: W, or 2 W where gated

SATURATED = 128.0  # beyond it an activation is 0 or the identity, and torch's own give NaN for infinities


def forward(x: Tensor, bias: Tensor | None, kind: str, gated: bool) -> Tensor:
    """act(x + bias), or where gated act(first half) * second half.

    GELU: Hendrycks and Gimpel 2016, arXiv:1606.08415. Gated: Shazeer 2020, arXiv:2002.05202.

    Returns:
        [R, W] in the type of x.
    """
    biased = _biased(x, bias)
    if not gated:
        return _activate(biased, kind).to(x.dtype)
    gate, value = biased.chunk(2, -1)
    return (_activate(gate, kind) * value).to(x.dtype)


def backward(dy: Tensor, x: Tensor, bias: Tensor | None, kind: str, gated: bool) -> tuple[Tensor, Tensor]:
    """The gradients of ``forward``.

    Returns:
        dx [R, C] in the type of x; dbias [C] in the type of the computation.
    """
    biased = _biased(x, bias)
    gradient = dy.to(biased.dtype)
    if gated:
        gate, value = biased.chunk(2, -1)
        dx = torch.cat([_derive(gradient * value, gate, kind), gradient * _activate(gate, kind)], -1)
    else:
        dx = _derive(gradient, biased, kind)
    return dx.to(x.dtype), dx.sum(0)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    compute = torch.promote_types(x.dtype, torch.float32)
    return x.to(compute) if bias is None else x.to(compute) + bias.to(compute)


def _activate(x: Tensor, kind: str) -> Tensor:
    bounded = x.clamp(-SATURATED, SATURATED)
    y = F.silu(bounded) if kind == "silu" else F.gelu(bounded, approximate=_approximate(kind))
    return torch.where(x > SATURATED, x, y)


def _derive(gradient: Tensor, x: Tensor, kind: str) -> Tensor:
    x = x.clamp(-SATURATED, SATURATED)
    if kind == "silu":
        return torch.ops.aten.silu_backward(gradient, x)
    return torch.ops.aten.gelu_backward(gradient, x, approximate=_approximate(kind))


def _approximate(kind: str) -> str:
    return "tanh" if kind == "gelu_tanh" else "none"
