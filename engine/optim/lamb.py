"""LAMB (You et al. 2019, arXiv:1904.00962, algorithm 2), with its trust ratio per parameter at every ZeRO stage."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from engine.optim.whole import WholeParameterOptimizer, Work, adam_direction, apply_update


class Lamb(WholeParameterOptimizer):
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
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "rule": "trust"})
        self.trust_clamp = trust_clamp or (0.0, math.inf)

    def update(self, work: Work) -> None:
        """Take a step on some keys."""
        trusted = []
        for group, key in work:
            direction = adam_direction(self.state[key], key, group)
            if group["rule"] == "trust":
                trusted.append((group, key, direction.add_(key, alpha=group["weight_decay"])))
            else:
                apply_update(key, direction, group)
        if not trusted:
            return
        weights, updates = self.squared_norms({key: [key, update] for _, key, update in trusted}).sqrt()
        ratios = torch.where((weights > 0) & (updates > 0), (weights / updates).clamp(*self.trust_clamp), 1.0)
        for group, key, update in trusted:
            self._scale(key, update, ratios.to(update.dtype))
            key.add_(update, alpha=-group["lr"])

    def _scale(self, key: Tensor, update: Tensor, ratios: Tensor) -> None:
        for piece in self.pieces[key]:
            piece.of(update).mul_(ratios[piece.parameter])
