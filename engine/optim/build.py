"""The optimizer that the settings name, over the parameter groups they ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.config.cli import SharedError
from engine.config.deepspeed_json import DeepSpeedSettings
from engine.config.optimizer import OptimizerConfig
from engine.optim import backends
from engine.optim.adafactor import Adafactor
from engine.optim.groups import parameter_groups
from engine.optim.lamb import Lamb
from engine.optim.muon import Muon
from engine.optim.whole import WholeParameterOptimizer
from engine.train.metrics import say

ORIGINS = {"torch": "torch", "deepspeed": "DeepSpeed", "apex": "NVIDIA apex", "kernels": "this engine's kernels"}


def optimizer_problems(config: OptimizerConfig, settings: DeepSpeedSettings | None, device_type: str) -> list[str]:
    """What cannot work of the optimizer with this DeepSpeed configuration on this machine, before anything is built."""
    return backends.backend_problems(config, backends.Place.of(settings, device_type))


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, settings: DeepSpeedSettings | None = None, device_type: str = "cpu"
) -> torch.optim.Optimizer:
    """Freeze what the settings freeze and build the optimizer for the rest.

    Call it before ``deepspeed.initialize``, and ``bind_optimizer`` after it.

    Args:
        model: with whole parameters.
        config: the optimizer.
        settings: the DeepSpeed configuration that it will work under; None: none, as in a plain loop.
        device_type: of the model: cuda or cpu.

    Raises:
        SharedError: if a pattern matches no parameter, or what the settings force is not there.
    """
    if problems := optimizer_problems(config, settings, device_type):
        raise SharedError("\n".join(problems))
    config = config.completed()
    groups, place = parameter_groups(model, config), backends.Place.of(settings, device_type)
    if config.name in backends.BUILDERS:
        return backends.build(config, groups, place, say)
    if config.name == "adafactor":
        assert config.eps is not None and config.clip_update is not None and config.decay_rate is not None
        return Adafactor(groups, config.lr, config.eps, config.clip_update, config.decay_rate)
    assert config.betas is not None and config.eps is not None
    if config.name == "lamb":
        return Lamb(groups, config.lr, config.betas, config.eps, config.trust_clamp, config.backend == "auto")
    assert config.momentum is not None
    return Muon(groups, config.lr, config.betas, config.eps, config.momentum)


def bind_optimizer(engine: Any, model: nn.Module) -> None:
    """Let an optimizer that needs whole parameters learn where ZeRO put their pieces; nothing for the others.

    All ranks must call it once, after ``deepspeed.initialize`` and before a checkpoint is restored.

    Args:
        engine: the DeepSpeed engine.
        model: the module whose parameter names the checkpoint uses.
    """
    optimizer = engine.basic_optimizer
    if isinstance(optimizer, WholeParameterOptimizer):
        optimizer.bind(engine, model)


def describe(optimizer: torch.optim.Optimizer) -> str:
    """One line for the log: which optimizer, by whose code."""
    package = type(optimizer).__module__.partition(".")[0]
    origin = ORIGINS.get(package, "this engine")
    fused = " (fused)" if package == "torch" and optimizer.defaults.get("fused") else ""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if isinstance(optimizer, Lamb) and parameters and optimizer.runs_kernels(parameters[0].device):
        origin = ORIGINS["kernels"]
    without = sum(len(group["params"]) for group in optimizer.param_groups if not group["decay"])
    return (
        f"optimizer: {type(optimizer).__name__}{fused} of {origin}; {len(parameters)} parameters in "
        f"{len(optimizer.param_groups)} group(s), {without} of them without weight decay"
    )
