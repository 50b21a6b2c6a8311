"""The DeepSpeed engine as the trainer uses it, with the defects of 0.19.8 made good in one place."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from engine.checkpoint.fragments import BF16, PLAIN, is_replicated, layout_of
from engine.checkpoint.state import keep_frozen_weights
from engine.config.cli import SharedError
from engine.config.deepspeed_json import DeepSpeedSettings
from engine.config.optimizer import OptimizerConfig
from engine.data.batch import PackedBatch
from engine.models.model import Model
from engine.objectives.base import LossTerm, Objective
from engine.train.bf16_gradients import collect_in_one_pass
from engine.train.clipping import clip, hand_over_factors, total_norm
from engine.train.distributed import local_rank_for_deepspeed
from engine.train.lagging import LaggingFlag
from engine.train.loss_scale import AT_MINIMUM, LossScaling, minimum_message
from engine.train.profiling import part
from engine.train.wrapper_steps import ask_once, is_finite

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
    """A DeepSpeed engine whose loss is divided by the targets of the whole step and whose norm is always known.

    A step whose gradient is not finite changes neither weights nor optimizer state, at any stage and precision: it is
    counted as skipped, and what becomes of the run is the trainer's business. For that the host waits for the device
    once a step. Steps that lag are taken without waiting: one whose gradient was not finite has spoilt the weights by
    the time that ``was_not_finite`` tells of it, so that the run has to end, and can go on from a checkpoint.

    Attributes:
        deepspeed: DeepSpeed's own engine.
        model: the model that it trains.
        objective: what is learned.
        optimizer: as it was handed over; DeepSpeed's wrappers step it.
        device: where batches belong.
        lags: whether steps are taken before it is known that their gradient is finite.
        skipped_steps: steps since the start of this process that changed nothing.
        consecutive_skips: how many of them just now, one after the other.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        settings: DeepSpeedSettings,
        lags: bool = False,
    ) -> None:
        """Make DeepSpeed's engine.

        Args:
            model: with whole weights.
            objective: what is learned.
            optimizer: of the model's parameters.
            settings: the checked DeepSpeed configuration.
            lags: take steps without waiting for the device, where that can be: up to stage 2, neither in fp16 nor with
                offload, and at stages 1 and 2 in bf16.
        """
        import deepspeed

        keep_frozen_weights(model)
        step = TrainingStep(model, objective)
        with (
            local_rank_for_deepspeed(),
            contextlib.redirect_stdout(io.StringIO()),  # it prints memory figures whatever the log level
        ):
            if settings.stage == 3:
                _divide_weights(step, settings)
            self.deepspeed, *_ = deepspeed.initialize(model=step, optimizer=optimizer, config=settings.config)
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.device = self.deepspeed.device
        self.skipped_steps = self.consecutive_skips = 0
        self._ranks = torch.distributed.get_world_size()
        self._plain = layout_of(self.deepspeed) == PLAIN
        self._norm: Tensor | None = None
        replicated = is_replicated(self.deepspeed)
        self._scaling = LossScaling(self.deepspeed) if settings.precision == "fp16" else None
        if settings.stage == 3:
            _register_outside_reads(step, self.device)
        if settings.fp32_gradients:
            _accumulate_in_fp32(model)
        if self._ranks == 1 and (replicated or layout_of(self.deepspeed) == BF16):
            self.deepspeed.enable_backward_allreduce = False  # it would flatten and copy all gradients to sum up one
        if layout_of(self.deepspeed) == BF16:
            collect_in_one_pass(self.deepspeed.optimizer)
        hand_over_factors(self.deepspeed, optimizer)
        self.lags = ask_once(self.deepspeed, optimizer, lags) or (lags and self._plain)
        self._not_finite = LaggingFlag(self.device, lags=True)
        if self._plain:
            self.deepspeed.clip_fp32_gradients = lambda: None  # it computes the norm, and drops it
        if "timers" not in settings.config:
            self.deepspeed.tput_timer.config.enabled = False  # it waits for the GPU before and after each micro-batch

    def micro_step(self, batch: PackedBatch, counts: dict[str, Tensor], last: bool) -> dict[str, LossTerm]:
        """Forward and backward of one micro-batch; the optimizer steps after the last one of a step.

        Args:
            batch: on the device.
            counts: targets of each term in the whole step, over all ranks and micro-batches: scalar tensors.
            last: whether the step ends with it; its number of micro-batches may differ from that of other steps, not
                from that of other ranks.

        Returns:
            The terms of the loss of this micro-batch.

        Raises:
            SharedError: on every rank, if the fp16 loss scale would have to fall below its minimum.
        """
        self.deepspeed.set_gradient_accumulation_boundary(last)
        with part("forward"):
            terms: dict[str, LossTerm] = self.deepspeed(batch)
        # DeepSpeed averages gradients over the ranks; the division by accumulation steps is switched off.
        factor = self._ranks * (1.0 if self._scaling is None else self._scaling.missing)
        total = sum(term.weight * term.loss_sum / counts[name] for name, term in terms.items())
        with part("backward"):
            self.deepspeed.backward(total * factor, scale_wrt_gas=False)
        if last:
            with part("optimizer"):
                self._step()
        return terms

    def _step(self) -> None:
        """The optimizer's step, or none where the gradient is not finite."""
        finite = self._prepare_plain() if self._plain else True
        step = self.deepspeed.global_steps + 1
        try:
            if self._scaling is not None:
                self._scaling.before_step()
            self.deepspeed.step()
            if self._scaling is not None:
                self._scaling.after_step()
        except Exception as error:
            if AT_MINIMUM not in str(error):
                raise
            raise SharedError(minimum_message(step, self.consecutive_skips + 1)) from None
        if self.lags:
            norm = self.norm
            assert isinstance(norm, Tensor)
            self._not_finite.update(norm.isfinite().logical_not().float())
        if finite and self.deepspeed.was_step_applied():
            self.consecutive_skips = 0
        else:
            self.skipped_steps += 1
            self.consecutive_skips += 1

    def _prepare_plain(self) -> bool:
        """Stage 0 in fp32: clip the gradient, or drop it where it is not finite; False where it was dropped."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._norm = total_norm(gradients)
        finite = self.lags or is_finite(self._norm)
        if finite:
            clip(self.optimizer, gradients, self._norm, self.deepspeed.gradient_clipping(), 1.0)
        else:
            for parameter in parameters:
                parameter.grad = None
        return finite

    def was_not_finite(self, newest: bool = False) -> bool:
        """Of steps that lag: whether the gradient of one before the last was not finite.

        Args:
            newest: or that of the last; waits for the device.
        """
        if newest:
            self._not_finite.settle()
        return self._not_finite.is_set()

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

    def apply(self, optimizer: OptimizerConfig, rate: float) -> None:
        """Set what the next optimizer step computes with.

        Args:
            optimizer: settings of the step's stage; groups without weight decay stay without.
            rate: learning rate, multiplied by a group's ``lr_scale`` where it has one.
        """
        settings = optimizer.completed()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
            for name in ("betas", "eps", "momentum"):
                if name in group:
                    group[name] = getattr(settings, name)
            if group.get("decay", group["weight_decay"] > 0):
                group["weight_decay"] = settings.weight_decay

    @property
    def loss_scale(self) -> float | None:
        """What the loss of the next step is multiplied by; None where nothing is scaled."""
        return self._scaling.scale if self._scaling is not None else None

    @property
    def norm(self) -> float | Tensor | None:
        """Norm of the whole gradient of the last step, before clipping, perhaps still on the device."""
        norm: float | Tensor | None = self._norm if self._plain else self.deepspeed.get_global_grad_norm()
        return norm

    def gradient_norm(self) -> float:
        """Norm of the whole gradient of the last step, before clipping; waits for the device."""
        norm = self.norm
        return float(norm) if norm is not None else float("nan")


def _divide_weights(module: nn.Module, settings: DeepSpeedSettings) -> None:
    """Leave this rank its piece of every weight, one weight after the other.

    DeepSpeed does that too when it makes its engine, but only after it has moved the whole model to the GPU.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(settings.precision, torch.float32)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    deepspeed.init_distributed()  # else it counts one rank when it checks the batch size
    deepspeed.zero.Init(module=module, config_dict_or_path=settings.config)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(get_accelerator().current_device_name())


def _register_outside_reads(step: TrainingStep, device: torch.device) -> None:
    """Tell stage 3 of the weights that a module reads and does not own, so that it gathers them in time.

    Where a model has several heads, a step that does not use one gives its weights gradients of zero; at stage 3 they
    must be whole for that, or the gradients of an earlier step would count once more.
    """
    from deepspeed.runtime.zero import register_external_parameter

    model = step.model
    if len(model.heads) > 1:
        for weight in model.heads.parameters():
            register_external_parameter(step, weight)
    for head in model.heads.values():
        if "word_embedding" in inspect.signature(head.forward).parameters:
            register_external_parameter(head, model.word_embedding)
    embeddings = model.encoder.embeddings
    if embeddings.reads_all_weights(device):
        for weight in embeddings.parameters():
            register_external_parameter(embeddings, weight)
    elif embeddings.segment is not None:
        register_external_parameter(embeddings, embeddings.segment.weight)


def _accumulate_in_fp32(model: nn.Module) -> None:
    """Have autograd add up gradients of 16-bit weights in fp32, which DeepSpeed does at no stage below 1."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad_dtype = torch.float32
