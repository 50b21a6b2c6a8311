"""Where DeepSpeed 0.19.8 keeps fp32 weights and optimizer state.

Whatever the ZeRO stage and precision, a rank's optimizer steps on a few *key* tensors (they index
``optimizer.state``), and every key is a concatenation of pieces of named parameters. ``fragments`` lists the pieces;
all else about checkpoints is the same for every layout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PLAIN, UNFUSED, FLAT, ZERO12, BF16, ZERO3 = "plain", "unfused", "flat", "zero12", "bf16", "zero3"
_WRAPPERS = {
    "FP16_UnfusedOptimizer": UNFUSED,
    "FP16_Optimizer": FLAT,
    "DeepSpeedZeroOptimizer": ZERO12,
    "BF16_Optimizer": BF16,
    "DeepSpeedZeroOptimizer_Stage3": ZERO3,
}


@dataclass(frozen=True, eq=False)
class Fragment:
    """A piece of a parameter that this rank's optimizer holds.

    Attributes:
        name: the parameter.
        offset: first element of the piece in the flattened parameter.
        size: elements.
        key: fp32 tensor that the optimizer steps on.
        key_offset: first element of the piece in the flattened key.
        parameter: what the forward pass reads.
    """

    name: str
    offset: int
    size: int
    key: Tensor
    key_offset: int
    parameter: nn.Parameter

    @property
    def weights(self) -> Tensor:
        """View [size] of the fp32 weights."""
        return self.of(self.key)

    def of(self, state: Tensor) -> Tensor:
        """View [size] of an optimizer state that is shaped like the key."""
        return state.detach().view(-1).narrow(0, self.key_offset, self.size)


def layout_of(engine: Any) -> str:
    """Which of DeepSpeed's optimizer wrappers is in use; one that is not known is refused, not guessed."""
    wrapper = engine.optimizer
    if wrapper is engine.basic_optimizer:
        return PLAIN
    name = type(wrapper).__name__
    if name not in _WRAPPERS:
        raise ValueError(
            f"DeepSpeed chose {name} for this configuration, which checkpoints do not know; change ds_config"
        )
    return _WRAPPERS[name]


def is_replicated(engine: Any) -> bool:
    """Whether every rank holds all weights and states (ZeRO stage 0)."""
    return layout_of(engine) in (PLAIN, UNFUSED, FLAT)


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer under DeepSpeed's wrapper."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def fragments(engine: Any, model: nn.Module) -> list[Fragment]:
    """Every piece of every trainable parameter on this rank.

    Args:
        engine: the DeepSpeed engine.
        model: the module whose parameter names the checkpoint uses; part of the engine's module.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return list(_WALKS[layout_of(engine)](engine, names))


def _plain(engine: Any, names: dict[int, str]) -> Iterator[Fragment]:
    """Stage 0 in fp32: a parameter is its own key."""
    for group in engine.optimizer.param_groups:
        for p in group["params"]:
            yield Fragment(names[id(p)], 0, p.numel(), p, 0, p)


def _unfused(engine: Any, names: dict[int, str]) -> Iterator[Fragment]:
    """Stage 0 in bf16 or fp16: an fp32 copy of each parameter."""
    for params, keys in zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True):
        for p, key in zip(params, keys, strict=True):
            yield Fragment(names[id(p)], 0, p.numel(), key, 0, p)


def _flat(engine: Any, names: dict[int, str]) -> Iterator[Fragment]:
    """Stage 0 in bf16 or fp16 under a fused Adam of DeepSpeed or apex: one fp32 copy of each parameter group."""
    for params, key in zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups_flat, strict=True):
        key_offset = 0
        for p in params:
            yield Fragment(names[id(p)], 0, p.numel(), key, key_offset, p)
            key_offset += p.numel()


def _zero12(engine: Any, names: dict[int, str]) -> Iterator[Fragment]:
    """Stages 1 and 2: one flat buffer per parameter group, cut into a partition per rank.

    DeepSpeed's own ``_hp_mapping`` is not used: with ``round_robin_gradients`` it is built from the wrong order.
    """
    wrapper = engine.optimizer
    for group, key in enumerate(wrapper.single_partition_of_fp32_groups):
        rank = torch.distributed.get_rank(wrapper.real_dp_process_group[group])
        begin, end = key.numel() * rank, key.numel() * (rank + 1)
        for p, at in zip(
            wrapper.round_robin_bit16_groups[group], wrapper.round_robin_bit16_offsets[group], strict=True
        ):
            first, last = max(at, begin), min(at + p.numel(), end)
            if first < last:
                yield Fragment(names[id(p)], first - at, last - first, key, first - begin, p)


def _bf16(engine: Any, names: dict[int, str]) -> Iterator[Fragment]:
    """Stage 1 in bf16 with fp32 accumulation: the same partitions, and here DeepSpeed's map is right."""
    wrapper = engine.optimizer
    for params, key in zip(wrapper.bf16_groups, wrapper.fp32_groups_flat_partition, strict=True):
        for p in params:
            mapping = p._hp_mapping
            if mapping is not None:  # None: no piece of it is on this rank
                low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield Fragment(names[id(p)], low.start, low.numel, key, high.start, p)


def _zero3(engine: Any, names: dict[int, str]) -> Iterator[Fragment]:
    """Stage 3: a key per sub-group; each parameter is padded to a multiple of the ranks and cut into equal pieces."""
    wrapper = engine.optimizer
    for params, key in zip(wrapper.fp16_groups, wrapper.fp32_partitioned_groups_flat, strict=True):
        key_offset = 0
        for p in params:
            share = p.partition_numel()
            offset = share * torch.distributed.get_rank(p.ds_process_group)
            size = min(share, p.ds_numel - offset)
            if size > 0:  # else this rank holds nothing but padding of it
                yield Fragment(names[id(p)], offset, size, key, key_offset, p)
            key_offset += share


_WALKS = {PLAIN: _plain, UNFUSED: _unfused, FLAT: _flat, ZERO12: _zero12, BF16: _bf16, ZERO3: _zero3}


@contextlib.contextmanager
def resident(engine: Any, key: Tensor, written: bool = False) -> Iterator[None]:
    """Have a key and its optimizer state in memory, where they may be on NVMe; elsewhere there is nothing to do.

    Args:
        engine: the DeepSpeed engine.
        key: one of its keys.
        written: whether they are changed meanwhile, or get new state tensors.
    """
    wrapper = engine.optimizer
    number = _swapped_number(wrapper, key) if layout_of(engine) == ZERO3 else None
    if number is None:
        yield
        return
    wrapper._optimizer_states_and_gradient_swap_in(number)
    yield
    if written:
        wrapper._optimizer_states_and_gradient_swap_out(number)
    else:
        wrapper.optimizer_swapper.release_swap_buffers(key)


def _swapped_number(wrapper: Any, key: Tensor) -> int | None:
    """Number of the sub-group of a key that is on NVMe; DeepSpeed leaves small ones in memory."""
    number = next(n for n, other in enumerate(wrapper.fp32_partitioned_groups_flat) if other is key)
    return number if wrapper._swappable_optimizer_subgroup(number) else None


def all_keys(engine: Any, found: list[Fragment]) -> list[Tensor]:
    """All keys of this rank, those too that hold nothing but padding."""
    layout = layout_of(engine)
    if layout == ZERO12:
        return list(engine.optimizer.single_partition_of_fp32_groups)
    if layout == ZERO3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    if layout == BF16:
        return list(engine.optimizer.fp32_groups_flat_partition)
    return list({id(fragment.key): fragment.key for fragment in found}.values())


def refresh_model_weights(engine: Any, found: list[Fragment]) -> None:
    """After the fp32 weights were overwritten: give the forward pass the new ones. All ranks must call it."""
    layout, wrapper = layout_of(engine), engine.optimizer
    if layout in (UNFUSED, FLAT):
        for fragment in found:
            flat = fragment.parameter.data.view(-1)
            flat.narrow(0, fragment.offset, fragment.size).copy_(fragment.weights)
    elif layout in (ZERO12, BF16):
        wrapper.update_lp_params()
    elif layout == ZERO3:
        wrapper._partition_all_parameters()  # gathered copies are old
        for number, key in enumerate(wrapper.fp32_partitioned_groups_flat):
            with resident(engine, key):
                wrapper._reassign_or_swap_out_partitioned_parameters(number)
        if wrapper.persistent_parameters:
            wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)
