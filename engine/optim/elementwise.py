"""Optimizers that treat every element alone, so that ZeRO's flat tensors are as good to them as parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from engine.optim.whole import adam_direction, apply_update, moment, next_step
from kernels.optimizer import loss_of


class ElementwiseOptimizer(torch.optim.Optimizer, ABC):
    """Steps on each key that has a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; the loss of a closure, which makes the gradients first."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for key in group["params"]:
                if key.grad is not None:
                    apply_update(key, self.direction(self.state[key], key, group), group)
        return loss

    @abstractmethod
    def direction(self, state: dict[str, Any], key: Tensor, group: dict[str, Any]) -> Tensor:
        """Advance the state and give the update before the rate, shaped like the key."""


class AdamW(ElementwiseOptimizer):
    """AdamW (arXiv:1711.05101) that counts steps in plain numbers.

    For states on NVMe: DeepSpeed writes every tensor of a state there as one that is shaped like the key, which the
    scalar tensor in which torch's AdamW counts is not.
    """

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def direction(self, state: dict[str, Any], key: Tensor, group: dict[str, Any]) -> Tensor:
        """Adam's bias-corrected moments."""
        return adam_direction(state, key, group)


class Lion(ElementwiseOptimizer):
    """Lion (arXiv:2302.06675, algorithm 2): the sign of an interpolated momentum, with decoupled weight decay."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    def direction(self, state: dict[str, Any], key: Tensor, group: dict[str, Any]) -> Tensor:
        """The sign; the momentum advances after it."""
        next_step(state)
        momentum, gradient = moment(state, "exp_avg", key), key.grad
        assert gradient is not None
        update = torch.lerp(gradient, momentum, group["betas"][0]).sign_()
        momentum.lerp_(gradient, 1 - group["betas"][1])
        return update
