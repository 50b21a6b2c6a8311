"""Settings of what any task can be trained with. Never imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from finetune.config.tasks import changed, choice_problem

METHODS = ("fgm", "pgd")


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """Training on texts whose vectors are moved to where the loss is larger.

    Args:
        method: fgm (one step, arXiv:1605.07725) or pgd (several, arXiv:1706.06083); none where not given.
        epsilon: how far the vectors of a sequence are moved, all of them together: their L2 norm.
        steps: pgd: steps of the attack, each a forward and a backward pass.
        step_size: pgd: L2 norm of a step; 2.5 * epsilon / steps where not given.
    """

    method: str | None = None
    epsilon: float = 1.0
    steps: int = 3
    step_size: float | None = None

    @property
    def attack(self) -> tuple[int, float]:
        """Number of steps and the size of one."""
        if self.method == "fgm":
            return 1, self.epsilon
        return self.steps, 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = choice_problem("adversarial.method", self.method, METHODS)
        if not 0 < self.epsilon < math.inf:
            found.append(f"adversarial.epsilon is {self.epsilon}; it must be above 0 and finite")
        if self.steps < 1:
            found.append(f"adversarial.steps is {self.steps}; it must be at least 1")
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            found.append(f"adversarial.step_size is {self.step_size}; it must be above 0 and finite")
        if self.method is None and (idle := changed(self, ("epsilon", "steps", "step_size"))):
            names = " and ".join(f"adversarial.{name}" for name in idle)
            found.append(f"{names} given without adversarial.method, which says what they are of: give fgm or pgd")
        if self.method == "fgm" and (self.steps != AdversarialConfig().steps or self.step_size is not None):
            found.append("adversarial.steps and adversarial.step_size are settings of pgd; remove them, or give pgd")
        return found


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in place of the encoder's own weights, which stay as they are (arXiv:2106.09685).

    Args:
        rank: of the adapters; 0: none, all weights are trained.
        alpha: their output is multiplied by alpha / rank.
        targets: patterns (* and ?) of the names of linear maps that get one, such as *.attention.qkv.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: list[str] = field(default_factory=lambda: ["encoder.layers.*"])

    @property
    def scale(self) -> float:
        """Factor of what the adapters add."""
        return self.alpha / max(1, self.rank)

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = []
        if self.rank < 0:
            found.append(f"lora.rank is {self.rank}; it must be at least 1, or 0 for no adapters")
        if not 0 < self.alpha < math.inf:
            found.append(f"lora.alpha is {self.alpha}; it must be above 0 and finite")
        if not self.rank and (idle := changed(self, ("alpha", "targets"))):
            names = " and ".join(f"lora.{name}" for name in idle)
            found.append(f"{names} given without lora.rank, and there are no adapters: give lora.rank, such as 8")
        if self.rank and not self.targets:
            found.append("lora.targets is empty; name linear maps, such as encoder.layers.*, or leave it out")
        return found
