"""Attention within sequences by the functions of other libraries: torch's flash kernel, flash-attn, torch's SDPA."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.models.layout import PackedLayout
from kernels.attention import operation_of
from kernels.dispatch import speed

MATMUL_MAX_LENGTH = 512  # beyond it the scores' memory is worth more than the time
MAX_HEAD_SIZE = 256
VARLEN, FLASH_ATTN, BY_RUNS = "varlen_attn", "flash_attn", "scaled_dot_product_attention"

# N tokens in the packed batch, R of them real, H heads, K head_size; a run is n sequences of length L


def attend(qkv: Tensor, layout: PackedLayout, causal: bool, dropout: float) -> Tensor:
    """Attend by the fastest library that takes this input: [N, 3, H, K] to [N, H, K], zero for filler."""
    real = sum(layout.lengths)
    if real == 0:
        return qkv[:, 0] * 0.0
    context = _choose(qkv, layout, dropout)(qkv[:real], layout, causal, dropout)
    return F.pad(context, (0, 0, 0, 0, 0, len(qkv) - real)) if real < len(qkv) else context


def _choose(qkv: Tensor, layout: PackedLayout, dropout: float) -> Callable[[Tensor, PackedLayout, bool, float], Tensor]:
    if layout.prefix_lengths is not None:  # flash kernels have no such mask
        return prefix_attention
    return FUNCTIONS[name_of(qkv.device, qkv.dtype, qkv.shape[3], layout.max_length, dropout)]


def name_of(device: torch.device, dtype: torch.dtype, head_size: int, longest: int, dropout: float) -> str:
    """The library's function that attends on a device: varlen_attn, flash_attn or scaled_dot_product_attention.

    Args:
        device: of the tensors.
        dtype: of the tensors.
        head_size: K.
        longest: bound of the lengths.
        dropout: probability of dropping an attention weight.
    """
    if not flash_fits(device, dtype, head_size):
        return BY_RUNS
    torch_fits = dropout == 0.0 and load_varlen() is not None
    ahead = speed(operation_of(longest, dropout).name, FLASH_ATTN, device) > 1.0
    if load_flash_attn() is not None and (ahead or not torch_fits):
        return FLASH_ATTN
    return VARLEN if torch_fits else BY_RUNS


def run_attention(
    qkv: Tensor, layout: PackedLayout, causal: bool, dropout: float = 0.0, attend: Callable[..., Tensor] | None = None
) -> Tensor:
    """Attend in one call of torch for each run of equally long sequences.

    Args:
        qkv: [R, 3, H, K], any device and floating dtype.
        layout: sequence boundaries, R tokens in all.
        causal: whether a token sees only itself and those before it.
        dropout: probability of dropping an attention weight, by torch's generator.
        attend: to one run, called as scaled_dot_product_attention; None: the faster of that and matmul_attention.

    Returns:
        [R, H, K], same dtype.
    """
    if attend is None:
        attend = matmul_attention if matmul_fits(qkv, layout) else F.scaled_dot_product_attention
    contexts = []
    # One split and one cat: the gradient of R slices would fill R tensors of the whole batch.
    for (num, length), run in zip(layout.runs, qkv.split([num * length for num, length in layout.runs]), strict=True):
        query, key, value = run.unflatten(0, (num, length)).permute(2, 0, 3, 1, 4)  # [3, n, H, L, K]
        context = attend(query, key, value, dropout_p=dropout, is_causal=causal)
        contexts.append(context.transpose(1, 2).flatten(0, 1))  # [n, H, L, K] -> [n * L, H, K]
    return torch.cat(contexts) if len(contexts) > 1 else contexts[0]


def prefix_attention(qkv: Tensor, layout: PackedLayout, causal: bool, dropout: float = 0.0) -> Tensor:
    """Attend by torch with prefix masks, in one call for each run: [R, 3, H, K] to [R, H, K].

    Args:
        qkv: of the real tokens, any device and floating dtype.
        layout: with prefix_lengths.
        causal: not looked at, the mask is that of the prefixes.
        dropout: probability of dropping an attention weight, by torch's generator.
    """
    assert layout.prefix_lengths is not None
    numbers = [number for number, length in enumerate(layout.lengths) if length]
    prefixes = layout.prefix_lengths[: len(layout.lengths)]
    if len(numbers) < len(layout.lengths):
        prefixes = torch.cat([prefixes[number : number + 1] for number in numbers])
    sizes = [num * length for num, length in layout.runs]
    contexts, first = [], 0
    for (num, length), run in zip(layout.runs, qkv.split(sizes), strict=True):
        query, key, value = run.unflatten(0, (num, length)).permute(2, 0, 3, 1, 4)  # [3, n, H, L, K]
        places = torch.arange(length, device=qkv.device)
        before = places[None, :] <= places[:, None]  # [L, L]: keys that a causal model sees
        mask = before | (places < prefixes[first : first + num, None, None])  # [n, L, L]
        context = F.scaled_dot_product_attention(query, key, value, mask[:, None], dropout_p=dropout)
        contexts.append(context.transpose(1, 2).flatten(0, 1))  # [n, H, L, K] -> [n * L, H, K]
        first += num
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


def varlen_attention(qkv: Tensor, layout: PackedLayout, causal: bool, dropout: float = 0.0) -> Tensor:
    """Attend by torch's flash kernel for packed sequences, which has no dropout: [R, 3, H, K] to [R, H, K]."""
    varlen_attn = load_varlen()
    assert varlen_attn is not None and dropout == 0.0
    query, key, value = qkv.unbind(1)  # each [R, H, K]
    boundaries, longest = layout.cu_seqlens, layout.max_length
    window = (-1, 0) if causal else (-1, -1)  # how many tokens each sees to its left and right; -1: all
    context: Tensor = varlen_attn(query, key, value, boundaries, boundaries, longest, longest, window_size=window)
    return context


def flash_attention(qkv: Tensor, layout: PackedLayout, causal: bool, dropout: float = 0.0) -> Tensor:
    """Attend by flash-attn (github.com/Dao-AILab/flash-attention): [R, 3, H, K] to [R, H, K]."""
    attend = load_flash_attn()
    assert attend is not None
    context: Tensor = attend(
        qkv, layout.cu_seqlens, layout.max_length, dropout_p=dropout, causal=causal, deterministic=True
    )
    return context


def flash_fits(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether flash kernels take heads of this size and type: 16-bit numbers, on an NVIDIA GPU from Ampere on."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_size % 8 == 0
        and head_size <= MAX_HEAD_SIZE
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@cache
def load_varlen() -> Callable[..., Any] | None:
    """The varlen_attn of this torch, None where it has none or one that knows causality under another name."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


@cache
def load_flash_attn() -> Callable[..., Any] | None:
    """flash-attn's function for packed queries, keys and values; None where it is not installed or does not load."""
    try:
        from flash_attn import flash_attn_varlen_qkvpacked_func
    except (ImportError, OSError):
        return None
    function: Callable[..., Any] = flash_attn_varlen_qkvpacked_func
    return function


FUNCTIONS = {VARLEN: varlen_attention, FLASH_ATTN: flash_attention, BY_RUNS: run_attention}
