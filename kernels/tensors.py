"""Tensors as the kernels read them."""

from __future__ import annotations

from torch import Tensor

ALIGNMENT = 16  # bytes that a thread of a GPU loads at once


def packed(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it is not contiguous or begins between two addresses that a GPU loads from."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def packed_or_none(tensor: Tensor | None) -> Tensor | None:
    """``packed``, of what may be left out."""
    return None if tensor is None else packed(tensor)


def check_rows(x: Tensor) -> None:
    """ValueError if x is not [..., W] of a floating type, W at least 1."""
    if x.dim() == 0 or x.shape[-1] == 0 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; it must be [..., W] of a floating type, W at least 1")
