"""LAMB (You et al. 2019, arXiv:1904.00962, algorithm 2), with its trust ratio per parameter at every ZeRO stage."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from engine.optim.whole import WholeParameterOptimizer, Work, adam_direction, apply_update, moment, next_step
from kernels.dispatch import has_kernel
from kernels.optimizer import LAMB, Piece, TakesFactor, adamw, lamb_moments, lamb_step


class Lamb(TakesFactor, WholeParameterOptimizer):
    """Adam's bias-corrected direction u plus decay * w, at the rate lr * |w| / |u| of each parameter.

    Groups whose ``rule`` is ``adamw`` (biases and norms) have no trust ratio. Two numbers of each parameter are summed
    over the ranks in each call.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        trust_clamp: tuple[float, float] | None = None,
        kernels: bool = True,
    ) -> None:
        """See ``OptimizerConfig``; ``kernels``: whether ours may run, where they were measured ahead."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "rule": "trust"})
        self.trust_clamp = trust_clamp or (0.0, math.inf)
        self._kernels = kernels
        self._indices: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def parts(self, work: Work) -> list[Work]:
        """Our kernels, which keep no updates, step on all keys at once."""
        return [work] if self._by_kernels(work) else super().parts(work)

    def _by_kernels(self, work: Work) -> bool:
        return bool(work) and self.runs_kernels(work[0][1].device)

    def runs_kernels(self, device: torch.device) -> bool:
        """Whether our kernels step on keys of a device."""
        return self._kernels and has_kernel(LAMB, device)

    def update(self, work: Work) -> None:
        """Take a step on some keys."""
        if self._by_kernels(work):
            self._update_by_kernels(work)
            return
        trusted = []
        for group, key in work:
            if self.factor is not None and key.grad is not None:
                key.grad.mul_(self.factor.to(key.device))
            direction = adam_direction(self.state[key], key, group)
            if group["rule"] == "trust":
                trusted.append((group, key, direction.add_(key, alpha=group["weight_decay"])))
            else:
                apply_update(key, direction, group)
        if not trusted:
            return
        ratios = self._ratios(self.squared_norms({key: [key, update] for _, key, update in trusted}))
        for group, key, update in trusted:
            self._scale(key, update, ratios.to(update.dtype))
            key.add_(update, alpha=-group["lr"])

    def _ratios(self, squares: Tensor) -> Tensor:
        """Trust ratios of squared norms of weights and updates: [2, parameters] to [parameters]."""
        weights, updates = squares.sqrt()
        return torch.where((weights > 0) & (updates > 0), (weights / updates).clamp(*self.trust_clamp), 1.0)

    def _scale(self, key: Tensor, update: Tensor, ratios: Tensor) -> None:
        for piece in self.pieces[key]:
            piece.of(update).mul_(ratios[piece.parameter])

    def _update_by_kernels(self, work: Work) -> None:
        """The same in two passes over weights and moments, without memory for updates."""
        trusted: list[tuple[Alike, list[Piece], Tensor]] = []
        squares = torch.zeros(2, len(self.names), dtype=torch.float64, device=work[0][1].device)
        for alike in self._alike(work):
            gradients = [key.grad for key in alike.keys if key.grad is not None]
            kept = (alike.keys, alike.first, alike.second)
            if alike.group["rule"] != "trust":
                adamw(gradients, *kept, rate=alike.group["lr"], factor=self.factor, **alike.options)
                continue
            pieces = [(i, p.key_offset, p.size) for i, key in enumerate(alike.keys) for p in self.pieces[key]]
            numbers = self._numbers([p.parameter for key in alike.keys for p in self.pieces[key]], squares.device)
            sums = lamb_moments(gradients, *kept, pieces, factor=self.factor, **alike.options)
            squares.index_add_(1, numbers, sums.T)
            trusted.append((alike, pieces, numbers))
        if not trusted:
            return
        ratios = self._ratios(self.sum(squares)).float()
        for alike, pieces, numbers in trusted:
            kept = (alike.keys, alike.first, alike.second)
            lamb_step(*kept, pieces, ratios[numbers], rate=alike.group["lr"], **alike.options)

    def _numbers(self, parameters: list[int], device: torch.device) -> Tensor:
        """Indices of parameters on a device: made once, since a copy from the host waits."""
        known = self._indices.get((tuple(parameters), device))
        if known is None:
            known = torch.tensor(parameters, dtype=torch.long, device=device)
            self._indices[tuple(parameters), device] = known
        return known

    def _alike(self, work: Work) -> list[Alike]:
        """Count the step of all keys; those that are alike together."""
        found: dict[tuple[int, int], Alike] = {}
        for group, key in work:
            state = self.state[key]
            alike = found.setdefault((id(group), step := next_step(state)), Alike(group, step))
            alike.keys.append(key)
            alike.first.append(moment(state, "exp_avg", key))
            alike.second.append(moment(state, "exp_avg_sq", key))
        return list(found.values())


@dataclass(frozen=True)
class Alike:
    """Keys of one group that are at the same step, and their moments."""

    group: dict[str, Any]
    step: int
    keys: list[Tensor] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        """What the kernels compute directions with."""
        names = {"betas": "betas", "eps": "eps", "decay": "weight_decay"}
        return {name: self.group[ours] for name, ours in names.items()} | {"step": self.step}
