"""Memory of one rank at the moment of a step at which it is most, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.config.arch import ArchConfig
from engine.config.deepspeed_json import DeepSpeedSettings
from engine.config.deepspeed_zero import device_of
from engine.config.optimizer import OptimizerConfig
from engine.plan.account import Account
from engine.plan.batches import planned_batch, planned_objective
from engine.plan.layouts import Place, layout_for
from engine.plan.sizes import model_without_memory, sizes_of
from engine.plan.trace import trace_micro_batch

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
    planned = planned_objective(objective, arch)
    model = model_without_memory(arch, planned)
    sizes = sizes_of(model, optimizer)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[settings.precision])
    batch = planned_batch(objective, lengths or [seq_length] * micro_batch_size, masking_rate)
    trace = trace_micro_batch(model, planned, batch, device_type, activation_checkpointing)
    zero = settings.config.get("zero_optimization", {})
    place = Place(
        settings, optimizer, world_size, device_of(zero, "offload_optimizer"), device_of(zero, "offload_param")
    )
    account, host = Account(), Account()
    layout_for(sizes, place, account, host).run(trace)
    return MemoryEstimate(account.at_peak, {name: size for name, size in host.at_peak.items() if size})
