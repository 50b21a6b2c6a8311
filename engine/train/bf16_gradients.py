"""How DeepSpeed's BF16_Optimizer (stage 1 in bf16) collects fp32 gradients, with fewer passes over them.

0.19.8 fills them with zeros twice a step, and adds an fp32 copy of each gradient to them. Here the first gradient of a
step is written where the next ones are added, and only what has none is filled with zeros. That counts as a gradient: a
rank that leaves it out of its norm would clip by another one than the rank that has it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def collect_in_one_pass(wrapper: Any) -> None:
    """Replace the methods of a BF16_Optimizer that add up gradients and clear them."""
    taken = wrapper.get_grads_for_reduction

    @torch.no_grad()
    def update(parameter: nn.Parameter, group: int, index: int, clear_lp_grads: bool) -> None:
        """Write the first gradient of a step into the fp32 one of its parameter, add the later ones."""
        if parameter.grad is None:
            return
        total: Tensor = wrapper.fp32_groups_gradients[group][index]
        gradient = parameter.grad.view(total.shape)
        if wrapper.fp32_groups_has_gradients[group][index]:
            total.add_(gradient)
        else:
            total.copy_(gradient)
        wrapper.fp32_groups_has_gradients[group][index] = True
        parameter._hp_grad = total  # type: ignore[attr-defined]
        if clear_lp_grads:
            parameter.grad.zero_()

    def forget() -> None:
        for has in wrapper.fp32_groups_has_gradients:
            has[:] = [False] * len(has)

    def fill_missing(*_: Any) -> None:
        """Zeros for what no micro-batch of this rank had a gradient of: before ranks are added up, and the step."""
        for gradients, has in zip(wrapper.fp32_groups_gradients, wrapper.fp32_groups_has_gradients, strict=True):
            missing = [gradient for gradient, there in zip(gradients, has, strict=True) if not there]
            if missing:
                torch._foreach_zero_(missing)
                has[:] = [True] * len(has)

    def for_reduction() -> Any:
        fill_missing()
        return taken()

    wrapper._update_hp_grad, wrapper.clear_hp_grads = update, forget
    wrapper.get_grads_for_reduction = for_reduction
    wrapper.optimizer.register_step_pre_hook(fill_missing)  # one rank alone reduces nothing
