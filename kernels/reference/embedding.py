"""Embedding sum, LayerNorm and dropout in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.philox import drop

# N tokens, D columns


def sum_of_tables(
    tokens: Tensor, positions: Tensor, segments: Tensor | None, word: Tensor, position: Tensor, segment: Tensor | None
) -> Tensor:
    """word[token] + position[place] + segment[kind], [N, D] in the type of the computation."""
    compute = torch.promote_types(word.dtype, torch.float32)
    total = word[tokens].to(compute) + position[positions].to(compute)
    if segment is None:
        return total
    return total + (segment[0] if segments is None else segment[segments]).to(compute)


def embedding_forward(
    tokens: Tensor,
    positions: Tensor,
    segments: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    *,
    eps: float,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """dropout(LayerNorm(the sum of the tables' rows)), as in BERT (Devlin et al. 2019, arXiv:1810.04805, section 3).

    Returns:
        y [N, D] in the type of the tables; mean and rstd [N] in that of the computation, without elements where there
        is no norm.
    """
    rows = sum_of_tables(tokens, positions, segments, word, position, segment)
    mean, rstd = rows.new_empty(0), rows.new_empty(0)
    if weight is not None:
        mean = rows.mean(-1)
        centred = rows - mean[:, None]
        rstd = torch.rsqrt(centred.square().mean(-1) + eps)
        rows = centred * rstd[:, None] * weight.to(rows.dtype)
    if shift is not None:
        rows = rows + shift.to(rows.dtype)
    return drop(rows, threshold, seed, site).to(word.dtype), mean, rstd


def embedding_backward(
    dy: Tensor,
    tokens: Tensor,
    positions: Tensor,
    segments: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``embedding_forward`` with a norm.

    Returns:
        Of the sum, [N, D] in the type of the tables; of weight and shift, [D] in that of the computation.
    """
    rows = sum_of_tables(tokens, positions, segments, word, position, segment)
    gradient = drop(dy.to(rows.dtype), threshold, seed, site)
    normalised = (rows - mean[:, None]) * rstd[:, None]
    scaled = gradient * weight.to(rows.dtype)
    inner = scaled - scaled.mean(-1, keepdim=True) - normalised * (scaled * normalised).mean(-1, keepdim=True)
    return (inner * rstd[:, None]).to(word.dtype), (gradient * normalised).sum(0), gradient.sum(0)


def table_gradient(dz: Tensor, ids: Tensor, rows: int) -> Tensor:
    """Sums of the rows of dz [N, D] that have the same id: [rows, D], zero where there is none."""
    sums = dz.new_zeros(rows, dz.shape[-1], dtype=torch.promote_types(dz.dtype, torch.float32))
    values = dz.to(sums.dtype)
    if dz.is_cuda:  # of the two ways each is ordered on one kind of device alone
        return sums.index_put_((ids,), values, accumulate=True).to(dz.dtype)
    return sums.index_add_(0, ids, values).to(dz.dtype)
