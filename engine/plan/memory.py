"""Memory of one rank at the moment of a step at which it is most, part by part."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from engine.config.arch import ArchConfig
from engine.config.deepspeed_json import DeepSpeedSettings
from engine.config.deepspeed_zero import device_of
from engine.config.optimizer import OptimizerConfig
from engine.data.batch import PackedBatch
from engine.data.filler import filled
from engine.models.model import Model
from engine.objectives.base import Objective
from engine.optim.groups import freeze
from engine.plan.account import Account
from engine.plan.batches import planned_batch, planned_objective
from engine.plan.layouts import Layout, Place, Replicated
from engine.plan.micro_batch import Trace, trace_micro_batch
from engine.plan.partitioned import Bf16Partitioned, Partitioned, ranks_that_differ
from engine.plan.sizes import ModelSizes, model_without_memory, sizes_of
from engine.plan.stage3 import Stage3
from engine.train.timeline import StepSettings

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank.

    Attributes:
        parts: memory of the device at the moment at which it is most: weights, gradients, optimizer (fp32 weights and
            moments), activations (with what operations need for a moment), buffers (of communication).
        host_parts: memory of the host, where offload puts things there; empty where there is none.
    """

    parts: dict[str, int]
    host_parts: dict[str, int]

    @property
    def total(self) -> int:
        """All of the device."""
        return sum(self.parts.values())

    @property
    def host_total(self) -> int:
        """All of the host."""
        return sum(self.host_parts.values())


def estimate_memory(
    *,
    arch: ArchConfig,
    objective: str,
    settings: DeepSpeedSettings,
    optimizer: OptimizerConfig,
    world_size: int,
    seq_length: int,
    micro_batch_size: int,
    masking_rate: float = 0.15,
    activation_checkpointing: bool = False,
    device_type: str = "cuda",
    lengths: Sequence[int] | None = None,
) -> MemoryEstimate:
    """What one rank's step needs, without a GPU, data or memory of that size; takes about a second.

    What torch's allocator hands out is counted. Not in it: the CUDA context, NCCL's own buffers, fragmentation.

    Args:
        arch: the architecture, its vocabulary included.
        objective: mlm, mlm,nsp, mlm,sop or lm.
        settings: the completed DeepSpeed file; gradient accumulation is read from it.
        optimizer: the optimizer.
        world_size: ranks.
        seq_length: tokens of a row.
        micro_batch_size: rows of a forward pass of one rank.
        masking_rate: share of the tokens that become targets.
        activation_checkpointing: whether layers are computed again in the backward pass.
        device_type: cuda or cpu.
        lengths: tokens of each sequence of the micro-batch; where not given, every row is one sequence.

    Raises:
        ValueError: if the architecture cannot learn the objective.
    """
    sizes = _sizes(arch, objective, json.dumps(asdict(optimizer)))
    rows = tuple(lengths or [seq_length] * micro_batch_size)
    frozen = tuple(optimizer.freeze)
    trace = _trace(
        arch, objective, settings.precision, rows, masking_rate, activation_checkpointing, device_type, frozen
    )
    return _of_most(sizes, trace, settings, optimizer, world_size, device_type)


def estimate_phase(
    *,
    arch: ArchConfig,
    objective: str,
    settings: DeepSpeedSettings,
    steps: tuple[StepSettings, StepSettings],
    world_size: int,
    activation_checkpointing: bool,
    device_type: str,
) -> MemoryEstimate:
    """What the steps of a stretch of a run need.

    Args:
        arch: the architecture.
        objective: its name.
        settings: the completed DeepSpeed file, of whatever batch.
        steps: the first and the last; batch and micro-batch are those of the first.
        world_size: ranks.
        activation_checkpointing: whether layers are computed again in the backward pass.
        device_type: cuda or cpu.
    """
    first, last = steps
    shape = first.shape(world_size)
    batch = {
        "train_batch_size": shape.batch_size,
        "train_micro_batch_size_per_gpu": shape.micro_batch_size,
        "gradient_accumulation_steps": shape.accumulation,
    }
    rates = [rate for rate in (first.masking_rate, last.masking_rate) if rate is not None]
    return estimate_memory(
        arch=arch,
        objective=objective,
        settings=replace(settings, config={**settings.config, **batch}),
        optimizer=first.optimizer,
        world_size=world_size,
        seq_length=first.seq_length,
        micro_batch_size=first.micro_batch_size,
        masking_rate=max(rates, default=0.0),
        activation_checkpointing=activation_checkpointing,
        device_type=device_type,
    )


def estimate_batch(
    *,
    model: Model,
    objective: Objective,
    batch: PackedBatch,
    settings: DeepSpeedSettings,
    optimizer: OptimizerConfig,
    world_size: int,
    activation_checkpointing: bool,
    device_type: str,
) -> MemoryEstimate:
    """The same for any objective and any micro-batch, such as those of fine-tuning.

    Args:
        model: on the device ``meta``; it is changed.
        objective: what is learned.
        batch: a micro-batch; only its sizes matter.
        settings: the completed DeepSpeed file.
        optimizer: the optimizer.
        world_size: ranks.
        activation_checkpointing: whether layers are computed again in the backward pass.
        device_type: cuda or cpu.
    """
    sizes = sizes_of(model, optimizer)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[settings.precision])
    if device_type != "cpu":
        batch = filled(batch)
    trace = trace_micro_batch(model, objective, batch, device_type, activation_checkpointing)
    return _of_most(sizes, trace, settings, optimizer, world_size, device_type)


def _of_most(
    sizes: ModelSizes,
    trace: Trace,
    settings: DeepSpeedSettings,
    optimizer: OptimizerConfig,
    world_size: int,
    device_type: str,
) -> MemoryEstimate:
    """What the rank that needs most needs."""
    zero = settings.config.get("zero_optimization", {})
    offloads = device_of(zero, "offload_optimizer"), device_of(zero, "offload_param")
    place = Place(settings, optimizer, world_size, *offloads, device_type)
    return max((_replay(sizes, place, trace, rank) for rank in _ranks(place)), key=lambda found: found.total)


def _ranks(place: Place) -> Sequence[int]:
    """Ranks that may need most."""
    return ranks_that_differ(place.world_size) if _is_partitioned(place) else [0]


def _is_partitioned(place: Place) -> bool:
    return place.settings.stage in (1, 2) and not _adds_up_everything(place)


def _adds_up_everything(place: Place) -> bool:
    """Whether DeepSpeed takes its own wrapper for bf16 at stage 1."""
    return (
        place.settings.stage == 1
        and place.settings.precision == "bf16"
        and place.fp32_sums
        and place.offload_optimizer == "none"
    )


def _replay(sizes: ModelSizes, place: Place, trace: Trace, rank: int) -> MemoryEstimate:
    """A step in the layout that DeepSpeed chooses."""
    account, host = Account(), Account()
    layout: Layout
    if _is_partitioned(place):
        layout = Partitioned(sizes, place, account, host, rank)
    elif _adds_up_everything(place):
        layout = Bf16Partitioned(sizes, place, account, host)
    else:
        layout = (Stage3 if place.settings.stage == 3 else Replicated)(sizes, place, account, host)
    layout.run(trace)
    return MemoryEstimate(account.at_peak, {name: size for name, size in host.at_peak.items() if size})


@functools.lru_cache(maxsize=64)
def _sizes(arch: ArchConfig, objective: str, optimizer: str) -> ModelSizes:
    """The parameters of a model under an optimizer, given as JSON."""
    return sizes_of(
        model_without_memory(arch, planned_objective(objective, arch)), OptimizerConfig(**json.loads(optimizer))
    )


@functools.lru_cache(maxsize=64)
def _trace(
    arch: ArchConfig,
    objective: str,
    precision: str,
    lengths: tuple[int, ...],
    masking_rate: float,
    checkpoint_layers: bool,
    device_type: str,
    frozen: tuple[str, ...],
) -> Trace:
    """A micro-batch, which is the same at every stage."""
    planned = planned_objective(objective, arch)
    model = model_without_memory(arch, planned)
    freeze(dict(model.named_parameters()), frozen)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[precision])
    batch = planned_batch(objective, lengths, masking_rate)
    if device_type != "cpu":
        batch = filled(batch, sum(lengths), max(lengths))
    return trace_micro_batch(model, planned, batch, device_type, checkpoint_layers)


def number_of_parameters(arch: ArchConfig, objective: str) -> int:
    """Parameters of a model with its heads, padding of the vocabulary included."""
    return _sizes(arch, objective, json.dumps(asdict(OptimizerConfig()))).all
