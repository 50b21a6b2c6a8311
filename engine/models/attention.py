"""Multi-head self-attention within each sequence of a packed batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.models.layers import Linear
from engine.models.layout import PackedLayout

MATMUL_MAX_LENGTH = 512  # beyond it the scores' memory is worth more than the time

# N tokens in the packed batch, S sequences, D hidden_size, H heads, K head_size; a run is n sequences of length L


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) between two projections."""

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.num_heads = arch.num_heads
        self.causal = arch.causal
        self.dropout = arch.attention_dropout
        self.qkv = Linear(arch.hidden_size, 3 * arch.hidden_size)  # rows: queries, keys, values
        self.output = Linear(arch.hidden_size, arch.hidden_size)
        self.attend = attend  # what torch.compile is kept away from

    def forward(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Attend within each sequence: [N, D] to [N, D]; tokens of different sequences never see each other."""
        qkv = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1))  # [N, 3, H, K]
        context = self.attend(qkv, layout, self.causal, self.dropout if self.training else 0.0)
        return self.output(context.flatten(1))  # [N, H, K] -> [N, D]


def attend(qkv: Tensor, layout: PackedLayout, causal: bool, dropout: float) -> Tensor:
    """Attend by the fastest way that takes this input: [N, 3, H, K] to [N, H, K]."""
    if varlen_fits(qkv, dropout):
        return varlen_attention(qkv, layout, causal)
    return run_attention(qkv, layout, causal, dropout)


def run_attention(qkv: Tensor, layout: PackedLayout, causal: bool, dropout: float = 0.0) -> Tensor:
    """Attend in one call for each run of equally long sequences.

    Args:
        qkv: [N, 3, H, K], any device and floating dtype.
        layout: sequence boundaries, N tokens in all.
        causal: whether a token sees only itself and those before it.
        dropout: probability of dropping an attention weight.

    Returns:
        [N, H, K], same dtype.
    """
    attend = matmul_attention if matmul_fits(qkv, layout) else F.scaled_dot_product_attention
    contexts = []
    # One split and one cat: the gradient of N slices would fill N tensors of the whole batch.
    for (num, length), run in zip(layout.runs, qkv.split([num * length for num, length in layout.runs]), strict=True):
        query, key, value = run.unflatten(0, (num, length)).permute(2, 0, 3, 1, 4)  # [3, n, H, L, K]
        context = attend(query, key, value, dropout_p=dropout, is_causal=causal)
        contexts.append(context.transpose(1, 2).flatten(0, 1))  # [n, H, L, K] -> [n * L, H, K]
    return torch.cat(contexts) if len(contexts) > 1 else contexts[0]


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool) -> Tensor:
    """Do what scaled_dot_product_attention does by two matrix products, [n, H, L, K] each to [n, H, L, K]."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # [n, H, L, L]
    if is_causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu(1)
    return F.dropout(scores.softmax(-1), dropout_p, dropout_p > 0) @ value


def matmul_fits(qkv: Tensor, layout: PackedLayout) -> bool:
    """Whether matrix products are the faster way: in bf16 on a CPU, 2 to 3 times, at the price of [n, H, L, L]."""
    return qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and layout.max_length <= MATMUL_MAX_LENGTH


def varlen_attention(qkv: Tensor, layout: PackedLayout, causal: bool) -> Tensor:
    """Attend by the flash kernel that takes boundaries: [N, 3, H, K] fp16 or bf16 on CUDA to [N, H, K]."""
    varlen_attn = load_varlen()
    assert varlen_attn is not None
    query, key, value = qkv.unbind(1)  # each [N, H, K]
    boundaries, longest = layout.cu_seqlens, layout.max_length
    window = (-1, 0) if causal else (-1, -1)  # how many tokens each sees to its left and right; -1: all
    context: Tensor = varlen_attn(query, key, value, boundaries, boundaries, longest, longest, window_size=window)
    return context


def varlen_fits(qkv: Tensor, dropout: float) -> bool:
    """Whether the flash kernel takes this input: it has no dropout, no fp32, and wants an Ampere GPU or newer."""
    head_size = qkv.shape[-1]
    return (
        qkv.device.type == "cuda"
        and qkv.dtype in (torch.float16, torch.bfloat16)
        and dropout == 0.0
        and head_size % 8 == 0
        and head_size <= 256
        and torch.version.hip is None
        and torch.cuda.get_device_capability(qkv.device) >= (8, 0)
        and load_varlen() is not None
    )


@cache
def load_varlen() -> Callable[..., Any] | None:
    """The varlen_attn of this torch, None where it has none or one that knows causality under another name."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None
