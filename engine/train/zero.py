"""The DeepSpeed engine as the trainer uses it, with the defects of 0.19.8 made good in one place."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from engine.checkpoint.fragments import BF16, PLAIN, layout_of
from engine.config.deepspeed_json import DeepSpeedSettings
from engine.data.batch import PackedBatch
from engine.models.model import Model
from engine.objectives.base import LossTerm, Objective

T = TypeVar("T")


class TrainingStep(nn.Module):
    """What DeepSpeed wraps: a model and the objective that turns a batch into the terms of its loss."""

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: PackedBatch, function: Callable[[Model, PackedBatch], Any] | None = None) -> Any:
        """Terms of the loss of one micro-batch, or what a function makes of it in a tuple of one."""
        if function is not None:
            return (function(self.model, batch),)
        return self.objective.losses(self.model, batch)


class ZeroEngine:
    """A DeepSpeed engine whose loss is divided by the targets of the whole step and whose norm is always known."""

    def __init__(
        self, model: Model, objective: Objective, optimizer: torch.optim.Optimizer, settings: DeepSpeedSettings
    ) -> None:
        import deepspeed

        step = TrainingStep(model, objective)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints memory figures whatever the log level
            self.deepspeed, *_ = deepspeed.initialize(model=step, optimizer=optimizer, config=settings.config)
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.device = self.deepspeed.device
        self._ranks = torch.distributed.get_world_size()
        self._plain = self.deepspeed.optimizer is self.deepspeed.basic_optimizer
        self._norm: float | Tensor | None = None
        if settings.stage == 3:
            _register_outside_reads(model)
        if self._ranks == 1 and layout_of(self.deepspeed) in (PLAIN, BF16):
            self.deepspeed.enable_backward_allreduce = False  # it would flatten and copy all gradients to sum up one
        if self._plain:
            self.deepspeed.clip_fp32_gradients = self._clip_and_keep_norm

    def _clip_and_keep_norm(self) -> None:
        """Stage 0 in fp32: DeepSpeed computes the norm to clip by it and drops it."""
        self._norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.deepspeed.gradient_clipping())

    def micro_step(self, batch: PackedBatch, counts: dict[str, Tensor]) -> dict[str, LossTerm]:
        """Forward and backward of one micro-batch; the optimizer steps after the last one of a step.

        Args:
            batch: on the device.
            counts: targets of each term in the whole step, over all ranks and micro-batches: scalar tensors.

        Returns:
            The terms of the loss of this micro-batch.
        """
        terms: dict[str, LossTerm] = self.deepspeed(batch)
        total = sum(term.weight * term.loss_sum / counts[name] for name, term in terms.items())
        # DeepSpeed averages gradients over the ranks; the division by accumulation steps is switched off.
        self.deepspeed.backward(total * self._ranks, scale_wrt_gas=False)
        last = self.deepspeed.is_gradient_accumulation_boundary()
        if last and self._plain and not self.deepspeed.gradient_clipping():
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            self._norm = nn.utils.get_total_norm(gradients)
        self.deepspeed.step()
        return terms

    def run(self, function: Callable[[Model, PackedBatch], T], batch: PackedBatch) -> T:
        """Call ``function(model, batch)`` inside DeepSpeed's forward, where stage 3 gathers the weights it reads.

        All ranks must call it equally often. Gradients are off, and the model is in evaluation mode.
        """
        training = self.deepspeed.training
        self.deepspeed.eval()
        try:
            with torch.no_grad():
                result: tuple[T] = self.deepspeed(batch, function)
        finally:
            self.deepspeed.train(training)
        return result[0]

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of the next optimizer step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def gradient_norm(self) -> float:
        """Norm of the whole gradient of the last step, before clipping; waits for the device."""
        norm = self._norm if self._plain else self.deepspeed.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")


def _register_outside_reads(model: Model) -> None:
    """Tell stage 3 of the weights that a module reads and does not own, so that it gathers them in time."""
    from deepspeed.runtime.zero import register_external_parameter

    for head in model.heads.values():
        if "word_embedding" in inspect.signature(head.forward).parameters:
            register_external_parameter(head, model.word_embedding)
    if model.encoder.embeddings.segment is not None:
        register_external_parameter(model.encoder.embeddings, model.encoder.embeddings.segment.weight)
