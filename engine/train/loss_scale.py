"""The fp16 loss scale where DeepSpeed 0.19.8 gets it wrong: at ZeRO stage 0."""

from __future__ import annotations

from typing import Any

import torch

AT_MINIMUM = "loss scale already at minimum"  # part of the exception that DeepSpeed's scaler raises


class ReplicatedScaler:
    """Loss scaling at stage 0, by the scaler that DeepSpeed uses at the other stages.

    At stage 0 DeepSpeed divides gradients by a scale that it never multiplied the loss by, changes the scale before
    that division, reports the norm undivided and knows no hysteresis.
    """

    def __init__(self, engine: Any) -> None:
        """Take over the scale of a DeepSpeed engine at stage 0 in fp16."""
        from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler

        self._wrapper = engine.optimizer
        self.scaler = CreateLossScaler(
            torch.half, engine.loss_scale(), engine.dynamic_loss_scale(), engine.dynamic_loss_scale_args()
        )
        self._wrapper.loss_scaler = self.scaler  # checkpoints look for it here, as at the other stages
        self._wrapper._update_scale = lambda overflow: None  # ours comes after the division
        self._used = 1.0

    def before_step(self) -> None:
        """Have gradients divided by the scale that their loss was multiplied by."""
        self._used = self._wrapper.loss_scale_config.cur_scale = float(self.scaler.cur_scale)

    def after_step(self) -> None:
        """Adapt the scale to what the step met."""
        norm = self._wrapper._global_grad_norm
        if norm is not None:
            self._wrapper._global_grad_norm = norm / self._used
        self.scaler.update_scale(self._wrapper.overflow)


def minimum_message(step: int, skipped: int) -> str:
    """What a user can do about a loss scale that cannot fall any more."""
    return (
        f"step {step}: the gradient overflows fp16 even at the smallest loss scale (fp16.min_loss_scale), in {skipped} "
        "steps in a row. Train in bf16 (the ds_config of the same stage whose name ends in _bf16.json), take a lower "
        "train.optimizer.lr or more train.schedule.warmup_steps, or look at the first weights (arch.init_std, "
        "init_from) and the data"
    )
