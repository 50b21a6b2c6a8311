"""Softmax cross-entropy in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100  # the label of rows that count for nothing, as in torch

# R rows, V columns


def cross_entropy_forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, and what the softmax is made of again.

    Args:
        logits: [R, V].
        labels: [R] int64, columns or IGNORE_INDEX.

    Returns:
        losses [R], 0 for ignored rows and NaN where the label is no column, the rows' maximum [R] and the sum of
        exp(x - maximum) [R], all three in the type of the computation; and whether the label is the first of the row's
        largest columns [R] int32.
    """
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    maximum = x.amax(-1) if x.numel() else x.new_zeros(x.shape[0])
    maximum = torch.where(maximum == -torch.inf, 0.0, maximum)
    total = (x - maximum[:, None]).exp_().sum(-1)
    known = _known(labels, x.shape[1])
    own = x.gather(1, labels.where(known, 0)[:, None])[:, 0] if x.numel() else maximum
    losses = ((maximum - own) + total.log()).where(known, torch.nan).masked_fill(labels == IGNORE_INDEX, 0.0)
    largest = x.argmax(-1) if x.numel() else labels
    return losses, maximum, total, (known & (largest == labels)).int()


def cross_entropy_backward(logits: Tensor, labels: Tensor, maximum: Tensor, total: Tensor, upstream: Tensor) -> Tensor:
    """upstream * (softmax - onehot): [R, V] in the type of the logits.

    0 for ignored rows whatever their logits are, NaN where the label is no column.
    """
    gradient = (logits.to(maximum.dtype) - maximum[:, None]).exp_().div_(total[:, None])
    known = _known(labels, logits.shape[1])
    if gradient.numel():
        gradient.scatter_add_(1, labels.where(known, 0)[:, None], -known[:, None].to(gradient.dtype))
    gradient.mul_(upstream).masked_fill_(~known[:, None], torch.nan)
    return gradient.masked_fill_((labels == IGNORE_INDEX)[:, None], 0.0).to(logits.dtype)


def _known(labels: Tensor, width: int) -> Tensor:
    """Whether labels are columns."""
    return (labels >= 0) & (labels < width)
