"""Steps of DeepSpeed's optimizer wrappers that ask the device once whether the gradient is finite, or never.

0.19.8 asks several times a step, at stage 0 in 16 bits for each parameter, and makes tensors on the GPU of Python
numbers; each time the host waits until the GPU has done all that was asked of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint.fragments import BF16, UNFUSED, ZERO12, layout_of
from engine.train.clipping import clip, sum_of_squares, total_norm


def ask_once(engine: Any, optimizer: torch.optim.Optimizer, lags: bool) -> bool:
    """Replace what waits in the wrapper of a DeepSpeed engine.

    Args:
        engine: DeepSpeed's.
        optimizer: under the wrapper.
        lags: take every step without asking, if that can be; whoever wants that looks at the norm himself.

    Returns:
        Whether steps are taken without asking.
    """
    wrapper, layout = engine.optimizer, layout_of(engine)
    if layout == UNFUSED:
        lags = lags and not engine.fp16_enabled()
        wrapper.step = _unfused_step(wrapper, optimizer, lags)
        return lags
    if layout == BF16:
        wrapper.step = _bf16_step(wrapper, optimizer, lags)
        return lags
    if layout == ZERO12 and not wrapper.cpu_offload:
        lags = lags and wrapper.dtype == torch.bfloat16
        _simplify_zero12(wrapper, optimizer, lags)
        return lags
    return False


def is_finite(norm: Tensor) -> bool:
    """Whether a norm is finite: the host waits for the device."""
    return bool(norm.isfinite().all())


def _unfused_step(wrapper: Any, optimizer: torch.optim.Optimizer, lags: bool) -> Callable[[], bool]:
    """Of FP16_UnfusedOptimizer (stage 0 in 16 bits), by the norm of fp32 gradients, which it rounds to 16 bits."""

    @torch.no_grad()
    def step() -> bool:
        """Step on fp32 gradients and round the weights; skip it, and say so, where asking finds the norm not finite."""
        masters = [parameter for group in wrapper.fp32_groups for parameter in group]
        weights = [parameter for group in wrapper.fp16_groups for parameter in group]
        for master, weight in zip(masters, weights, strict=True):
            master.grad = torch.zeros_like(master) if weight.grad is None else weight.grad.to(master.dtype)
        gradients = [master.grad for master in masters]
        wrapper._global_grad_norm = norm = total_norm(gradients)
        if not lags and not is_finite(norm):
            skipped: bool = wrapper._skip_invalid_grad_norm()
            return skipped
        wrapper.overflow = False
        wrapper._update_scale(False)
        clip(optimizer, gradients, norm, wrapper.clip_grad, wrapper.loss_scale_config.cur_scale)
        wrapper.optimizer.step()
        for master in masters:
            master.grad = None
        torch._foreach_copy_([weight.data for weight in weights], [master.data for master in masters])
        return False

    return step


def _bf16_step(wrapper: Any, optimizer: torch.optim.Optimizer, lags: bool) -> Callable[[], None]:
    """Of BF16_Optimizer (stage 1 in bf16), whose ranks all have the whole gradient."""

    @torch.no_grad()
    def step() -> None:
        """Step on the gradients of this rank's partition, or clear them where asking finds the norm not finite."""
        wrapper._global_grad_norm = norm = total_norm(wrapper.get_grads_for_norm()[0])
        wrapper.overflow = not lags and not is_finite(norm)
        if wrapper.overflow:
            wrapper._global_grad_norm = float("inf")
            wrapper.clear_hp_grads()
            wrapper.clear_lp_grads()
            return
        masters = wrapper.fp32_groups_flat_partition
        for master, gradient in zip(masters, wrapper.fp32_groups_gradient_flat_partition, strict=True):
            master.grad = gradient.to(master.dtype)
        clip(optimizer, [master.grad for master in masters], norm, wrapper.clip_grad, 1.0)
        wrapper.optimizer.step()
        if wrapper.grad_acc_dtype is not torch.float32:
            for master in masters:
                master.grad = None
        wrapper._lazy_init_hp_params_optimizer_state()
        wrapper.update_lp_params()
        wrapper.clear_hp_grads()

    return step


def _simplify_zero12(wrapper: Any, optimizer: torch.optim.Optimizer, lags: bool) -> None:
    """DeepSpeedZeroOptimizer (stages 1 and 2) looks at the norm alone, which is not finite if an element is not."""

    def norm(norm_type: int = 2) -> Tensor:
        pieces = [wrapper.averaged_gradients[group] for group in range(len(wrapper.bit16_groups))]
        total = sum_of_squares(
            [piece for of_group in pieces for piece in of_group if piece is not None], wrapper.device
        )
        torch.distributed.all_reduce(total, group=wrapper.dp_process_group)
        return total.sqrt().float().reshape(())

    def unscale(gradients: list[Tensor], norm: Tensor) -> None:
        clip(optimizer, gradients, norm, wrapper.clip_grad, float(wrapper.loss_scale))

    def no_overflow(partition_gradients: bool = True) -> None:
        wrapper.overflow = False

    wrapper.scaled_global_norm, wrapper.unscale_and_clip_grads = norm, unscale
    wrapper.check_overflow = no_overflow
    if lags:
        wrapper.check_grad_overflow = False
