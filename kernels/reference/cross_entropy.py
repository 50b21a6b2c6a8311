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
        losses [R], 0 for ignored rows, the rows' maximum [R] and the sum of exp(x - maximum) [R], all three in the type
        of the computation; and whether the label is the first of the row's largest columns [R] int32.
    """
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    maximum = x.amax(-1) if x.numel() else x.new_zeros(x.shape[0])
    maximum = torch.where(maximum == -torch.inf, 0.0, maximum)
    total = (x - maximum[:, None]).exp_().sum(-1)
    own = x.gather(1, labels.clamp(min=0)[:, None])[:, 0] if x.numel() else maximum
    losses = torch.where(labels == IGNORE_INDEX, 0.0, (maximum - own) + total.log())
    largest = x.argmax(-1) if x.numel() else labels
    return losses, maximum, total, (largest == labels).int()


def cross_entropy_backward(logits: Tensor, labels: Tensor, maximum: Tensor, total: Tensor, upstream: Tensor) -> Tensor:
    """upstream * (softmax - onehot), 0 for ignored rows: [R, V] in the type of the logits."""
    gradient = (logits.to(maximum.dtype) - maximum[:, None]).exp_().div_(total[:, None])
    here = labels != IGNORE_INDEX
    gradient.scatter_add_(1, labels.clamp(min=0)[:, None], -here[:, None].to(gradient.dtype))
    return gradient.mul_(upstream * here[:, None]).to(logits.dtype)
