"""Settings of the optimizer. Never imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

OPTIMIZERS = ("adamw",)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its rate.

    Args:
        name: optimizer; one of adamw.
        lr: peak learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay; biases and norms are exempt.
    """

    name: str = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = []
        if self.name not in OPTIMIZERS:
            found.append(f"train.optimizer.name is {self.name!r}; it must be one of {', '.join(OPTIMIZERS)}")
        if not 0 < self.lr < math.inf:
            found.append(f"train.optimizer.lr is {self.lr}; it must be above 0 and finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"train.optimizer.betas are {list(self.betas)}; each must be in [0, 1)")
        if not 0 < self.eps < math.inf:
            found.append(f"train.optimizer.eps is {self.eps}; it must be above 0 and finite")
        if not 0 <= self.weight_decay < math.inf:
            found.append(f"train.optimizer.weight_decay is {self.weight_decay}; it must not be negative, and finite")
        return found
