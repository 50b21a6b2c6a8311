"""y = norm(residual + dropout(x + bias)): LayerNorm and RMSNorm with what stands before them, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kernels import apex
from kernels.dispatch import Operation, choose, load
from kernels.limits import CUDA_PACK, FORWARD_BLOCKS_PER_PROCESSOR, cpu_limit, pack_limit, row_blocks, row_limit
from kernels.philox import checked_threshold
from kernels.reference import norm as reference
from kernels.tensors import check_rows, packed, packed_or_none

# R rows, W columns

NORM = Operation("norm", {"cpu": cpu_limit, "cuda": row_limit, "emulator": row_limit, "apex": apex.norm_limit})
LAYER_NORM = Operation(
    "layer_norm", NORM.limits
)  # without dropout, fp32: measured by itself, a CPU's torch is good at it
DROPOUT_ADD = Operation("dropout_add", {"cpu": cpu_limit, "cuda": pack_limit, "emulator": pack_limit})


def norm(
    x: Tensor,
    weight: Tensor,
    shift: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    eps: float = 1e-5,
    centre: bool = True,
    output: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalise residual + dropout(x + bias) over the last dimension.

    Statistics and parameter gradients are fp32, whatever the types. The dropout mask is drawn again in the backward
    pass and not stored. Autocast changes no types here: x and residual must be of one already, and y is of that type
    where ``output`` names no other.

    Args:
        x: [..., W] fp32, bf16 or fp16.
        weight: [W], factor of the normalised values.
        shift: [W], added to them.
        bias: [W], added to x.
        residual: [..., W], like x.
        dropout: probability, rounded to a multiple of 2^-16.
        seed: of the mask, [1] int64 on the device of x (``kernels.philox.seed_tensor``).
        site: number of this call in the model, so that no two calls share a mask.
        eps: added to the variance.
        centre: LayerNorm; False is RMSNorm, which keeps the rows' mean and has no shift.
        output: type of y; that of x where not given.

    Returns:
        y [..., W], and the sum that was normalised [..., W] in the type of x.

    Raises:
        ValueError: if shapes, types, the probability or the seed do not fit.
    """
    _check(x, weight, shift, bias, residual, centre)
    if output is not None and not output.is_floating_point:
        raise ValueError(f"output is {output}; it must be a floating type")
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    threshold = checked_threshold(dropout, seed, x.device)
    y, z, *_ = _norm(
        rows, bias, None if residual is None else residual.reshape(-1, width), weight, shift,
        output or x.dtype, centre, eps, threshold, seed, site,
    )  # fmt: skip
    adds = bias is not None or residual is not None or threshold > 0
    return y.view(x.shape), z.view(x.shape) if adds else x


def _check(
    x: Tensor, weight: Tensor, shift: Tensor | None, bias: Tensor | None, residual: Tensor | None, centre: bool
) -> None:
    check_rows(x)
    for name, vector in (("weight", weight), ("shift", shift), ("bias", bias)):
        if vector is not None and vector.shape != x.shape[-1:]:
            raise ValueError(f"{name} is {list(vector.shape)}; it must be [{x.shape[-1]}], the last dimension of x")
        if vector is not None and vector.dtype != weight.dtype:
            raise ValueError(f"{name} is {vector.dtype} and weight {weight.dtype}; parameters must be of one type")
    _check_residual(x, residual)
    if shift is not None and not centre:
        raise ValueError("RMSNorm (centre False) has no shift")


def _check_residual(x: Tensor, residual: Tensor | None) -> None:
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual is {residual.dtype} {list(residual.shape)}; it must be like x, {x.dtype} {list(x.shape)}"
        )


@torch.library.custom_op("kernels::add_norm", mutates_args=())
def _norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    shift: Tensor | None,
    output: torch.dtype,
    centre: bool,
    eps: float,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, z (without elements where it is x), mean (without elements where rows keep it) and rstd of x [R, W]."""
    backend = choose(NORM, x.device, width=x.shape[-1], types=(x.dtype, output, weight.dtype))
    adds = bias is not None or residual is not None or threshold > 0
    if backend == "reference":
        y, z, mean, rstd = reference.norm_forward(
            x, bias, residual, weight, shift,
            output=output, centre=centre, eps=eps, threshold=threshold, seed=seed, site=site,
        )  # fmt: skip
        return y.contiguous(), z.contiguous() if adds else x.new_empty(0), mean, rstd
    if backend == "apex":
        z = reference.add(x, bias, residual, threshold, seed, site).contiguous()
        y, mean, rstd = apex.norm_forward(z, weight.contiguous(), packed_or_none(shift), centre, eps)
        return y, z if adds else x.new_empty(0), mean, rstd
    y, z, mean, rstd = _empty_results(x, bias, residual, weight, shift, output, centre, eps, threshold, seed, site)
    load(backend).norm_forward(
        packed(x), packed_or_none(bias), packed_or_none(residual), packed(weight), packed_or_none(shift), z, y, mean,
        rstd, eps, threshold, seed, site, row_blocks(backend, x.device, x.shape[0], FORWARD_BLOCKS_PER_PROCESSOR),
    )  # fmt: skip
    return y, z, mean, rstd


@_norm.register_fake
def _empty_results(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    shift: Tensor | None,
    output: torch.dtype,
    centre: bool,
    eps: float,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    adds = bias is not None or residual is not None or threshold > 0
    compute = torch.promote_types(x.dtype, torch.float32)
    y = torch.empty_like(x, dtype=output, memory_format=torch.contiguous_format)
    z = torch.empty_like(x, memory_format=torch.contiguous_format) if adds else x.new_empty(0)
    mean = x.new_empty(x.shape[0] if centre else 0, dtype=compute)
    return y, z, mean, x.new_empty(x.shape[0], dtype=compute)


@torch.library.custom_op("kernels::add_norm_gradients", mutates_args=())
def _norm_gradients(
    dy: Tensor,
    dz: Tensor | None,
    z: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    threshold: int,
    seed: Tensor | None,
    site: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx and dresidual [R, W], dweight, dshift and dbias [W].

    ``wanted`` is for dresidual, dshift and dbias; those that are not have no elements.
    """
    backend = choose(NORM, z.device, width=z.shape[-1], types=(z.dtype, dy.dtype, weight.dtype))
    if backend == "reference":
        dx, dresidual, dweight, dshift, dbias = reference.norm_backward(
            dy, dz, z, weight, mean, rstd, threshold=threshold, seed=seed, site=site
        )
        return _results(dx, dresidual, dweight, dshift, dbias, wanted)
    if backend == "apex":
        total, dweight, dshift = apex.norm_backward(dy.contiguous(), z.contiguous(), weight.contiguous(), mean, rstd)
        dx, dresidual, dbias = reference.add_backward(total, dz, threshold, seed, site)
        return _results(dx, dresidual, dweight, dshift, dbias, wanted)
    dx, dresidual, dweight, dshift, dbias = _empty_gradients(
        dy, dz, z, weight, mean, rstd, threshold, seed, site, wanted
    )
    partial = z.new_empty(row_blocks(backend, z.device, z.shape[0]), 3, z.shape[-1], dtype=torch.float32)
    load(backend).norm_backward(
        packed(dy), packed_or_none(dz), packed(z), packed(weight), mean, rstd, dx, dresidual, dweight, dshift, dbias,
        partial, threshold, seed, site,
    )  # fmt: skip
    return dx, dresidual, dweight, dshift, dbias


@_norm_gradients.register_fake
def _empty_gradients(
    dy: Tensor,
    dz: Tensor | None,
    z: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    threshold: int,
    seed: Tensor | None,
    site: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    residual, shift, bias = wanted
    dx = torch.empty_like(z, memory_format=torch.contiguous_format)
    dresidual = torch.empty_like(dx) if residual else z.new_empty(0)
    dweight, dshift, dbias = (
        z.new_empty(z.shape[-1] if needed else 0, dtype=rstd.dtype) for needed in (True, shift, bias)
    )
    return dx, dresidual, dweight, dshift, dbias


def _results(
    dx: Tensor, dresidual: Tensor, dweight: Tensor, dshift: Tensor, dbias: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of torch's operators, as ``_empty_gradients`` promises them: contiguous, of their own memory."""
    residual, shift, bias = wanted
    dx, dresidual = dx.contiguous(), dresidual.contiguous() if residual else dx.new_empty(0)
    if residual and dresidual.data_ptr() == dx.data_ptr():
        dresidual = dresidual.clone()
    return dx, dresidual, dweight, dshift if shift else dshift.new_empty(0), dbias if bias else dbias.new_empty(0)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, bias, residual, weight, shift, _, _, _, threshold, seed, site = inputs
    _, z, mean, rstd = output
    adds = bias is not None or residual is not None or threshold > 0
    ctx.save_for_backward(z if adds else x, weight, mean, rstd, seed)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.threshold, ctx.site = threshold, site
    ctx.types = [None if p is None else p.dtype for p in (bias, weight, shift)]
    ctx.adds = adds


def _backward(context: Any, dy: Tensor | None, dz: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    z, weight, mean, rstd, seed = context.saved_tensors
    if dy is None:
        dy = torch.zeros_like(z)
    _, bias, residual, _, shift, *_ = context.needs_input_grad
    dx, dresidual, dweight, dshift, dbias = _norm_gradients(
        dy, dz if context.adds else None, z, weight, mean, rstd, context.threshold, seed, context.site,
        (residual, shift, bias),
    )  # fmt: skip
    bias_type, weight_type, shift_type = context.types
    return (
        dx,
        dbias.to(bias_type) if bias else None,
        dresidual if residual else None,
        dweight.to(weight_type),
        dshift.to(shift_type) if shift else None,
        *[None] * 6,
    )


_norm.register_autograd(_backward, setup_context=_keep_for_backward)


def dropout_add(
    x: Tensor, residual: Tensor | None = None, *, dropout: float, seed: Tensor | None = None, site: int = 0
) -> Tensor:
    """residual + dropout(x), whose mask is drawn again in the backward pass and not stored.

    Autocast changes no types here: x and residual must be of one already.

    Args:
        x: [..., W] fp32, bf16 or fp16.
        residual: like x.
        dropout: probability, rounded to a multiple of 2^-16.
        seed: of the mask, [1] int64 on the device of x (``kernels.philox.seed_tensor``).
        site: number of this call in the model, so that no two calls share a mask.

    Returns:
        Like x.

    Raises:
        ValueError: if shapes, types, the probability or the seed do not fit.
    """
    check_rows(x)
    _check_residual(x, residual)
    threshold = checked_threshold(dropout, seed, x.device)
    if not threshold:
        return x if residual is None else x + residual
    out: Tensor = _dropout_add(x, residual, threshold, seed, site)
    return out


@torch.library.custom_op("kernels::dropout_add", mutates_args=())
def _dropout_add(x: Tensor, residual: Tensor | None, threshold: int, seed: Tensor | None, site: int) -> Tensor:
    """residual + dropout(x): [..., W]."""
    width = x.shape[-1]
    backend = choose(DROPOUT_ADD, x.device, width=width, types=(x.dtype,))
    if backend == "reference":
        rows, others = x.reshape(-1, width), None if residual is None else residual.reshape(-1, width)
        return reference.dropout_add(rows, others, threshold, seed, site).contiguous().view(x.shape)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    blocks = row_blocks(backend, x.device, x.numel() // CUDA_PACK, FORWARD_BLOCKS_PER_PROCESSOR)
    load(backend).dropout_add(packed(x), packed_or_none(residual), out, threshold, seed, site, blocks)
    return out


@_dropout_add.register_fake
def _empty_sum(x: Tensor, residual: Tensor | None, threshold: int, seed: Tensor | None, site: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_mask_key(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, residual, ctx.threshold, seed, ctx.site = inputs
    ctx.save_for_backward(seed)
    ctx.has_residual = residual is not None


def _dropout_add_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (seed,) = ctx.saved_tensors
    dx = _dropout_add(gradient, None, ctx.threshold, seed, ctx.site)
    return dx, gradient if ctx.has_residual else None, None, None, None


_dropout_add.register_autograd(_dropout_add_backward, setup_context=_keep_mask_key)


class AddNorm(nn.Module):
    """LayerNorm of residual + dropout(x + bias), with the parameter names of ``nn.LayerNorm``.

    For models of one's own: the ``AddNorm`` of ``engine.models.layers`` takes seed and site from its model.
    """

    def __init__(self, width: int, eps: float = 1e-5, dropout: float = 0.0, site: int = 0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps, self.dropout, self.site = eps, dropout, site

    def forward(
        self, x: Tensor, residual: Tensor | None = None, bias: Tensor | None = None, seed: Tensor | None = None
    ) -> Tensor:
        """[..., W] to [..., W]; ``seed`` is that of the dropout mask, [1] int64."""
        dropout = self.dropout if self.training else 0.0
        return norm(
            x, self.weight, self.bias, bias=bias, residual=residual, dropout=dropout, seed=seed, site=self.site,
            eps=self.eps,
        )[0]  # fmt: skip


class AddRMSNorm(nn.Module):
    """RMSNorm of residual + dropout(x), with the parameter name of ``nn.RMSNorm``."""

    def __init__(self, width: int, eps: float = 1e-5, dropout: float = 0.0, site: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.dropout, self.site = eps, dropout, site

    def forward(self, x: Tensor, residual: Tensor | None = None, seed: Tensor | None = None) -> Tensor:
        """[..., W] to [..., W]; ``seed`` is that of the dropout mask, [1] int64."""
        dropout = self.dropout if self.training else 0.0
        return norm(
            x, self.weight, residual=residual, dropout=dropout, seed=seed, site=self.site, eps=self.eps, centre=False
        )[0]


class DropoutAdd(nn.Module):
    """residual + dropout(x); no parameters."""

    def __init__(self, dropout: float, site: int = 0) -> None:
        super().__init__()
        self.dropout, self.site = dropout, site

    def forward(self, x: Tensor, residual: Tensor | None = None, seed: Tensor | None = None) -> Tensor:
        """[..., W] to [..., W]; ``seed`` is that of the dropout mask, [1] int64."""
        return dropout_add(x, residual, dropout=self.dropout if self.training else 0.0, seed=seed, site=self.site)
