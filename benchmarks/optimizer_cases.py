"""What benchmarks/kernels.py times of optimizers: ours and others' on all parameters of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_cases import Case, Run, Setting
from kernels import apex
from kernels.optimizer import AdamW, adamw, clip_factor, lamb_moments, lamb_step, squared_norm

CLIP = 1.0
OPTIONS: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "decay": 0.01, "step": 1}


def bert_shapes(width: int, layers: int = 6) -> list[tuple[int, ...]]:
    """The parameters of half a BERT-base's layers and its tables."""
    layer = [*[(width, width), (width,)] * 4, (4 * width, width), (4 * width,), (width, 4 * width), *[(width,)] * 5]
    return [(30528, width), (512, width), (2, width), *layer * layers]


def _parameters(setting: Setting) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    shapes = bert_shapes(setting.width)
    made = [[torch.randn(*shape, device=setting.device) for shape in shapes] for _ in range(3)]
    return *made, [tensor.square() for tensor in made[2]]  # gradients, weights, first and second moments


def gradient_norm_cases(setting: Setting) -> Iterator[Case]:
    """The norm of all gradients."""
    gradients = _parameters(setting)[0]
    sides: dict[str, Run] = {
        "kernels": lambda: [squared_norm(gradients).sqrt()],
        "torch": lambda: [torch.nn.utils.get_total_norm(gradients)],
    }
    moved = 4 * sum(map(torch.numel, gradients))
    yield Case("gradient_norm", f"{len(gradients)} tensors, fp32", sides, moved, 1e-5)


def adamw_cases(setting: Setting) -> Iterator[Case]:
    """A step of AdamW, fp32: alone, and with the norm and clipping before it, for which ours has no pass."""
    gradients, weights, _, _ = _parameters(setting)
    steps: dict[str, Run] = {}
    clipped: dict[str, Run] = {}
    for label, build in optimizers(setting.device).items():
        optimizer = build([torch.nn.Parameter(weight.clone()) for weight in weights])
        for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
            parameter.grad = gradient
        steps[label] = partial(_step, optimizer)
        clipped[label] = partial(_clipped_step, optimizer)

    def result() -> list[Tensor]:
        g, w, m, v = ([t[:1000].clone() for t in tensors] for tensors in (gradients, weights, gradients, gradients))
        v = [each.square() for each in v]
        norm = squared_norm(g).sqrt()
        factor = clip_factor(norm, CLIP)
        adamw(g, w, m, v, rate=1e-3, factor=factor, **OPTIONS)
        return [norm, *w, *m, *v]

    size = sum(map(torch.numel, weights))
    label = f"{len(weights)} tensors, fp32"
    yield Case("adamw", label, steps, 7 * 4 * size, 1e-5, result)
    yield Case("adamw", f"{label}, norm and clipping", clipped, 8 * 4 * size, 1e-5, result)


def _step(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    optimizer.step()
    return []


def _clipped_step(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parameters = optimizer.param_groups[0]["params"]
    gradients = [parameter.grad for parameter in parameters]
    if isinstance(optimizer, AdamW):
        optimizer.factor = clip_factor(squared_norm(gradients).sqrt(), CLIP)
    else:
        torch.nn.utils.clip_grads_with_norm_(parameters, CLIP, torch.nn.utils.get_total_norm(gradients))
    optimizer.step()
    return []


def optimizers(device: str) -> dict[str, Callable[[Any], torch.optim.Optimizer]]:
    """AdamW of ours and of others."""
    found: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "kernels": AdamW,
        "torch": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    }
    if device == "cuda" and apex.missing() is None:
        from apex.optimizers import FusedAdam  # type: ignore[import-not-found]

        found["apex"] = FusedAdam
    return found


def lamb_cases(setting: Setting) -> Iterator[Case]:
    """A step of LAMB, fp32, against one in torch's multi-tensor operations."""
    gradients, weights, first, second = _parameters(setting)
    pieces = [(number, 0, weight.numel()) for number, weight in enumerate(weights)]
    options = {**OPTIONS, "step": 100}

    def step(g: list[Tensor], w: list[Tensor], m: list[Tensor], v: list[Tensor], rows: list[Any]) -> list[Tensor]:
        sums = lamb_moments(g, w, m, v, rows, **options)
        ratio = (sums[:, 0] / sums[:, 1].clamp(min=1e-30)).sqrt().float()
        lamb_step(w, m, v, rows, ratio, rate=1e-6, **options)
        return [*w, *m, *v]

    def result() -> list[Tensor]:
        parts = [[t[:1000].clone() for t in tensors] for tensors in (gradients, weights, first, second)]
        return step(*parts, [(number, 0, part.numel()) for number, part in enumerate(parts[1])])

    sides: dict[str, Run] = {
        "kernels": lambda: step(gradients, weights, first, second, pieces),
        "torch": lambda: foreach_lamb(gradients, weights, first, second, 1e-6, options),
    }
    # moments: g, w, m, v in; m, v out; step: w, m, v in; w out
    moved = 10 * 4 * sum(map(torch.numel, weights))
    yield Case("lamb", f"{len(weights)} tensors, fp32", sides, moved, 1e-4, result)


@torch.no_grad()
def foreach_lamb(
    gradients: list[Tensor], weights: list[Tensor], first: list[Tensor], second: list[Tensor], rate: float,
    options: dict[str, Any],
) -> list[Tensor]:  # fmt: skip
    """LAMB (arXiv:1904.00962) in torch's multi-tensor operations."""
    (one, two), step = options["betas"], options["step"]
    torch._foreach_lerp_(first, gradients, 1 - one)
    torch._foreach_mul_(second, two)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - two)
    root = torch._foreach_sqrt(second)
    torch._foreach_div_(root, (1 - two**step) ** 0.5)
    torch._foreach_add_(root, options["eps"])
    update = torch._foreach_div(first, root)
    torch._foreach_div_(update, 1 - one**step)
    torch._foreach_add_(update, weights, alpha=options["decay"])
    ratios = torch._foreach_div(torch._foreach_norm(weights), torch._foreach_norm(update))
    torch._foreach_mul_(update, ratios)
    torch._foreach_add_(weights, update, alpha=-rate)
    return weights


# Their size and type do not depend on the tokens.
CASES: dict[str, Callable[[Setting], Iterator[Case]]] = {
    "gradient_norm": gradient_norm_cases,
    "adamw": adamw_cases,
    "lamb": lamb_cases,
}
