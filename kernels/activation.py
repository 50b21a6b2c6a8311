"""y = act(x + bias) in one pass: GELU by erf or tanh, and the gated GEGLU and SwiGLU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kernels.dispatch import Operation, choose, load
from kernels.limits import cpu_limit, pack_limit, processors, row_blocks
from kernels.reference import activation as reference
from kernels.tensors import check_rows, packed, packed_or_none

# R rows, W columns of the result, C columns of the input: W, or 2 W where gated

KINDS = ("gelu", "gelu_tanh", "silu")  # numbered in csrc/common/activation_math.h
KIND_OF_APPROXIMATE = {"none": "gelu", "tanh": "gelu_tanh"}
CUDA_TILE, BLOCKS_PER_PROCESSOR = 256, 8  # a block has a tile of columns of some rows
_LIMITS = {"cpu": cpu_limit, "cuda": pack_limit, "emulator": pack_limit}
BIAS_GELU, GATED = Operation("bias_gelu", _LIMITS), Operation("gated", _LIMITS)


def bias_gelu(x: Tensor, bias: Tensor | None = None, approximate: str = "none") -> Tensor:
    """GELU of x + bias (Hendrycks and Gimpel 2016, arXiv:1606.08415), computed in fp32.

    x and bias are kept for the backward pass, which computes the rest again; the sums of the bias's gradient are fp32.

    Args:
        x: [..., W] fp32, bf16 or fp16.
        bias: [W].
        approximate: "none" is h Phi(h) by erf (BERT), "tanh" its approximation (GPT-2), as ``F.gelu``.

    Returns:
        Like x. -inf gives 0, its limit, where torch gives NaN.

    Raises:
        ValueError: if approximate is neither, or the bias does not fit.
    """
    if approximate not in KIND_OF_APPROXIMATE:
        raise ValueError(f"approximate is {approximate!r}; it must be none or tanh")
    _check_bias(x, bias)
    rows = x.reshape(-1, x.shape[-1])
    return _activation(rows, bias, KIND_OF_APPROXIMATE[approximate], False).view(x.shape)


def gated(x: Tensor, bias: Tensor | None = None, kind: str = "gelu") -> Tensor:
    """act(first half of x + bias) * (second half of x + bias): GEGLU, SwiGLU (Shazeer 2020, arXiv:2002.05202).

    The first half is the gate, the one that is activated: the order of vLLM's SiluAndMul, Megatron-Core's SwiGLU and
    Llama's gate_proj before up_proj. Diffusers' GEGLU has the gate in the second half.

    Args:
        x: [..., 2 W] fp32, bf16 or fp16.
        bias: [2 W].
        kind: activation of the gate: gelu (by erf), gelu_tanh or silu.

    Returns:
        [..., W] in the type of x.

    Raises:
        ValueError: if there is no such kind, the last dimension is odd, or the bias does not fit.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    _check_bias(x, bias)
    if x.shape[-1] % 2:
        raise ValueError(f"the last dimension of x is {x.shape[-1]}; it must be even, two halves")
    rows = x.reshape(-1, x.shape[-1])
    return _activation(rows, bias, kind, True).view(*x.shape[:-1], x.shape[-1] // 2)


def _check_bias(x: Tensor, bias: Tensor | None) -> None:
    check_rows(x)
    if bias is not None and bias.shape != x.shape[-1:]:
        raise ValueError(f"bias is {list(bias.shape)}; it must be [{x.shape[-1]}], the last dimension of x")


@torch.library.custom_op("kernels::activation", mutates_args=())
def _activation(x: Tensor, bias: Tensor | None, kind: str, gated: bool) -> Tensor:
    """act(x + bias): [R, C] to [R, W]."""
    backend = _choose(x, bias, gated)
    if backend == "reference":
        return reference.forward(x, bias, kind, gated).contiguous()
    y = _empty_result(x, bias, kind, gated)
    load(backend).activation_forward(packed(x), packed_or_none(bias), y, KINDS.index(kind), gated, _blocks(backend, y))
    return y


@_activation.register_fake
def _empty_result(x: Tensor, bias: Tensor | None, kind: str, gated: bool) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // (1 + gated))


@torch.library.custom_op("kernels::activation_gradients", mutates_args=())
def _activation_gradients(dy: Tensor, x: Tensor, bias: Tensor | None, kind: str, gated: bool) -> tuple[Tensor, Tensor]:
    """dx [R, C], and dbias [C] (without elements where there is no bias)."""
    backend = _choose(x, bias, gated)
    if backend == "reference":
        dx, sums = reference.backward(dy, x, bias, kind, gated)
        return dx.contiguous(), sums if bias is not None else sums.new_empty(0)
    dx, dbias = _empty_gradients(dy, x, bias, kind, gated)
    partial = dbias.new_empty(_blocks(backend, dy), dbias.numel())
    load(backend).activation_backward(
        packed(dy), packed(x), packed_or_none(bias), dx, dbias, partial, KINDS.index(kind), gated
    )
    return dx, dbias


@_activation_gradients.register_fake
def _empty_gradients(dy: Tensor, x: Tensor, bias: Tensor | None, kind: str, gated: bool) -> tuple[Tensor, Tensor]:
    compute = torch.promote_types(x.dtype, torch.float32)
    dbias = x.new_empty(0 if bias is None else x.shape[1], dtype=compute)
    return torch.empty_like(x, memory_format=torch.contiguous_format), dbias


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.kind, ctx.gated = inputs
    ctx.save_for_backward(x, bias)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    dx, dbias = _activation_gradients(dy, x, bias, ctx.kind, ctx.gated)
    return dx, None if bias is None else dbias.to(bias.dtype), None, None


_activation.register_autograd(_backward, setup_context=_keep_for_backward)


def _choose(x: Tensor, bias: Tensor | None, gated: bool) -> str:
    types = (x.dtype,) if bias is None else (x.dtype, bias.dtype)
    return choose(GATED if gated else BIAS_GELU, x.device, width=x.shape[-1] // (1 + gated), types=types)


def _blocks(backend: str, y: Tensor) -> int:
    """Blocks that the rows are dealt to: fixed for a device and a size, so that sums have the same bits every time."""
    rows, width = y.shape
    if backend != "cuda":
        return row_blocks(backend, y.device, rows)
    tiles = max(1, -(-width // CUDA_TILE))
    return min(max(1, rows), max(1, BLOCKS_PER_PROCESSOR * processors(y.device) // tiles))


class LinearGelu(nn.Linear):
    """GELU of a linear map, with the parameter names of ``nn.Linear``; its bias is added where GELU is computed."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, approximate: str = "none", **options: Any
    ) -> None:
        super().__init__(in_features, out_features, bias, **options)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return bias_gelu(F.linear(x, self.weight), self.bias, self.approximate)


class GatedLinear(nn.Linear):
    """A gated linear map, with the parameter names of ``nn.Linear``.

    The first half of the weight's rows and of the bias is the gate's.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, kind: str = "gelu", **options: Any
    ) -> None:
        super().__init__(in_features, 2 * out_features, bias, **options)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return gated(F.linear(x, self.weight), self.bias, self.kind)
