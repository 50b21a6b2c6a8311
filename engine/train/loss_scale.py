"""The fp16 loss scale, where DeepSpeed 0.19.8 gets it wrong."""

from __future__ import annotations

from typing import Any

import torch

from engine.checkpoint.fragments import UNFUSED, is_replicated, layout_of

AT_MINIMUM = "loss scale already at minimum"  # part of the exception that DeepSpeed's scaler raises


class LossScaling:
    """Multiplies the loss by a scale and divides the gradient by the same.

    DeepSpeed changes the scale between the two, so in a step where it doubles the gradient is halved. At stage 0 it
    also never multiplies the loss and knows no hysteresis, and without a fused Adam it reports the norm undivided.
    """

    def __init__(self, engine: Any) -> None:
        """Take over the scale of a DeepSpeed engine.

        Args:
            engine: computing in fp16; at stage 0 it gets the scaler that DeepSpeed uses at the other stages.
        """
        from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler

        self._engine, self._wrapper, self._replicated = engine, engine.optimizer, is_replicated(engine)
        self._unfused = layout_of(engine) == UNFUSED
        self._wrapper._update_scale = lambda overflow=False: None  # ours comes after the division
        if self._replicated:
            arguments = engine.loss_scale(), engine.dynamic_loss_scale(), engine.dynamic_loss_scale_args()
            self._wrapper.loss_scaler = CreateLossScaler(torch.half, *arguments)

    @property
    def scale(self) -> float:
        """What the loss of the next step is multiplied by."""
        return float(self._wrapper.loss_scaler.cur_scale)

    @property
    def missing(self) -> float:
        """What the loss has yet to be multiplied by before DeepSpeed's backward call."""
        return self.scale if self._replicated else 1.0

    def before_step(self) -> None:
        """Have the gradient divided by the scale that the loss was multiplied by."""
        if self._replicated:
            self._wrapper.loss_scale_config.cur_scale = self.scale

    def after_step(self) -> None:
        """Adapt the scale to what the step met."""
        if self._unfused:
            self._engine._global_grad_norm = self._wrapper._global_grad_norm / self.scale
        self._wrapper.loss_scaler.update_scale(self._wrapper.overflow)


def minimum_message(step: int, skipped: int) -> str:
    """What a user can do about a loss scale that cannot fall any more."""
    return (
        f"step {step}: the gradient overflows fp16 even at the smallest loss scale (fp16.min_loss_scale), in {skipped} "
        "steps in a row. Train in bf16 (the ds_config of the same stage whose name ends in _bf16.json), take a lower "
        "train.optimizer.lr or more train.schedule.warmup_steps, or look at the first weights (arch.init_std, "
        "init_from) and the data"
    )
