"""Parameter groups: who decays, at which share of the rate, by which rule; and who is not trained at all."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn

from engine.config.cli import SharedError, collect
from engine.config.optimizer import OptimizerConfig

LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
EMBEDDINGS = "encoder.embeddings."
MATRICES_OF_LAYERS = "encoder.layers."
NOTHING_LEFT = "train.optimizer.freeze {patterns} leaves no parameter to train; name fewer"


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Split trainable parameters into groups, and freeze those that the settings name.

    Args:
        model: its parameters must be whole: call it before ``deepspeed.initialize``.
        config: settings with the optimizer's own defaults filled in.

    Returns:
        Groups in the order of their first parameters. Beside torch's keys: ``decay`` (whether weight decay applies),
        ``lr_scale`` (factor of the rate), ``rule`` (how the optimizer treats it).

    Raises:
        SharedError: if a pattern matches no parameter, or all are frozen.
    """
    named = dict(model.named_parameters())
    freeze(named, config.freeze)
    excluded = matching("decay_exclude", config.decay_exclude, named)
    num_layers = 1 + max((int(m[1]) for m in map(LAYER.match, named) if m), default=-1)
    groups: dict[tuple[bool, float, str], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            decay = parameter.dim() >= 2 and name not in excluded
            kind = (decay, layer_scale(name, num_layers, config.layer_decay), rule(name, parameter, decay, config.name))
            groups.setdefault(kind, []).append(parameter)
    return [
        {
            "params": params,
            "lr": config.lr * lr_scale,
            "weight_decay": config.weight_decay if decay else 0.0,
            "decay": decay,
            "lr_scale": lr_scale,
            "rule": chosen,
        }
        for (decay, lr_scale, chosen), params in groups.items()
    ]


def pattern_problems(config: OptimizerConfig, names: Iterable[str]) -> list[str]:
    """What is wrong with the patterns of the settings for parameters of these names."""
    problems: list[str] = []
    names = list(names)
    for setting, patterns in (("freeze", config.freeze), ("decay_exclude", config.decay_exclude)):
        for pattern in patterns:
            collect(problems, partial(matching, setting, [pattern], names))
    if not problems and len(matching("freeze", config.freeze, names)) == len(names):
        problems.append(NOTHING_LEFT.format(patterns=list(config.freeze)))
    return problems


def freeze(named: dict[str, nn.Parameter], patterns: Sequence[str]) -> None:
    """Take the gradients from the parameters whose names match."""
    for name in matching("freeze", patterns, named):
        named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise SharedError(NOTHING_LEFT.format(patterns=list(patterns)))


def matching(setting: str, patterns: Sequence[str], names: Iterable[str]) -> set[str]:
    """Names that any of the patterns matches; SharedError with the nearest name for a pattern that matches none."""
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            hint = f"; the nearest name is {near[0]}" if near else ""
            raise SharedError(
                f"train.optimizer.{setting}: {pattern!r} matches no parameter{hint} (* stands for anything, as in "
                f"{EMBEDDINGS}*)"
            )
        found |= matched
    return found


def layer_scale(name: str, num_layers: int, decay: float) -> float:
    """Share of the rate (ULMFiT, arXiv:1801.06146; as BEiT, arXiv:2106.08254, counts layers): 1 above all layers.

    Layer i of L, from 0, has decay^(L - i), embeddings decay^(L + 1).
    """
    if name.startswith(EMBEDDINGS):
        return float(decay ** (num_layers + 1))
    layer = LAYER.match(name)
    return float(decay ** (num_layers - int(layer[1]))) if layer else 1.0


def rule(name: str, parameter: Tensor, decay: bool, optimizer: str) -> str:
    """How an optimizer treats a parameter.

    LAMB: ``trust`` for what decays, else ``adamw``. Muon: ``muon`` for the matrices of layers, else ``adamw``.
    Adafactor: ``factored`` for matrices, else ``vector``. The others treat all alike.
    """
    if optimizer == "lamb":
        return "trust" if decay else "adamw"
    if optimizer == "muon":
        return "muon" if name.startswith(MATRICES_OF_LAYERS) and parameter.dim() == 2 else "adamw"
    if optimizer == "adafactor":
        return "factored" if parameter.dim() == 2 else "vector"
    return optimizer
