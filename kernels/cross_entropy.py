"""Softmax cross-entropy of logits, and of a projection whose logits are never there as a whole.

The loss of a row is log(sum(exp(x))) - x[label]. Sums and statistics are fp32 whatever the types. The probabilities are
not stored: of a row its maximum and its sum are, and the gradient is made of them and the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kernels.dispatch import Operation, choose, load
from kernels.limits import EMULATOR_BLOCKS, cpu_limit, pack_limit, processors
from kernels.reference import cross_entropy as reference
from kernels.reference.cross_entropy import IGNORE_INDEX
from kernels.tensors import packed

# M rows, D columns of the hidden states, V of the logits, C rows of a chunk

BLOCKS_PER_PROCESSOR = 8
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 256 << 20}  # of the logits of a chunk, about
MIN_CHUNK_ROWS = 256
# Columns whose part of the weight's gradient is made at a time, where it is added up in another type:
SLICE, CUDA_SLICE = 4096, 16384
FP16_SCALE = 256.0  # of gradients in fp16, most of which would be subnormal: a softmax over 50,000 columns is 2e-5


LIMITS = {"cpu": cpu_limit, "cuda": pack_limit, "emulator": pack_limit}
CROSS_ENTROPY = Operation("cross_entropy", LIMITS)
LINEAR_CROSS_ENTROPY = Operation("linear_cross_entropy", LIMITS)


def softmax_cross_entropy(logits: Tensor, labels: Tensor, count_right: bool = False) -> tuple[Tensor, Tensor | None]:
    """Summed cross-entropy of logits; its backward pass makes their gradient in one pass over them.

    Args:
        logits: [M, V] fp32, bf16 or fp16; a column of -inf has no probability and no gradient.
        labels: [M] int64, columns; a row whose label is IGNORE_INDEX (-100) counts for nothing.
        count_right: count the labels that are the first of their row's largest columns.

    Returns:
        The sum of the losses, scalar fp32, and how many labels are right, scalar int64, or None.

    Raises:
        ValueError: if shapes or types do not fit, or on a CPU a label is no column. On a GPU, which would have to be
            waited for, the loss of such a label and the gradient of its row are NaN.
    """
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(f"logits are {_shown(logits)}; they must be [M, V] of a floating type")
    _check_labels(labels, logits)
    loss, right, *_ = _cross_entropy(logits, labels, count_right)
    return loss, right if count_right else None


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    count_right: bool = False,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Summed cross-entropy of hidden @ weight.T + bias, whose logits are there for a chunk of rows at a time.

    Where gradients are needed they are made with the loss, chunk by chunk, and only multiplied by the gradient of the
    loss afterwards: neither logits nor probabilities are kept, and the weight is not read again. After Liger-Kernel's
    fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989). Rows that are one chunk keep their logits instead,
    which takes less than a gradient of the weight in fp32, unless ``chunk_rows`` is given.

    Args:
        hidden: [M, D] fp32, bf16 or fp16.
        weight: [V, D], like hidden: under autocast too, where parameters have to be cast before.
        bias: [V], like hidden; -inf for columns that do not count.
        labels: [M] int64, columns; a row whose label is IGNORE_INDEX (-100) counts for nothing.
        count_right: count the labels that are the first of their row's largest columns.
        chunk_rows: rows of a chunk; where not given, about as many as have ``CHUNK_BYTES`` of logits.

    Returns:
        The sum of the losses, scalar fp32, and how many labels are right, scalar int64, or None.

    Raises:
        ValueError: as ``softmax_cross_entropy``, or if there are no rows in a chunk.
    """
    _check_projection(hidden, weight, bias)
    _check_labels(labels, hidden)
    rows = default_chunk_rows(hidden, weight) if chunk_rows is None else chunk_rows
    if rows < 1:
        raise ValueError(f"chunk_rows is {rows}; it must be at least 1")
    if chunk_rows is None and rows >= hidden.shape[0]:
        return softmax_cross_entropy(torch.nn.functional.linear(hidden, weight, bias), labels, count_right)
    wanted = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, weight, bias)]
    loss, right, *_ = _linear_cross_entropy(hidden, weight, bias, labels, count_right, rows, wanted)
    return loss, right if count_right else None


def default_chunk_rows(hidden: Tensor, weight: Tensor) -> int:
    """Rows of a chunk: at least MIN_CHUNK_ROWS, below which matrix products are slow; all chunks about as large."""
    rows = max(1, hidden.shape[0])
    budget = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cuda"])
    most = max(MIN_CHUNK_ROWS, budget // max(1, weight.shape[0] * hidden.element_size()))
    chunks = -(-rows // most)
    return -(-rows // chunks)


def workspace_bytes(hidden: Tensor, weight: Tensor, chunk_rows: int, wanted: Sequence[bool]) -> int:
    """Memory that ``kernels::linear_cross_entropy`` needs while it runs, beside its results: logits and a slice."""
    logits = min(chunk_rows, hidden.shape[0]) * weight.shape[0] * hidden.element_size()
    if not wanted[1] or hidden.dtype == _compute_type(hidden):
        return logits
    if hidden.device.type != "cpu":
        return logits + min(CUDA_SLICE, weight.shape[0]) * weight.shape[1] * 4
    return logits + min(SLICE, weight.shape[0]) * weight.shape[1] * (hidden.element_size() + 4)


def _check_projection(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden is {_shown(hidden)}; it must be [M, D] of a floating type")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1] or weight.dtype != hidden.dtype:
        raise ValueError(f"weight is {_shown(weight)}; it must be [V, {hidden.shape[1]}] {hidden.dtype}, as hidden")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != hidden.dtype):
        raise ValueError(f"bias is {_shown(bias)}; it must be [{weight.shape[0]}] {hidden.dtype}, as weight")


def _check_labels(labels: Tensor, rows: Tensor) -> None:
    if labels.shape != rows.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels are {_shown(labels)}; they must be [{rows.shape[0]}] torch.int64, one for each row")


def _shown(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}"


def _check_columns(labels: Tensor, width: int) -> None:
    """On a CPU alone: a GPU would have to be waited for."""
    if labels.device.type != "cpu" or not labels.numel():
        return
    wrong = labels[((labels < 0) | (labels >= width)) & (labels != IGNORE_INDEX)]
    if wrong.numel():
        raise ValueError(
            f"a label is {int(wrong[0])}; labels must be columns of the logits, 0 to {width - 1}, or {IGNORE_INDEX} "
            "for rows that do not count"
        )


@torch.library.custom_op("kernels::cross_entropy", mutates_args=())
def _cross_entropy(logits: Tensor, labels: Tensor, count_right: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum of the losses, how many labels are right, and maximum and total [M] of the rows of logits [M, V]."""
    _check_columns(labels, logits.shape[1])
    backend = choose(CROSS_ENTROPY, logits.device, width=logits.shape[1], types=(logits.dtype,))
    losses, right, maximum, total = _forward(backend, packed(logits), labels.contiguous(), count_right)
    return _sum(losses), right.sum(), maximum, total


@_cross_entropy.register_fake
def _empty_losses(logits: Tensor, labels: Tensor, count_right: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute = _compute_type(logits)
    maximum, total = (logits.new_empty(logits.shape[0], dtype=compute) for _ in range(2))
    return logits.new_empty((), dtype=compute), labels.new_empty(()), maximum, total


@torch.library.custom_op("kernels::cross_entropy_gradient", mutates_args=())
def _cross_entropy_gradient(logits: Tensor, labels: Tensor, maximum: Tensor, total: Tensor, upstream: Tensor) -> Tensor:
    """upstream * (softmax - onehot): [M, V]."""
    backend = choose(CROSS_ENTROPY, logits.device, width=logits.shape[1], types=(logits.dtype,))
    if backend == "reference":
        return reference.cross_entropy_backward(logits, labels, maximum, total, upstream).contiguous()
    gradient = _empty_gradient(logits, labels, maximum, total, upstream)
    load(backend).cross_entropy_backward(
        packed(logits), labels.contiguous(), maximum, total, upstream.float().reshape(1), gradient,
        _blocks(backend, logits),
    )  # fmt: skip
    return gradient


@_cross_entropy_gradient.register_fake
def _empty_gradient(logits: Tensor, labels: Tensor, maximum: Tensor, total: Tensor, upstream: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _keep_logits(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, _ = inputs
    _, right, maximum, total = output
    ctx.save_for_backward(logits, labels, maximum, total)
    ctx.mark_non_differentiable(right, maximum, total)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None]:
    gradient = None if upstream is None else _cross_entropy_gradient(*ctx.saved_tensors, upstream)
    return gradient, None, None


_cross_entropy.register_autograd(_backward, setup_context=_keep_logits)


@torch.library.custom_op("kernels::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    count_right: bool,
    chunk_rows: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sum of the losses, how many labels are right, and ``gradient_scale`` times the gradients.

    Those of hidden [M, D] are in its type, those of weight [V, D] and bias [V] in that of the computation; what is not
    wanted has no elements.
    """
    rows, width = hidden.shape[0], weight.shape[0]
    _check_columns(labels, width)
    backend = choose(LINEAR_CROSS_ENTROPY, hidden.device, width=width, types=(hidden.dtype,))
    loss, _, dhidden, dweight, dbias = _empty_projection(hidden, weight, bias, labels, count_right, chunk_rows, wanted)
    losses, rights = hidden.new_empty(rows, dtype=loss.dtype), labels.new_empty(rows, dtype=torch.int32)
    hidden, labels = hidden.contiguous(), labels.contiguous()
    buffer = hidden.new_empty(min(chunk_rows, rows), width)
    if rows == 0:
        dweight.zero_(), dbias.zero_()
    for begin in range(0, rows, chunk_rows):
        chunk = slice(begin, begin + chunk_rows)
        part = hidden[chunk]
        logits = _project(part, weight, bias, buffer[: len(part)])
        losses[chunk], rights[chunk], *_ = _forward(backend, logits, labels[chunk], count_right, gradient=any(wanted))
        if wanted[0]:
            torch.mm(logits, weight, out=dhidden[chunk])
        if wanted[1]:
            _add_product(dweight, logits, part, first=begin == 0)
        if wanted[2]:
            _add_columns(dbias, logits, first=begin == 0)
    return _sum(losses), rights.sum(), dhidden, dweight, dbias


@_linear_cross_entropy.register_fake
def _empty_projection(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    count_right: bool,
    chunk_rows: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    compute = _compute_type(hidden)
    return (
        hidden.new_empty((), dtype=compute),
        labels.new_empty(()),
        hidden.new_empty(hidden.shape if wanted[0] else 0),
        hidden.new_empty(weight.shape if wanted[1] else 0, dtype=compute),
        hidden.new_empty(weight.shape[0] if wanted[2] else 0, dtype=compute),
    )


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, *_, ctx.wanted = inputs
    _, right, *gradients = output
    ctx.save_for_backward(*gradients)
    ctx.mark_non_differentiable(right, *gradients)
    ctx.set_materialize_grads(False)
    ctx.scale = gradient_scale(hidden.dtype)


def _linear_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 7
    # Gradients of parameters leave in fp32: autograd rounds them to the parameter's type, or to its grad_dtype.
    scaled = _scaled(*ctx.saved_tensors, upstream, ctx.scale)
    return (*(each if wanted else None for each, wanted in zip(scaled, ctx.wanted, strict=True)), *[None] * 4)


@torch.library.custom_op("kernels::linear_cross_entropy_gradients", mutates_args=())
def _scaled(
    dhidden: Tensor, dweight: Tensor, dbias: Tensor, upstream: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """upstream / scale times each, in its type. No derivative: second ones would need the softmax again."""
    factor = upstream / scale
    return (dhidden.to(factor.dtype) * factor).to(dhidden.dtype), dweight * factor, dbias * factor


@_scaled.register_fake
def _empty_scaled(
    dhidden: Tensor, dweight: Tensor, dbias: Tensor, upstream: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(dhidden), torch.empty_like(dweight), torch.empty_like(dbias)


_linear_cross_entropy.register_autograd(_linear_backward, setup_context=_keep_gradients)


def gradient_scale(dtype: torch.dtype) -> float:
    """What gradients of logits of a type are multiplied by while they are in that type."""
    return FP16_SCALE if dtype == torch.float16 else 1.0


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """hidden [C, D] @ weight.T + bias: [C, V]."""
    if bias is None:
        return torch.mm(hidden, weight.t(), out=out)
    return torch.addmm(bias, hidden, weight.t(), out=out)


def _forward(
    backend: str, logits: Tensor, labels: Tensor, count_right: bool, gradient: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """losses, whether labels are right (0 where not asked for), maximum and total: [C].

    The gradient, where wanted, replaces the logits.
    """
    scale = gradient_scale(logits.dtype)
    if backend == "reference":
        losses, maximum, total, right = reference.cross_entropy_forward(logits, labels)
        if gradient:
            logits.copy_(reference.cross_entropy_backward(logits, labels, maximum, total, losses.new_tensor(scale)))
        return losses, right, maximum, total
    losses, maximum, total = (logits.new_empty(len(labels), dtype=torch.float32) for _ in range(3))
    right = labels.new_zeros(len(labels), dtype=torch.int32)
    load(backend).cross_entropy_forward(
        logits, labels, losses, maximum, total, right if count_right else right[:0],
        logits if gradient else logits.new_empty(0), scale, _blocks(backend, logits),
    )  # fmt: skip
    return losses, right, maximum, total


def _add_product(total: Tensor, dlogits: Tensor, hidden: Tensor, first: bool) -> None:
    """Add dlogits.T @ hidden to a total [V, D]; ``first`` replaces what is there."""
    if total.dtype == dlogits.dtype:
        torch.addmm(total, dlogits.t(), hidden, beta=0 if first else 1, out=total)
    elif total.is_cuda:
        for begin in range(0, total.shape[0], CUDA_SLICE):
            columns = slice(begin, begin + CUDA_SLICE)
            product = torch.mm(dlogits[:, columns].t(), hidden, out_dtype=total.dtype)
            total[columns].copy_(product) if first else total[columns].add_(product)
    else:
        _add_product_on_cpu(total, dlogits, hidden, first)


def _add_product_on_cpu(total: Tensor, dlogits: Tensor, hidden: Tensor, first: bool) -> None:
    """Where products of 16-bit matrices are 16-bit: a slice of V at a time, in memory that is used again."""
    if dlogits.dtype == torch.float16:  # a sum may exceed what fp16 holds, and the product is slow in it
        hidden = hidden.float()
    product = hidden.new_empty(min(SLICE, total.shape[0]), hidden.shape[1])
    wide = torch.empty_like(product, dtype=total.dtype)
    for begin in range(0, total.shape[0], SLICE):
        part = total[begin : begin + SLICE]
        torch.mm(dlogits[:, begin : begin + SLICE].t().to(hidden.dtype), hidden, out=product[: len(part)])
        if first:
            part.copy_(product[: len(part)])
        else:
            part.add_(wide[: len(part)].copy_(product[: len(part)]))


def _add_columns(total: Tensor, dlogits: Tensor, first: bool) -> None:
    """Add the sums of the columns of dlogits [C, V] to a total [V]."""
    size = max(1, len(total)) if total.is_cuda else SLICE  # a CPU copies what it sums in another type
    for begin in range(0, len(total), size):
        sums = dlogits[:, begin : begin + size].sum(0, dtype=total.dtype)
        part = total[begin : begin + size]
        part.copy_(sums) if first else part.add_(sums)


def _sum(losses: Tensor) -> Tensor:
    """In fp64, whose rounding does not show what order the sum was made in."""
    return losses.sum(dtype=torch.float64).to(losses.dtype)


def _compute_type(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _blocks(backend: str, logits: Tensor) -> int:
    if backend == "cuda":
        return BLOCKS_PER_PROCESSOR * processors(logits.device)
    return EMULATOR_BLOCKS


class SoftmaxCrossEntropy(nn.Module):
    """The summed loss of logits, as ``nn.CrossEntropyLoss(reduction="sum")``; no parameters."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [M, V] and labels [M] int64 to a scalar, fp32."""
        return softmax_cross_entropy(logits, labels)[0]


class LinearCrossEntropy(nn.Linear):
    """A decoder and its summed loss, with the parameter names of ``nn.Linear``."""

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """Hidden states [M, D] and labels [M] int64 to a scalar, fp32."""
        return linear_cross_entropy(hidden, self.weight, self.bias, labels)[0]
