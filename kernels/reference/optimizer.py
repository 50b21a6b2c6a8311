"""Gradient norm, AdamW and LAMB over lists of tensors in plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# P pieces: (number of the tensor in the lists, first element, size)


def squared_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The sum of squares of all elements, [1] float64."""
    total = torch.zeros(1, dtype=torch.float64, device=gradients[0].device if gradients else "cpu")
    for gradient in gradients:
        total += gradient.to(torch.float64).square().sum()
    return total


def adamw(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    copies: Sequence[Tensor],
    factor: Tensor | None,
    *,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    step: int,
) -> None:
    """AdamW: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2."""
    for number, (gradient, weight) in enumerate(zip(gradients, weights, strict=True)):
        update = direction(gradient, first[number], second[number], factor, betas=betas, eps=eps, step=step)
        weight.mul_(1 - rate * decay).sub_(update, alpha=rate)
        if copies:
            copies[number].copy_(weight)


def direction(
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    factor: Tensor | None,
    *,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> Tensor:
    """Advance the moments of Adam (arXiv:1412.6980, algorithm 1); its bias-corrected direction, like the moments."""
    scaled = gradient.to(first.dtype)
    if factor is not None:
        scaled = scaled * factor.to(first.dtype)
    first.lerp_(scaled, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(scaled, scaled, value=1 - betas[1])
    return corrected(first, second, betas=betas, eps=eps, step=step)


def corrected(first: Tensor, second: Tensor, *, betas: tuple[float, float], eps: float, step: int) -> Tensor:
    """The direction that moments give."""
    denominator = (second.sqrt() / math.sqrt(1 - betas[1] ** step)).add_(eps)
    return (first / (1 - betas[0] ** step)).div_(denominator)


def lamb_moments(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    pieces: Sequence[tuple[int, int, int]],
    factor: Tensor | None,
    *,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    step: int,
) -> Tensor:
    """Advance the moments of pieces; their sums of squares of weights and of updates, [P, 2] float64.

    LAMB: You et al. 2019, arXiv:1904.00962, algorithm 2.
    """
    sums = torch.zeros(len(pieces), 2, dtype=torch.float64, device=weights[0].device if weights else "cpu")
    for row, piece in zip(sums, pieces, strict=True):
        gradient, weight, m, v = (part(list_, piece) for list_ in (gradients, weights, first, second))
        update = direction(gradient, m, v, factor, betas=betas, eps=eps, step=step).add_(weight, alpha=decay)
        row[0], row[1] = weight.double().square().sum(), update.double().square().sum()
    return sums


def lamb_step(
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    pieces: Sequence[tuple[int, int, int]],
    ratio: Tensor,
    *,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    step: int,
) -> None:
    """w = w - rate ratio u for each piece, whose moments ``lamb_moments`` has advanced."""
    for one, piece in zip(ratio, pieces, strict=True):
        weight, m, v = (part(list_, piece) for list_ in (weights, first, second))
        update = corrected(m, v, betas=betas, eps=eps, step=step).add_(weight, alpha=decay)
        weight.sub_(update.mul_(one.to(update.dtype)), alpha=rate)


def part(tensors: Sequence[Tensor], piece: tuple[int, int, int]) -> Tensor:
    """View [size] of a piece."""
    number, begin, size = piece
    return tensors[number].view(-1).narrow(0, begin, size)
