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
