"""Attention within each sequence of a packed batch, without padding and without keeping the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Operation, choose, load
from kernels.limits import FLOATS, row_blocks
from kernels.philox import checked_threshold
from kernels.reference import attention as reference
from kernels.tensors import packed, packed_or_none

# N tokens, S sequences, H heads of queries, G of keys and values, K numbers in a head, L bound of the lengths

MASKS = ("full", "causal", "prefix")  # numbered in csrc/common/attention.h
SIZES = (32, 64, 96, 128)  # of a head, that the kernels are compiled for
SHORT = 256  # up to it a GPU's block has a whole sequence
KEY_TILE = 64  # keys that such a block has at once in the backward pass
CPU_BIAS_BLOCKS = 16  # of sequences, whose gradients of the bias are added up afterwards
HALVES = (torch.bfloat16, torch.float16)


def _cpu_limit(size: int, dtype: torch.dtype) -> str | None:
    """Why a CPU's kernels do not take heads of this size and type; None where they do."""
    if size not in SIZES:
        return f"head size {size} is none of {', '.join(map(str, SIZES))}"
    return None if dtype in FLOATS else f"{dtype} is for the reference"


def _cuda_limit(size: int, dtype: torch.dtype) -> str | None:
    """The same of tensor cores."""
    return _cpu_limit(size, dtype) or (None if dtype in HALVES else f"{dtype} is no 16-bit type")


_LIMITS = {"cpu": _cpu_limit, "cuda": _cuda_limit, "emulator": _cuda_limit}
ATTENTION = Operation("attention", _LIMITS)
SHORT_ATTENTION = Operation("attention_short", _LIMITS)  # sequences of 256 tokens at most
DROPPING_ATTENTION = Operation("attention_dropout", _LIMITS)  # any length


def operation_of(longest: int, dropout: float) -> Operation:
    """What a call is measured and chosen as: dropout decides first, then the bound of the lengths."""
    if dropout:
        return DROPPING_ATTENTION
    return SHORT_ATTENTION if longest <= SHORT else ATTENTION


def packed_attention(
    qkv: Tensor, boundaries: Tensor, num_heads: int, max_length: int, *, mask: str = "full",
    prefix_lengths: Tensor | None = None, bias: Tensor | None = None, scale: float | None = None, dropout: float = 0.0,
    seed: Tensor | None = None, site: int = 0,
) -> Tensor:  # fmt: skip
    """softmax(scale q k + bias) v within each sequence (Vaswani et al. 2017, arXiv:1706.03762).

    The weights are never in memory as a whole (Dao 2023, arXiv:2307.08691); the backward pass computes them again from
    the logarithms of their sums, and gives the same bits every time. Products have fp32 sums. Autocast changes no types
    here, and there are no second derivatives.

    Args:
        qkv: [N, H + 2 G, K] fp32, bf16 or fp16: heads of queries, then of keys, then of values. G divides H: queries
            h H / G to (h + 1) H / G - 1 share keys h (Ainslie et al. 2023, arXiv:2305.13245).
        boundaries: [S + 1] int32 on the device of qkv: 0, then the running sum of the lengths. What lies behind the
            last one is filler: zero in the result, without gradient. Equal ones hold an empty sequence between them.
        num_heads: H.
        max_length: L, at least the longest sequence's length; a GPU does not wait to compare them, and the results of a
            longer one are NaN there.
        mask: full; causal: a token sees itself and those before it; prefix: and the first ones of its sequence
            (Dong et al. 2019, arXiv:1905.03197).
        prefix_lengths: [S] int32, how many first ones, for the mask prefix.
        bias: [H, 2 L - 1] fp32: column j - i + L - 1 is added to the scores of a query at place i and a key at place j
            (Raffel et al. 2020, arXiv:1910.10683). It is no mask: where it is -1e6 and less on all keys of a query, the
            gradient loses its digits.
        scale: of the products; None is 1 / sqrt(K).
        dropout: probability of dropping a weight, rounded to a multiple of 2^-16. The draws of key j for head h of the
            batch's token t are those of row t H + h, column j.
        seed: of the mask, [1] int64 on the device of qkv (``kernels.philox.seed_tensor``).
        site: number of this call in the model, so that no two calls share a mask.

    Returns:
        [N, H, K] in the type of qkv.

    Raises:
        ValueError: if shapes, types, devices, the mask, the probability or the seed do not fit; on a CPU, if boundaries
            do not begin at 0 and rise to at most N in steps of at most L.
    """
    _check(qkv, boundaries, num_heads, max_length, mask, prefix_lengths, bias)
    threshold = checked_threshold(dropout, seed, qkv.device)
    factor = 1.0 / math.sqrt(qkv.shape[2]) if scale is None else scale
    out, _ = _attention(
        qkv, boundaries, prefix_lengths, bias, num_heads, max_length, mask, factor, threshold, seed, site
    )
    return out


def _check(
    qkv: Tensor, boundaries: Tensor, num_heads: int, max_length: int, mask: str, prefix: Tensor | None,
    bias: Tensor | None,
) -> None:  # fmt: skip
    if qkv.dim() != 3 or not qkv.is_floating_point() or qkv.shape[2] == 0:
        raise ValueError(f"qkv is {qkv.dtype} {list(qkv.shape)}; it must be [N, H + 2 G, K] of a floating type")
    others = qkv.shape[1] - num_heads
    if num_heads < 1 or others < 2 or others % 2 or num_heads % (others // 2):
        raise ValueError(
            f"qkv has {qkv.shape[1]} heads, {num_heads} of them of queries; as many of keys as of values must be left, "
            "and their number must divide that of the queries"
        )
    if boundaries.dim() != 1 or len(boundaries) < 1 or not _is_index(boundaries, qkv):
        raise ValueError(f"boundaries are {_shown(boundaries)}; they must be [S + 1] int32 on {qkv.device}")
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; it must be 1 at least")
    if mask not in MASKS:
        raise ValueError(f"mask is {mask!r}; it must be one of {', '.join(MASKS)}")
    if (prefix is not None) != (mask == "prefix"):
        raise ValueError(f"mask is {mask} {'without' if prefix is None else 'with'} prefix_lengths")
    if prefix is not None and (prefix.shape != (len(boundaries) - 1,) or not _is_index(prefix, qkv)):
        wanted = f"[{len(boundaries) - 1}] int32 on {qkv.device}"
        raise ValueError(f"prefix_lengths are {_shown(prefix)}; they must be {wanted}, one of each sequence")
    fits = bias is None or (bias.shape == (num_heads, 2 * max_length - 1) and bias.is_floating_point())
    if bias is not None and not (fits and bias.device == qkv.device):
        wanted = f"[{num_heads}, {2 * max_length - 1}] on {qkv.device}"
        raise ValueError(f"bias is {_shown(bias)}; it must be {wanted}, H and 2 L - 1")


def _is_index(tensor: Tensor, like: Tensor) -> bool:
    return tensor.dtype == torch.int32 and tensor.device == like.device


def _shown(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def _check_boundaries(boundaries: Tensor, num_tokens: int, max_length: int) -> None:
    """ValueError if they do not begin at 0 and rise to at most N in steps of at most L."""
    lengths = boundaries.diff()
    if boundaries[0] != 0 or boundaries[-1] > num_tokens or bool((lengths < 0).any()):
        raise ValueError(f"boundaries are {boundaries.tolist()}; they must rise from 0 to {num_tokens} tokens at most")
    if len(lengths) and lengths.max() > max_length:
        raise ValueError(f"a sequence has {int(lengths.max())} tokens, and max_length is {max_length}")


@torch.library.custom_op("kernels::attention", mutates_args=())
def _attention(
    qkv: Tensor,
    boundaries: Tensor,
    prefix: Tensor | None,
    bias: Tensor | None,
    num_heads: int,
    longest: int,
    mask: str,
    scale: float,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor]:
    """out [N, H, K], and the logarithms of the sums of exponentials [H, N]."""
    backend = _choose(qkv, longest, threshold)
    if qkv.device.type == "cpu" and backend != "emulator":  # which is to do what a GPU does
        _check_boundaries(boundaries, qkv.shape[0], longest)
    if backend == "reference":
        arguments = reference.Arguments(
            boundaries, prefix, bias, num_heads, longest, mask, scale, threshold, seed, site
        )
        return reference.forward(qkv, arguments)
    out, lse = _empty_results(qkv, boundaries, prefix, bias, num_heads, longest, mask, scale, threshold, seed, site)
    load(backend).attention_forward(
        packed(qkv), packed(boundaries), packed_or_none(prefix), _as_floats(bias), out, lse, longest,
        MASKS.index(mask), scale, threshold, seed, site,
    )  # fmt: skip
    return out, lse


@_attention.register_fake
def _empty_results(
    qkv: Tensor,
    boundaries: Tensor,
    prefix: Tensor | None,
    bias: Tensor | None,
    num_heads: int,
    longest: int,
    mask: str,
    scale: float,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor]:
    compute = torch.promote_types(qkv.dtype, torch.float32)
    out = qkv.new_empty(qkv.shape[0], num_heads, qkv.shape[2])
    return out, qkv.new_empty(num_heads, qkv.shape[0], dtype=compute)


@torch.library.custom_op("kernels::attention_gradients", mutates_args=())
def _attention_gradients(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    boundaries: Tensor,
    prefix: Tensor | None,
    bias: Tensor | None,
    longest: int,
    mask: str,
    scale: float,
    threshold: int,
    seed: Tensor | None,
    site: int,
    wants_bias: bool,
) -> tuple[Tensor, Tensor]:
    """dqkv like qkv, and dbias [H, 2 L - 1] (without elements where it is not wanted)."""
    backend = _choose(qkv, longest, threshold)
    if backend == "reference":
        arguments = reference.Arguments(
            boundaries, prefix, bias, lse.shape[0], longest, mask, scale, threshold, seed, site
        )
        dqkv, dbias = reference.backward(dout, qkv, out, lse, arguments)
        return dqkv, dbias if wants_bias else dbias.new_empty(0)
    dqkv, dbias = _empty_gradients(
        dout, qkv, out, lse, boundaries, prefix, bias, longest, mask, scale, threshold, seed, site, wants_bias
    )
    load(backend).attention_backward(
        packed(dout), packed(qkv), packed(out), packed(lse), packed(boundaries), packed_or_none(prefix),
        _as_floats(bias), dqkv, dbias, *_workspaces(backend, qkv, lse, dbias, bias, longest), longest,
        MASKS.index(mask), scale, threshold, seed, site,
    )  # fmt: skip
    return dqkv, dbias


@_attention_gradients.register_fake
def _empty_gradients(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    boundaries: Tensor,
    prefix: Tensor | None,
    bias: Tensor | None,
    longest: int,
    mask: str,
    scale: float,
    threshold: int,
    seed: Tensor | None,
    site: int,
    wants_bias: bool,
) -> tuple[Tensor, Tensor]:
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    columns = 2 * longest - 1
    return dqkv, lse.new_empty((lse.shape[0], columns) if wants_bias else 0)


def _workspaces(
    backend: str, qkv: Tensor, lse: Tensor, dbias: Tensor, bias: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """delta, dq and partial of csrc/common/attention.h, without elements where there is no use for them."""
    blocks = CPU_BIAS_BLOCKS if backend == "cpu" else row_blocks(backend, qkv.device, qkv.shape[0])
    partial = lse.new_empty(blocks if dbias.numel() else 0, *dbias.shape)
    if backend == "cpu":
        return lse.new_empty(0), lse.new_empty(0), partial
    wants_dq = KEY_TILE < longest <= SHORT and bias is None
    return torch.empty_like(lse), lse.new_empty((*lse.shape, qkv.shape[2]) if wants_dq else 0), partial


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, boundaries, prefix, bias, _, ctx.longest, ctx.mask, ctx.scale, ctx.threshold, seed, ctx.site = inputs
    out, lse = output
    ctx.save_for_backward(qkv, out, lse, boundaries, prefix, bias, seed)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    qkv, out, lse, boundaries, prefix, bias, seed = ctx.saved_tensors
    if dout is None:
        return (None,) * 11
    wants_bias = ctx.needs_input_grad[3]
    dqkv, dbias = _attention_gradients(
        dout, qkv, out, lse, boundaries, prefix, bias, ctx.longest, ctx.mask, ctx.scale, ctx.threshold, seed, ctx.site,
        wants_bias,
    )  # fmt: skip
    return dqkv, None, None, dbias.to(bias.dtype) if wants_bias else None, *[None] * 7


_attention.register_autograd(_backward, setup_context=_keep_for_backward)


def _choose(qkv: Tensor, longest: int, threshold: int) -> str:
    return choose(operation_of(longest, threshold), qkv.device, size=qkv.shape[2], dtype=qkv.dtype)


def _as_floats(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else packed(bias.float())
