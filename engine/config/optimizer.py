"""Settings of the optimizer. Never imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

BACKENDS = ("auto", "torch", "deepspeed", "apex", "kernels")


@dataclass(frozen=True)
class OptimizerDefaults:
    """What an optimizer has of its own: None where it has no such setting.

    Attributes:
        betas: decay of the first and second moment; of Lion, of the update and of the momentum.
        eps: added where it divides.
        backends: where a ready-made kernel of it may come from.
        momentum: decay of the momentum of matrices.
        clip_update: greatest root mean square of an update.
        decay_rate: exponent of the second moment's decay.
    """

    betas: tuple[float, float] | None
    eps: float | None
    backends: tuple[str, ...] = ("auto", "torch")
    momentum: float | None = None
    clip_update: float | None = None
    decay_rate: float | None = None


DEFAULTS = {
    "adamw": OptimizerDefaults((0.9, 0.999), 1e-8, BACKENDS),
    "lamb": OptimizerDefaults((0.9, 0.999), 1e-6),
    "lion": OptimizerDefaults((0.9, 0.99), None),
    "adafactor": OptimizerDefaults(None, 1e-30, clip_update=1.0, decay_rate=0.8),
    "muon": OptimizerDefaults((0.9, 0.95), 1e-8, momentum=0.95),
}
OPTIMIZERS = tuple(DEFAULTS)
# Settings of a single optimizer, and what stands for them in the record of a run with another one.
SINGLE = {"momentum": 0.95, "clip_update": 1.0, "decay_rate": 0.8}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its rate; docs/optimizers.md has the formulas.

    A setting that the optimizer does not have is refused where it is given.

    Args:
        name: adamw, lamb, lion, adafactor or muon.
        lr: peak learning rate.
        betas: decay of the first and second moment; the optimizer's own default where not given.
        eps: added where it divides; the optimizer's own default where not given.
        weight_decay: decoupled weight decay; biases and norms are exempt.
        decay_exclude: patterns (* and ?) of names of further parameters without decay; lamb gives them no trust ratio.
        layer_decay: rate of layer i is lr * layer_decay^(num_layers - i), lowest for embeddings, lr for heads.
        freeze: patterns of names of parameters that are not trained.
        backend: whose kernels: torch, deepspeed, apex, kernels (ours), or auto for the fastest that is there.
        trust_clamp: lamb: least and greatest trust ratio; not clamped where not given.
        momentum: muon: decay of the momentum of matrices; 0.95 where not given.
        clip_update: adafactor: greatest root mean square of a parameter's update, before the rate; 1 where not given.
        decay_rate: adafactor: the second moment's decay at step t is 1 - t^-decay_rate; 0.8 where not given.
    """

    name: str = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float = 0.01
    decay_exclude: list[str] = field(default_factory=list)
    layer_decay: float = 1.0
    freeze: list[str] = field(default_factory=list)
    backend: str = "auto"
    trust_clamp: tuple[float, float] | None = None
    momentum: float | None = None
    clip_update: float | None = None
    decay_rate: float | None = None

    def completed(self) -> OptimizerConfig:
        """The same with the optimizer's own defaults in place of what was not given."""
        own = DEFAULTS.get(self.name, DEFAULTS["adamw"])
        defaults: dict[str, Any] = {**SINGLE, **{name: value for name, value in vars(own).items() if value is not None}}
        names = ("betas", "eps", *SINGLE)
        missing = [name for name in names if getattr(self, name) is None and name in defaults]
        return replace(self, **{name: defaults[name] for name in missing})

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        return self.wrong_values() + self.unused()

    def unused(self) -> list[str]:
        """Settings of other optimizers that are given; only before ``completed``."""
        if self.name not in OPTIMIZERS:
            return []
        return [
            f"train.optimizer.{name} is given, and {self.name} has none; remove it"
            for name in SINGLE
            if getattr(self, name) is not None and getattr(DEFAULTS[self.name], name) is None
        ]

    def wrong_values(self) -> list[str]:
        """Everything wrong with the values themselves, and with what ``completed`` leaves alone."""
        found = []
        if self.name not in OPTIMIZERS:
            found.append(f"train.optimizer.name is {self.name!r}; it must be one of {', '.join(OPTIMIZERS)}")
        if not 0 < self.lr < math.inf:
            found.append(f"train.optimizer.lr is {self.lr}; it must be above 0 and finite")
        if not all(0 <= beta < 1 for beta in self.betas or ()):
            found.append(f"train.optimizer.betas are {list(self.betas or ())}; each must be in [0, 1)")
        for name in ("eps", "clip_update", "decay_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                found.append(f"train.optimizer.{name} is {value}; it must be above 0 and finite")
        if not 0 <= self.weight_decay < math.inf:
            found.append(f"train.optimizer.weight_decay is {self.weight_decay}; it must not be negative, and finite")
        if not 0 < self.layer_decay <= 1:
            found.append(f"train.optimizer.layer_decay is {self.layer_decay}; it must be above 0, and 1 (off) at most")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            found.append(f"train.optimizer.momentum is {self.momentum}; it must be in [0, 1)")
        return found + self._problems_of_optimizer()

    def _problems_of_optimizer(self) -> list[str]:
        """Settings that the optimizer cannot use."""
        found = []
        if self.trust_clamp is not None and not 0 <= self.trust_clamp[0] <= self.trust_clamp[1]:
            found.append(
                f"train.optimizer.trust_clamp is {list(self.trust_clamp)}; it must be the least and the greatest trust "
                "ratio, such as [0.01, 10.0]"
            )
        if self.backend not in BACKENDS:
            return [*found, f"train.optimizer.backend is {self.backend!r}; it must be one of {', '.join(BACKENDS)}"]
        if self.name not in OPTIMIZERS:
            return found
        own = DEFAULTS[self.name]
        if self.backend not in own.backends:
            found.append(
                f"train.optimizer.backend is {self.backend!r}, which has no {self.name} that ZeRO can use as it is; "
                f"it must be one of {', '.join(own.backends)}"
            )
        found += [
            f"train.optimizer.{name} is given, and {self.name} has none; remove it"
            for name in ("betas", "eps")
            if getattr(self, name) is not None and getattr(own, name) is None
        ]
        if self.trust_clamp is not None and self.name != "lamb":
            found.append(f"train.optimizer.trust_clamp is given, and {self.name} has no trust ratio; remove it")
        return found
