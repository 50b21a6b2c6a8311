"""torch.compile for the layers of a transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.models.attention import Attention, uses_operator
from engine.models.layout import PackedLayout
from engine.models.model import Model
from engine.models.transformer import Layer

OPTIONS: dict[str, Any] = {"fallback_random": True}  # dropout draws what it draws without compilation


def compile_layers(model: Model) -> None:
    """Have torch.compile fuse what each layer does round its attention; parameters keep their names.

    All layers share the same compiled code. For batches of a fixed shape it is made for the first shape, and for any
    once there is a second; for the others, such as those of evaluations, it is made for any number of tokens. A run may
    be begun with it and go on without. At ZeRO stage 3 the calls that gather the weights cut the code into small
    pieces, and little is gained.
    """
    model.encoder.compiled = True
    for module in model.encoder.modules():
        if isinstance(module, Attention):
            module.attend = _attend_outside(module.attend)
        elif isinstance(module, Layer):
            vars(module)["forward"] = _by_shape(module.forward)


def _by_shape(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A layer's forward, compiled for batches of a fixed shape and once more for all others."""
    fixed = torch.compile(forward, options=OPTIONS)
    varying = torch.compile(forward, dynamic=True, options=OPTIONS)

    def call(hidden: Tensor, layout: PackedLayout, seed: Tensor | None = None, site: int = 1) -> Tensor:
        return (fixed if layout.is_fixed else varying)(hidden, layout, seed, site)

    return call


def _attend_outside(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention that stays as it is, for the lengths of sequences are new in every batch; but for our own operator.

    That reads none of them on the host where shapes are fixed, and is a part of the compiled code then.
    """
    outside = torch.compiler.disable(attend)

    def call(
        qkv: Tensor, layout: PackedLayout, causal: bool, dropout: float = 0.0, seed: Tensor | None = None, site: int = 0
    ) -> Tensor:
        if layout.is_fixed and uses_operator(qkv.device, qkv.dtype, qkv.shape[3], layout.max_length, dropout):
            return attend(qkv, layout, causal, dropout, seed, site)
        return outside(qkv, layout, causal, dropout, seed, site)

    return call
