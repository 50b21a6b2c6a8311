"""The sides that train.py and models.py compare: this engine with its techniques on or off, and transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.model_cases import (
    SEED,
    Case,
    filled_to,
    make_objective,
    on_all_tokens,
    padded,
    transformers_model,
)
from engine.data.batch import PackedBatch
from engine.data.feed import DeviceFeed
from engine.data.rows import Row
from engine.models.compiled import compile_layers
from engine.models.model import Model, build_model
from engine.objectives.base import PretrainingObjective
from engine.train.clipping import clip, total_norm
from kernels import dispatch
from kernels import optimizer as kernels

ROOT = Path(__file__).resolve().parent.parent
CLIP, RATE, DECAY = 1.0, 1e-4, 0.01
ATTENTION = "attention"  # names of operations begin with it in measured.json
IGNORED = -100
OUT_OF_MEMORY = "out of memory"  # in the reason of a side that failed


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is timed.

    Args:
        name: in results.
        program: ours or transformers.
        precision: bf16 or fp32; transformers' bf16 is autocast.
        packed: whether ours leaves padding out.
        targets_only: whether the head of ours sees the targets alone.
        kernels: whether operations run on our kernels where they were measured ahead; else on torch's own.
        attention_kernel: the same of attention.
        fixed_shapes: whether batches of ours are filled up to few shapes.
        ahead: whether batches of ours are prepared by a thread and copied in a stream of their own, and steps on a GPU
            are taken without waiting for it.
        compiled: whether torch.compile runs.
        deepspeed: whether ours is trained by DeepSpeed; else by a plain loop.
    """

    name: str
    program: str = "ours"
    precision: str = "bf16"
    packed: bool = True
    targets_only: bool = True
    kernels: bool = True
    attention_kernel: bool = True
    fixed_shapes: bool = False
    ahead: bool = False
    compiled: bool = False
    deepspeed: bool = True


class Stepper(Protocol):
    """A side that is ready to train."""

    def batch(self, rows: Sequence[Row]) -> Any:
        """What a step takes, on the host or, where it is prepared before the clock runs, on the device."""
        ...

    def step(self, batch: Any) -> torch.Tensor:
        """An optimizer step; the loss, on the device."""
        ...


def switch_kernels(side: Side) -> None:
    """Leave in this process's table of measurements what a side runs on our kernels; before any operation is called."""
    for gains in dispatch.measured().values():
        for operation in list(gains):
            if not (side.attention_kernel if operation.startswith(ATTENTION) else side.kernels):
                del gains[operation]


def build_side(side: Side, case: Case, device: torch.device) -> Stepper:
    """The model and its optimizer on a device."""
    if side.program == "transformers":
        return Transformers(side, case, device)
    return Ours(side, case, device)


class Ours:
    """This engine as the trainer drives it."""

    def __init__(self, side: Side, case: Case, device: torch.device) -> None:
        self._objective, arch = make_objective(case)
        model = build_model(arch, self._objective.make_heads(arch), SEED)
        made = zero_engine if side.deepspeed else PlainLoop
        self._micro_step = made(model, self._objective, side, case.rows, device).micro_step
        if side.compiled:
            compile_layers(model)
        self._side, self._case, self._device = side, case, device
        self._feed = DeviceFeed(device) if side.ahead else None

    def batch(self, rows: Sequence[Row]) -> PackedBatch:
        """Collated and masked, on the host."""
        batch = self._objective.collate(rows)
        if not self._side.packed:
            batch = filled_to(batch, self._case.length)
        return batch if self._side.targets_only else on_all_tokens(batch)

    def step(self, batch: PackedBatch) -> torch.Tensor:
        """Move the batch to the device and train on it."""
        torch.manual_seed(SEED)
        counts = {name: torch.full((), float(count), device=self._device) for name, count in batch.counts.items()}
        there = batch.to(self._device) if self._feed is None else next(self._feed.batches([batch]))
        terms = self._micro_step(there, counts, last=True)
        return torch.stack([term.loss_sum.detach() / counts[name] for name, term in terms.items()]).sum()


def zero_engine(model: Model, objective: PretrainingObjective, side: Side, rows: int, device: torch.device) -> Any:
    """DeepSpeed at stage 1 (fp32: stage 0) on one rank."""
    from engine.config.deepspeed_json import complete_deepspeed_config, read_deepspeed_json
    from engine.config.optimizer import OptimizerConfig
    from engine.config.train import BatchShape
    from engine.optim.build import build_optimizer
    from engine.train.distributed import describe_device, init_distributed
    from engine.train.zero import ZeroEngine

    init_distributed()
    tree = read_deepspeed_json(str(ROOT / "ds_configs" / f"{side.precision}.json"))
    settings = complete_deepspeed_config(tree, BatchShape(rows, rows, 1), describe_device())
    optimizer = build_optimizer(model, OptimizerConfig(), settings, device.type)
    return ZeroEngine(model, objective, optimizer, settings, lags=side.ahead and device.type == "cuda")


def why_no_deepspeed() -> str:
    """Why the engine cannot run under DeepSpeed here; empty where it can."""
    absent = [name for name in ("deepspeed", "jsonargparse") if importlib.util.find_spec(name) is None]
    return f"without {', '.join(absent)}, in a plain loop" if absent else ""


class PlainLoop:
    """What DeepSpeed does for one rank at stage 1, without it: weights in bf16, masters and moments in fp32."""

    def __init__(
        self, model: Model, objective: PretrainingObjective, side: Side, rows: int, device: torch.device
    ) -> None:
        self._model, self._objective = model.to(device).train(), objective
        self._weights = list(model.parameters())
        self._masters = [weight.detach().clone() for weight in self._weights]
        for master in self._masters:
            master.grad = torch.empty_like(master)
        if side.precision == "bf16":
            model.to(torch.bfloat16)
        self._optimizer: torch.optim.Optimizer
        if dispatch.has_kernel(kernels.ADAMW, device):
            self._optimizer = kernels.AdamW(self._masters, RATE, weight_decay=DECAY)
        else:
            self._optimizer = torch.optim.AdamW(self._masters, lr=RATE, weight_decay=DECAY, fused=True)

    def micro_step(self, batch: PackedBatch, counts: dict[str, torch.Tensor], last: bool) -> dict[str, Any]:
        """As the engine's own, for a step of one micro-batch."""
        terms = self._objective.losses(self._model, batch)
        sum(term.weight * term.loss_sum / counts[name] for name, term in terms.items()).backward()
        with torch.no_grad():
            self._step()
        return dict(terms)

    def _step(self) -> None:
        gradients = [master.grad for master in self._masters if master.grad is not None]
        torch._foreach_copy_(gradients, [weight.grad for weight in self._weights])
        clip(self._optimizer, gradients, total_norm(gradients), CLIP, 1.0)
        self._optimizer.step()
        torch._foreach_copy_(self._weights, self._masters)
        for weight in self._weights:
            weight.grad = None


class Transformers:
    """The loop that people run: padded batches, autocast, fused AdamW, clipping."""

    def __init__(self, side: Side, case: Case, device: torch.device) -> None:
        self._objective, arch = make_objective(case)
        with device:
            self._model = transformers_model(case, arch).to(device).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
        self._case, self._device = case, device
        self._autocast = side.precision == "bf16"
        self._masked = case.texts != ("full",)  # sdpa may take its flash kernel where there is no mask
        self._ready: dict[int, dict[str, torch.Tensor]] = {}
        self._loss = compiled_loss(self._model) if side.compiled else lambda **batch: self._model(**batch).loss

    def batch(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Padded, on the device, made once."""
        if id(rows) not in self._ready:
            batch = padded(self._objective.collate(rows), self._objective.name, self._case.length, self._device)
            self._ready[id(rows)] = batch if self._masked else {k: v for k, v in batch.items() if k != "attention_mask"}
        return self._ready[id(rows)]

    def step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Train on it."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            loss = self._loss(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()


def compiled_loss(model: Any, backend: str = "inductor") -> Callable[..., torch.Tensor]:
    """The loss of a model of transformers, by torch.compile in three parts: embeddings, layer, head with loss.

    All layers share one compiled code, so that it is there in seconds; a model compiled as a whole takes a minute or
    more, and gains what little can be fused over the border of a layer.
    """
    body = model.bert if hasattr(model, "bert") else model.transformer
    layers: Iterable[Any] = body.encoder.layer if hasattr(model, "bert") else body.h
    for layer in layers:
        layer.compile(backend=backend)
    if hasattr(model, "bert"):
        body.embeddings.compile(backend=backend)

    @partial(torch.compile, backend=backend)
    def of_hidden(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if hasattr(model, "bert"):
            logits = model.cls(hidden)
        else:
            logits, labels = model.lm_head(hidden[:, :-1]), labels[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)

    def loss(labels: torch.Tensor, **batch: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = of_hidden(body(**batch)[0], labels)
        return hidden

    return loss
