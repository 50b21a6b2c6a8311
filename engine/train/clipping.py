"""The gradient's norm, and clipping: by a factor that the optimizer's own pass multiplies gradients by, if it can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.fragments import ZERO3, ZERO12, layout_of
from kernels.dispatch import has_kernel
from kernels.optimizer import GRADIENT_NORM, TakesFactor, clip_factor, squared_norm


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients: a scalar tensor, not finite if one of their elements is not."""
    if gradients and has_kernel(GRADIENT_NORM, gradients[0].device):
        return squared_norm(gradients)[0].sqrt().float()
    return nn.utils.get_total_norm(gradients)


def sum_of_squares(gradients: Sequence[Tensor], device: torch.device | str) -> Tensor:
    """Of all elements, [1] float64 on a device; not finite if one of them is not."""
    if not gradients:
        return torch.zeros(1, dtype=torch.float64, device=device)
    if has_kernel(GRADIENT_NORM, gradients[0].device):
        return squared_norm(gradients)
    return nn.utils.get_total_norm(gradients).double().square().reshape(1)


def clip(
    optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor], norm: Tensor, limit: float, scale: float
) -> None:
    """Divide gradients by a scale and have their norm be a limit at most.

    Args:
        optimizer: that steps next; gradients stay as they are where it takes a factor.
        gradients: of all parameters.
        norm: of them.
        limit: 0: they are not clipped.
        scale: of the loss.
    """
    factor = clip_factor(norm, limit, scale)
    if isinstance(optimizer, TakesFactor):
        optimizer.factor = factor
    elif factor is not None:
        torch._foreach_mul_(list(gradients), factor.reshape(()))


def hand_over_factors(engine: Any, optimizer: torch.optim.Optimizer) -> None:
    """Have DeepSpeed's wrapper of ZeRO 1 to 3 give the optimizer the factor that it would multiply gradients by."""
    layout, wrapper = layout_of(engine), engine.optimizer
    if not isinstance(optimizer, TakesFactor) or layout not in (ZERO12, ZERO3):
        return

    def unscale_and_clip_grads(which: Any, norm: Tensor) -> None:
        optimizer.factor = clip_factor(norm, wrapper.clip_grad, float(wrapper.loss_scale))

    wrapper.unscale_and_clip_grads = unscale_and_clip_grads
