"""Dropout: by our kernels with masks that are drawn again in the backward pass, else by torch's generator."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import norm as kernels
from kernels.dispatch import Operation, is_wanted

LEVELS = 1 << 16
TYPES = (torch.float32,) * 3  # that every backend takes: the width decides


def uses_kernel(operation: Operation, device: torch.device, width: int | None = None) -> bool:
    """Whether a model calls one of our operations on a device; torch.compile takes the answer for a constant.

    Args:
        operation: what would be called.
        device: of its tensors.
        width: of their rows, as the module knows it and not read off a tensor, whose sizes may be symbols; None: fits.
    """
    return is_wanted(operation, device) if width is None else is_wanted(operation, device, width=width, types=TYPES)


torch.compiler.assume_constant_result(uses_kernel)


def draw_seed(device: torch.device) -> Tensor:
    """The seed of all masks of a forward pass, [1] int64; drawn on the CPU, so that it is the same on any device."""
    on_gpu = device.type == "cuda"  # only from pinned memory a copy does not wait for the GPU
    return torch.empty(1, dtype=torch.int64, pin_memory=on_gpu).random_().to(device, non_blocking=True)


def dropout_add(
    branch: Tensor, residual: Tensor, probability: float, training: bool, seed: Tensor | None, site: int,
    width: int | None = None,
) -> Tensor:  # fmt: skip
    """residual + dropout(branch).

    Args:
        branch: [N, D], floating dtype, on any device.
        residual: like it.
        probability: in [0, 1).
        training: False drops nothing.
        seed: of ``draw_seed``, where something is dropped.
        site: number of the call in the model.
        width: D, as ``uses_kernel`` takes it.
    """
    if uses_kernel(kernels.DROPOUT_ADD, branch.device, width):
        return kernels.dropout_add(branch, residual, dropout=probability if training else 0.0, seed=seed, site=site)
    return residual + dropout(branch, probability, training)


def dropout(hidden: Tensor, probability: float, training: bool) -> Tensor:
    """Zero elements with a probability, by torch's generator, and scale the rest so that the expectation stays.

    torch's CPU dropout draws one number for each element, in one thread: with its backward pass it took three times as
    long as this, which cuts each 64-bit draw into four 16-bit ones (measured in bf16 at [1153, 512] on 2 threads). The
    probability is thereby rounded to a multiple of 2^-16, and the scale fits the rounded one.

    Args:
        hidden: any shape and floating dtype, on any device.
        probability: in [0, 1).
        training: False returns ``hidden`` itself.
    """
    if not training or probability == 0.0:
        return hidden
    if hidden.device.type != "cpu":
        return torch.native_dropout(hidden, probability, True)[0]  # what F.dropout calls on a GPU
    dropped = min(round(probability * LEVELS), LEVELS - 1)
    size = hidden.numel()
    draws = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[:size].view(hidden.shape) >= dropped - LEVELS // 2
    return hidden * kept.to(hidden.dtype).mul_(LEVELS / (LEVELS - dropped))
