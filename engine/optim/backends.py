"""Whose kernels run AdamW and Lion: torch's, DeepSpeed's, NVIDIA apex's or ours, where they are there and fit."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.config.cli import SharedError
from engine.config.deepspeed_json import DeepSpeedSettings
from engine.config.optimizer import OptimizerConfig
from engine.optim.elementwise import AdamW, Lion
from engine.train.distributed import raise_together
from kernels import apex, dispatch
from kernels import optimizer as kernels

Groups = list[dict[str, Any]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where the optimizer will step.

    Attributes:
        device_type: of the model: cuda or cpu.
        stage: ZeRO stage.
        offload: where the optimizer's state is kept: none (with the model), cpu or nvme.
    """

    device_type: str = "cpu"
    stage: int = 0
    offload: str = "none"

    @classmethod
    def of(cls, settings: DeepSpeedSettings | None, device_type: str) -> Place:
        """The place that a DeepSpeed configuration gives the optimizer."""
        if settings is None:
            return cls(device_type)
        offload = settings.config.get("zero_optimization", {}).get("offload_optimizer") or {}
        return cls(device_type, settings.stage, offload.get("device") or "none")


def backend_problems(config: OptimizerConfig, place: Place) -> list[str]:
    """Why a backend that the settings force cannot be had here, as far as that is known without building anything."""
    if config.backend != "apex":
        return []
    return [f"train.optimizer.backend is 'apex', {why}" for why in (apex_missing(), apex_unfit(place)) if why]


def build(config: OptimizerConfig, groups: Groups, place: Place, say: Say) -> torch.optim.Optimizer:
    """Build an AdamW or a Lion from the first backend that works, or from the one that the settings force.

    Raises:
        SharedError: if a forced one does not work, with its own message.
    """
    if config.backend != "auto":
        optimizer, problem = None, None
        try:
            optimizer = BUILDERS[config.name][config.backend](config, groups, place, say)
        except (ImportError, RuntimeError, OSError) as error:
            problem = (
                f"train.optimizer.backend {config.backend} does not work on {platform.node()}: {_reason(error)}; use "
                "auto or torch"
            )
        if torch.distributed.is_initialized():
            raise_together(problem)
        if optimizer is None:
            raise SharedError(str(problem))
        return optimizer
    for backend in preferences(config, place):
        try:
            return BUILDERS[config.name][backend](config, groups, place, say)
        except (ImportError, RuntimeError, OSError) as error:
            say(f"note: no {config.name} from {backend} ({_reason(error)}); torch's is used")
    return BUILDERS[config.name]["torch"](config, groups, place, say)


def preferences(config: OptimizerConfig, place: Place) -> list[str]:
    """Backends to try before torch.

    DeepSpeed's for offloaded state, where it is several times faster. Else ours, where they were measured ahead of
    torch's. On a GPU then apex where it is installed, and DeepSpeed where its kernels were built at its installation:
    to build them now would gain little over torch's.
    """
    if config.name != "adamw":
        return []
    if place.offload != "none":
        return ["deepspeed"]
    found = []
    if dispatch.has_kernel(kernels.ADAMW, torch.device(place.device_type)):
        found.append("kernels")
    if place.device_type != "cuda":
        return found
    if not (apex_missing() or apex_unfit(place)):
        found.append("apex")
    if _installed("fused_adam"):
        found.append("deepspeed")
    return found


def apex_missing() -> str | None:
    """Why NVIDIA's apex is not there; the apex of PyPI is another program of that name."""
    reason = apex.missing()
    return reason and f"{reason}, or use auto"


def apex_unfit(place: Place) -> str | None:
    """Why apex's FusedAdam cannot be used in a place."""
    if place.device_type != "cuda":
        return "which needs a GPU; use auto"
    if place.offload != "none":
        return "which cannot step on offloaded state; use auto"
    if place.stage == 3:
        return "which counts steps by group, while ZeRO stage 3 steps several times on a group; use auto"
    return None


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]


def _installed(operator: str) -> bool:
    """Whether one of DeepSpeed's operators was built when DeepSpeed was installed."""
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(operator, False))


def _announce_build(operator: str, say: Say) -> None:
    """Say that building an operator takes its time, unless it was built before."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    if not _installed(operator) and not any(root.rglob(f"{operator}.so")):
        say(f"DeepSpeed's {operator} is built now, once on this machine; that takes minutes")


def _torch_adamw(config: OptimizerConfig, groups: Groups, place: Place, say: Say) -> torch.optim.Optimizer:
    assert config.betas is not None and config.eps is not None
    if place.offload == "nvme":
        return AdamW(groups, config.lr, config.betas, config.eps)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _torch_lion(config: OptimizerConfig, groups: Groups, place: Place, say: Say) -> torch.optim.Optimizer:
    assert config.betas is not None
    return Lion(groups, config.lr, config.betas)


def _deepspeed_adamw(config: OptimizerConfig, groups: Groups, place: Place, say: Say) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    on_host = place.offload != "none"
    _announce_build("cpu_adam" if on_host else "fused_adam", say)
    chosen = DeepSpeedCPUAdam if on_host else FusedAdam
    optimizer: torch.optim.Optimizer = chosen(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    optimizer.register_step_pre_hook(_count_in_numbers)
    if on_host:
        optimizer.register_step_pre_hook(_forget_powers)
    return optimizer


def _apex_adamw(config: OptimizerConfig, groups: Groups, place: Place, say: Say) -> torch.optim.Optimizer:
    from apex.optimizers import FusedAdam  # type: ignore[import-not-found]

    optimizer: torch.optim.Optimizer = FusedAdam(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    optimizer.register_step_pre_hook(_count_in_group)
    optimizer.register_step_post_hook(_count_in_state)
    return optimizer


def _kernels_adamw(config: OptimizerConfig, groups: Groups, place: Place, say: Say) -> torch.optim.Optimizer:
    assert config.betas is not None and config.eps is not None
    device = torch.device("cpu" if place.offload != "none" else place.device_type)
    backend, why = dispatch.explain(kernels.ADAMW, device)
    if backend == "reference":
        raise RuntimeError(why)
    return kernels.AdamW(groups, config.lr, config.betas, config.eps)


def _states(group: dict[str, Any], optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [optimizer.state[key] for key in group["params"] if optimizer.state.get(key)]


def _count_in_numbers(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """DeepSpeed's kernels take the count of steps as a number, while a checkpoint gives it as a tensor."""
    for group in optimizer.param_groups:
        for state in _states(group, optimizer):
            state["step"] = int(state["step"])


def _forget_powers(optimizer: Any, args: Any, kwargs: Any) -> None:
    """Have DeepSpeedCPUAdam compute the powers of beta1 and beta2 from the count of steps.

    It multiplies them up from step to step, in fp32, which a run that was resumed cannot repeat to the bit. After a
    step that is not the one before, here of count 0 on a tensor of no use, it takes the power.
    """
    group, none = optimizer.param_groups[0], [torch.zeros(1) for _ in range(4)]
    optimizer.ds_opt_adam.adam_update(optimizer.opt_id, 0, 0.0, *group["betas"], group["eps"], 0.0, True, *none)


def _count_in_group(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """apex counts steps in the group, which no checkpoint holds."""
    for group in optimizer.param_groups:
        group["step"] = max((int(state.get("step", 0)) for state in _states(group, optimizer)), default=0)


def _count_in_state(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """The count of apex, where checkpoints look for it."""
    for group in optimizer.param_groups:
        for state in _states(group, optimizer):
            state["step"] = group["step"]


Builder = Callable[[OptimizerConfig, Groups, Place, Say], torch.optim.Optimizer]
BUILDERS: dict[str, dict[str, Builder]] = {
    "adamw": {"torch": _torch_adamw, "deepspeed": _deepspeed_adamw, "apex": _apex_adamw, "kernels": _kernels_adamw},
    "lion": {"torch": _torch_lion},  # DeepSpeed's moves elements whose update is 0
}
