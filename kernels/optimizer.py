"""The norm of all gradients, AdamW and LAMB over lists of tensors: a launch for many of them, a pass over memory.

Clipping has no pass of its own: the norm gives a factor (``clip_factor``) that the step multiplies each gradient by.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Operation, choose, load
from kernels.reference import optimizer as reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = 16 * 1024  # as in csrc/common/optimizer.h
CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm, and so do DeepSpeed's optimizers
Piece = tuple[int, int, int]


def _limit(
    gradients: Sequence[Tensor], kept: Sequence[Sequence[Tensor]] = (), copies: Sequence[Tensor] = ()
) -> str | None:
    """Why a list of gradients, lists of weights and moments, and copies of weights are for the reference."""
    types = {gradient.dtype for gradient in gradients}
    if len(types) > 1:
        return f"gradients are of several types ({', '.join(sorted(map(str, types)))})"
    if dtype := next((each for each in types if each not in FLOATS), None):
        return f"{dtype} is for the reference"
    for tensors in kept:
        if dtype := next((each.dtype for each in tensors if each.dtype != torch.float32), None):
            return f"weights or moments are {dtype}"
    if copies and {copy.dtype for copy in copies} not in ({torch.bfloat16}, {torch.float16}):
        return "copies are not all bf16, or all fp16"
    if not all(tensor.is_contiguous() for tensors in (gradients, *kept, copies) for tensor in tensors):
        return "a tensor is not contiguous"
    return None


_LIMITS = {"cpu": _limit, "cuda": _limit, "emulator": _limit}
GRADIENT_NORM = Operation("gradient_norm", _LIMITS)
ADAMW = Operation("adamw", _LIMITS)
LAMB = Operation("lamb", _LIMITS)


@torch.no_grad()
def squared_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The sum of squares of all elements; not finite if one of them is not.

    Args:
        gradients: fp32, bf16 or fp16, of any shapes, on one device.

    Returns:
        [1] float64, on their device.
    """
    if not gradients:
        return torch.zeros(1, dtype=torch.float64)
    backend = choose(GRADIENT_NORM, gradients[0].device, gradients=gradients)
    if backend == "reference":
        return reference.squared_norm(gradients)
    out = gradients[0].new_empty(1, dtype=torch.float64)
    load(backend).squared_norm(gradients, _partial([each.numel() for each in gradients], out), out)
    return out


def clip_factor(norm: Tensor | float, limit: float, scale: float = 1.0) -> Tensor | None:
    """What gradients must be multiplied by so that their norm is not above a limit.

    Args:
        norm: of the gradients, with the scale: a number, or a tensor of one element and any floating type.
        limit: of the norm of the clipped gradients; 0: they are not clipped.
        scale: of the loss, by which the gradients are divided.

    Returns:
        [1] float32, on the device of the norm; None where nothing is to be done.
    """
    if limit <= 0:
        device = norm.device if isinstance(norm, Tensor) else None  # filled there, the host waits for nothing
        return None if scale == 1 else torch.full((1,), 1.0 / scale, device=device)
    return (limit / (torch.as_tensor(norm).reshape(1) / scale + CLIP_EPS)).float().clamp(max=1.0) / scale


@torch.no_grad()
def adamw(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    *,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    step: int,
    factor: Tensor | None = None,
    copies: Sequence[Tensor] = (),
) -> None:
    """Take a step of AdamW (arXiv:1711.05101) with bias correction and decoupled weight decay.

    Args:
        gradients: fp32, bf16 or fp16, of any shapes.
        weights: fp32, shaped like the gradients.
        first: moments, fp32.
        second: moments, fp32.
        rate: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        decay: weight decay, times the rate.
        step: number of this step, from 1.
        factor: [1] that gradients are multiplied by, on any device; none: 1.
        copies: bf16 or fp16, like the weights, which get the new ones; none where empty.

    Raises:
        ValueError: if the lists do not fit together.
    """
    _check(gradients, weights, first, second, step, factor)
    if copies and [copy.shape for copy in copies] != [weight.shape for weight in weights]:
        raise ValueError("copies must be shaped like the weights, each like its own")
    if not weights:
        return
    factor = _moved(factor, weights[0])
    backend = choose(ADAMW, weights[0].device, gradients=gradients, kept=(weights, first, second), copies=copies)
    if backend == "reference":
        options: dict[str, Any] = {"rate": rate, "betas": betas, "eps": eps, "decay": decay, "step": step}
        reference.adamw(gradients, weights, first, second, copies, factor, **options)
        return
    load(backend).adamw(gradients, weights, first, second, copies, factor, rate, *betas, eps, decay, step)
    torch.autograd.graph.increment_version([*weights, *first, *second, *copies])


@torch.no_grad()
def lamb_moments(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    pieces: Sequence[Piece],
    *,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    step: int,
    factor: Tensor | None = None,
) -> Tensor:
    """The first half of a step of LAMB (arXiv:1904.00962): moments, and what trust ratios are made of.

    The update of a weight is u = Adam's bias-corrected direction + decay * w; ``lamb_step`` computes it again, so that
    it needs no memory. What is in no piece stays as it is.

    Args:
        gradients: fp32, bf16 or fp16, of any shapes.
        weights: fp32, shaped like the gradients.
        first: moments, fp32.
        second: moments, fp32.
        pieces: of the flattened tensors: number of the tensor in the lists, first element, size. They do not overlap.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        decay: weight decay.
        step: number of this step, from 1.
        factor: [1] that gradients are multiplied by, on any device; none: 1.

    Returns:
        Sums of squares of the weights and updates of each piece: [P, 2] float64.

    Raises:
        ValueError: if the lists do not fit together, or a piece is not in its tensor.
    """
    _check(gradients, weights, first, second, step, factor)
    _check_pieces(pieces, weights)
    if not pieces:
        return torch.zeros(0, 2, dtype=torch.float64, device=weights[0].device if weights else "cpu")
    options: dict[str, Any] = {"betas": betas, "eps": eps, "decay": decay, "step": step}
    backend = choose(LAMB, weights[0].device, gradients=gradients, kept=(weights, first, second))
    factor = _moved(factor, weights[0])
    if backend == "reference":
        return reference.lamb_moments(gradients, weights, first, second, pieces, factor, **options)
    out = weights[0].new_empty(len(pieces), 2, dtype=torch.float64)
    partial = _partial([size for _, _, size in pieces], out, 2)
    places = list(itertools.chain(*pieces))
    load(backend).lamb_moments(
        gradients, weights, first, second, places, factor, *betas, eps, decay, step, partial, out
    )
    torch.autograd.graph.increment_version([*first, *second])
    return out


@torch.no_grad()
def lamb_step(
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    pieces: Sequence[Piece],
    ratio: Tensor,
    *,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    step: int,
) -> None:
    """The second half: w = w - rate * ratio * u, with the u that ``lamb_moments`` measured.

    Args:
        weights: fp32.
        first: moments, fp32, shaped like the weights.
        second: moments, fp32, shaped like the weights.
        pieces: as there.
        ratio: trust ratio of each piece, [P] float32.
        rate: learning rate.
        betas: as there.
        eps: as there.
        decay: as there.
        step: as there.

    Raises:
        ValueError: if the lists do not fit together, or a piece is not in its tensor.
    """
    _check(weights, weights, first, second, step, None)
    _check_pieces(pieces, weights)
    if ratio.shape != (len(pieces),) or ratio.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"ratio is {ratio.dtype} {list(ratio.shape)}; it must be float32 [{len(pieces)}]")
    if not pieces:
        return
    options: dict[str, Any] = {"rate": rate, "betas": betas, "eps": eps, "decay": decay, "step": step}
    backend = choose(LAMB, weights[0].device, gradients=(), kept=(weights, first, second))
    if backend == "reference":
        reference.lamb_step(weights, first, second, pieces, ratio, **options)
        return
    flat = list(itertools.chain(*pieces))
    load(backend).lamb_step(weights, first, second, flat, ratio.float(), rate, *betas, eps, decay, step)
    torch.autograd.graph.increment_version(weights)


def _check(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    step: int,
    factor: Tensor | None,
) -> None:
    shapes = [weight.shape for weight in weights]
    for name, tensors in (("gradients", gradients), ("first moments", first), ("second moments", second)):
        if tensors is not weights and [tensor.shape for tensor in tensors] != shapes:
            raise ValueError(f"{name} must be shaped like the weights, each like its own")
    if step < 1:
        raise ValueError(f"step is {step}; steps are counted from 1")
    if factor is not None and (factor.numel() != 1 or not factor.is_floating_point()):
        raise ValueError(f"factor is {factor.dtype} {list(factor.shape)}; it must be float32 [1]")


def _check_pieces(pieces: Sequence[Piece], tensors: Sequence[Tensor]) -> None:
    for number, begin, size in pieces:
        if not 0 <= number < len(tensors) or begin < 0 or size < 0 or begin + size > tensors[number].numel():
            raise ValueError(f"piece {(number, begin, size)} (tensor, first element, size) is not in its tensor")


def _moved(factor: Tensor | None, weight: Tensor) -> Tensor | None:
    return None if factor is None else factor.to(weight.device, torch.promote_types(weight.dtype, torch.float32))


def _partial(sizes: Sequence[int], out: Tensor, sums: int = 1) -> Tensor:
    """Room for the sums of all chunks; a piece that does not begin where chunks do has one more."""
    return out.new_empty(sums * sum(size // CHUNK + 2 for size in sizes))


def loss_of(closure: Callable[[], float] | None) -> float | None:
    """What the closure of an optimizer's step returns, with gradients enabled; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class TakesFactor:
    """An optimizer that multiplies the gradients of its next step by a factor.

    Attributes:
        factor: [1] float32, on any device; None: 1. Whoever sets it takes it back.
    """

    factor: Tensor | None = None


class AdamW(TakesFactor, torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) whose state is that of ``torch.optim.AdamW``, and whose step can also clip."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        if min(lr, eps, weight_decay) < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"lr is {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}; none may be negative, and betas "
                "must be below 1"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step on all parameters that have a gradient; the loss of a closure, which makes them first."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for count, parameters in self._by_count(group["params"]).items():
                states = [self.state[parameter] for parameter in parameters]
                adamw(
                    [parameter.grad for parameter in parameters if parameter.grad is not None],
                    parameters,
                    [state["exp_avg"] for state in states],
                    [state["exp_avg_sq"] for state in states],
                    rate=group["lr"],
                    betas=group["betas"],
                    eps=group["eps"],
                    decay=group["weight_decay"],
                    step=count,
                    factor=self.factor,
                )
        return loss

    def _by_count(self, parameters: Sequence[Tensor]) -> dict[int, list[Tensor]]:
        """Count the step of those that have a gradient; parameters by their count."""
        found: dict[int, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            state["step"] = int(state.get("step", 0)) + 1  # torch's, and checkpoints, count in tensors
            for name in ("exp_avg", "exp_avg_sq"):
                if name not in state:
                    state[name] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            found.setdefault(state["step"], []).append(parameter)
        return found
