"""Copy fp32 weights and optimizer state between a DeepSpeed engine of any layout and a checkpoint of any layout."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.files import WEIGHTS, CheckpointManifest, FragmentReader, label
from engine.checkpoint.fragments import (
    Fragment,
    all_keys,
    base_optimizer,
    fragments,
    is_replicated,
    refresh_model_weights,
    resident,
)

STEP, SCALER = "step", "loss_scaler"
_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def model_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Shape of every parameter by name, of the whole one where ZeRO stage 3 holds a piece."""
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters()}


def rank_share(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """First and last + 1 element of what one of several ranks writes of something that all of them hold."""
    return size * rank // ranks, size * (rank + 1) // ranks


def snapshot(
    engine: Any, model: nn.Module, buffers: dict[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copy this rank's share of weights and optimizer state to host memory.

    Call it between optimizer steps. Where every rank holds everything, each takes an equal slice of each parameter.

    Args:
        engine: the DeepSpeed engine.
        model: the module whose parameter names the checkpoint uses.
        buffers: host memory of an earlier snapshot, by label, which is written over; it is filled where it is empty.

    Returns:
        Fragments by label (fp32, on the CPU), and the optimizer's own numbers.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    optimizer, replicated = base_optimizer(engine), is_replicated(engine)
    buffers = {} if buffers is None else buffers
    tensors: dict[str, Tensor] = {}
    steps = 0
    for key, pieces in by_key(fragments(engine, model)):
        with resident(engine, key):
            state = optimizer.state.get(key, {})
            steps = max(steps, int(state.get(STEP, 0)))
            sources = {WEIGHTS: key.detach(), **_moments(state, key)}
            for fragment in pieces:
                first, last = rank_share(fragment.size, rank, ranks) if replicated else (0, fragment.size)
                for kind, values in sources.items() if first < last else ():
                    name = label(kind, fragment.name, fragment.offset + first)
                    tensors[name] = _copy_into(buffers, name, fragment.of(values)[first:last])
    for name, (offset, values) in frozen_weights(model).items():
        tensors[label(WEIGHTS, name, offset)] = values
    stepped = any(int(state.get(STEP, 0)) for state in optimizer.state.values())
    for number, ((kind, parameter), values) in enumerate(_replicated_state(optimizer).items()):
        if stepped and number % ranks == rank:
            name = label(kind, parameter, 0)
            tensors[name] = _copy_into(buffers, name, values)
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()  # copies into pinned memory do not wait
    return tensors, {"name": type(optimizer).__name__, STEP: steps, SCALER: scaler_state(engine)}


def by_key(found: Iterable[Fragment]) -> Iterator[tuple[Tensor, list[Fragment]]]:
    """Fragments of each key, which follow one another, so that each is brought into memory once."""
    for _, pieces in itertools.groupby(found, key=lambda fragment: id(fragment.key)):
        group = list(pieces)
        yield group[0].key, group


def keep_frozen_weights(model: nn.Module) -> None:
    """Keep this rank's share of the parameters that do not train, in fp32: DeepSpeed rounds them to 16 bits."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    kept: dict[str, tuple[int, Tensor]] = {}
    for name, parameter in model.named_parameters():
        first, last = rank_share(parameter.numel(), rank, ranks)
        if not parameter.requires_grad and first < last:
            kept[name] = first, _host_copy(parameter.detach().reshape(-1)[first:last])
    vars(model)["frozen_weights"] = kept


def frozen_weights(model: nn.Module) -> dict[str, tuple[int, Tensor]]:
    """By name, the offset and the values of this rank's share of the parameters that do not train."""
    return getattr(model, "frozen_weights", {})


def _restore_frozen(model: nn.Module, reader: FragmentReader) -> None:
    """Read the parameters that do not train; at stage 3 rank 0 reads each whole and hands out the pieces."""
    for name, (offset, values) in frozen_weights(model).items():
        values.copy_(reader.read(WEIGHTS, name, offset, values.numel()))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        with _whole(parameter):
            if not hasattr(parameter, "ds_shape") or torch.distributed.get_rank() == 0:
                parameter.copy_(reader.read(WEIGHTS, name, 0, parameter.numel()).view(parameter.shape))


def _whole(parameter: nn.Parameter) -> contextlib.AbstractContextManager[Any]:
    """Inside it a parameter is whole, also at stage 3, and what is written to it reaches all ranks."""
    if not hasattr(parameter, "ds_shape"):
        return contextlib.nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    gathered: contextlib.AbstractContextManager[Any] = GatheredParameters([parameter], modifier_rank=0)
    return gathered


def scaler_state(engine: Any) -> dict[str, float]:
    """Where DeepSpeed's dynamic loss scaler is; empty where nothing is scaled. The same on every rank."""
    scaler = _dynamic_scaler(engine)
    return {} if scaler is None else {name: getattr(scaler, name) for name in _SCALER_FIELDS}


def restore_scaler(engine: Any, state: Mapping[str, float]) -> None:
    """Put the dynamic loss scaler where it was; one that was not saved, or is not there now, starts anew."""
    scaler = _dynamic_scaler(engine)
    if scaler is not None:
        for name in _SCALER_FIELDS if state else ():
            setattr(scaler, name, state[name])


def _dynamic_scaler(engine: Any) -> Any | None:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return scaler if getattr(scaler, "dynamic", False) else None


def _replicated_state(optimizer: torch.optim.Optimizer) -> dict[tuple[str, str], Tensor]:
    """What an optimizer keeps of parameters on every rank alike, by kind and name, such as Adafactor's factors."""
    find = getattr(optimizer, "replicated_state", None)
    return {} if find is None else find()


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _copy_into(buffers: dict[str, Tensor], name: str, tensor: Tensor) -> Tensor:
    """Copy to the buffer of this name, fp32; page-locked where the tensor is on a GPU, so that the copy is fast.

    torch rounds a page-locked buffer up to a power of two bytes: at worst they take twice what they hold.
    """
    if name not in buffers or buffers[name].shape != tensor.shape:
        buffers[name] = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=tensor.is_cuda)
    return buffers[name].copy_(tensor.detach(), non_blocking=True)


def _moments(state: dict[str, Any], key: Tensor) -> dict[str, Tensor]:
    """States that are shaped like the key, such as exp_avg."""
    return {
        name: value
        for name, value in state.items()
        if name != STEP and torch.is_tensor(value) and value.numel() == key.numel()
    }


def model_snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Fragments of a model that no optimizer has touched: whole parameters, fp32."""
    return {label(WEIGHTS, name, 0): _host_copy(p).view(-1) for name, p in model.named_parameters()}


@torch.no_grad()
def restore(engine: Any, model: nn.Module, folder: Path, manifest: CheckpointManifest) -> None:
    """Fill an engine from a checkpoint; all ranks must call it.

    It works before the first step, when DeepSpeed has no optimizer state yet, and after DeepSpeed's own start at
    stage 0, which takes an optimizer step on zero gradients and makes fp32 weights from rounded ones.

    Raises:
        ValueError: if the checkpoint is of another model.
    """
    refuse_other_model(model_shapes(model), manifest.shapes, f"checkpoint {folder}")
    reader = FragmentReader([folder / name for name in manifest.files])
    found = fragments(engine, model)
    optimizer = base_optimizer(engine)
    replicated = _replicated_state(optimizer)
    elsewhere = {WEIGHTS, *(kind for kind, _ in replicated)}
    pieces = {id(key): group for key, group in by_key(found)}
    for key in all_keys(engine, found):
        held = pieces.get(id(key), [])
        # Which kinds there are can differ by parameter; a key that is all padding may have any.
        kinds = set().union(*(reader.kinds(fragment.name) for fragment in held)) if held else reader.kinds()
        with resident(engine, key, written=True):
            _reset_state(optimizer, key, sorted(kinds - elsewhere), manifest)
            for fragment in held:
                _restore_fragment(fragment, reader, kinds - elsewhere, optimizer)
    for (kind, name), values in replicated.items():
        there = kind in reader.kinds(name)  # not before the first step
        values.copy_(reader.read(kind, name, 0, values.numel()) if there else torch.zeros_like(values))
    _restore_frozen(model, reader)
    refresh_model_weights(engine, found)
    restore_scaler(engine, manifest.optimizer.get(SCALER, {}))
    engine.global_steps = manifest.step
    engine.micro_steps = manifest.step * engine.gradient_accumulation_steps()
    engine.global_samples = manifest.step * engine.train_batch_size()


def _reset_state(optimizer: torch.optim.Optimizer, key: Tensor, kinds: list[str], manifest: CheckpointManifest) -> None:
    """Zeros for the optimizer's state of a key, in the tensors that are there: DeepSpeed may know them by identity."""
    steps = int(manifest.optimizer.get(STEP, 0))
    if not steps:
        optimizer.state.pop(key, None)
        return
    state = optimizer.state[key]
    for name in [name for name in state if name not in kinds]:
        del state[name]
    for kind in kinds:
        if kind in state and state[kind].numel() == key.numel():
            state[kind].zero_()
        else:
            state[kind] = torch.zeros_like(key.detach(), dtype=torch.float32)
    # torch counts in tensors, a fused optimizer on the device of the key; all others count in numbers.
    in_tensors = type(optimizer).__module__.startswith("torch.")
    state[STEP] = torch.tensor(float(steps), device=key.device) if in_tensors else steps


def _restore_fragment(
    fragment: Fragment, reader: FragmentReader, kinds: set[str], optimizer: torch.optim.Optimizer
) -> None:
    where = (fragment.name, fragment.offset, fragment.size)
    fragment.weights.copy_(reader.read(WEIGHTS, *where))
    for kind in kinds:
        fragment.of(optimizer.state[fragment.key][kind]).copy_(reader.read(kind, *where))


def refuse_other_model(ours: dict[str, list[int]], theirs: dict[str, list[int]], what: str) -> None:
    """ValueError listing how the parameters of ``what`` differ from the model's."""
    if ours == theirs:
        return
    lines = []
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            lines.append(f"{name}: {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} in this model")
    more = f" (and {len(lines) - 4} more)" if len(lines) > 4 else ""
    raise ValueError(
        f"{what} is of another model: " + "; ".join(lines[:4]) + more + ". Give the --model it was made with, "
        "or another --train.output"
    )
