"""Copy fp32 weights and optimizer state between a DeepSpeed engine of any layout and a checkpoint of any layout."""

from __future__ import annotations

from collections.abc import Mapping
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
    for fragment in fragments(engine, model):
        first, last = rank_share(fragment.size, rank, ranks) if replicated else (0, fragment.size)
        state = optimizer.state.get(fragment.key, {})
        steps = max(steps, int(state.get(STEP, 0)))
        if first == last:
            continue
        offset = fragment.offset + first
        shares = {kind: fragment.of(values) for kind, values in _moments(state, fragment.key).items()}
        for kind, values in {WEIGHTS: fragment.weights, **shares}.items():
            name = label(kind, fragment.name, offset)
            tensors[name] = _copy_into(buffers, name, values[first:last])
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()  # copies into pinned memory do not wait
    return tensors, {"name": type(optimizer).__name__, STEP: steps, SCALER: scaler_state(engine)}


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


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _copy_into(buffers: dict[str, Tensor], name: str, tensor: Tensor) -> Tensor:
    """Copy to the buffer of this name, fp32; page-locked where the tensor is on a GPU, so that the copy is fast."""
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
    kinds = sorted(reader.kinds() - {WEIGHTS})
    found = fragments(engine, model)
    optimizer = base_optimizer(engine)
    for key in all_keys(engine, found):
        optimizer.state.pop(key, None)
        if kinds:
            zeros: dict[str, Tensor] = {kind: torch.zeros_like(key.detach(), dtype=torch.float32) for kind in kinds}
            step = torch.tensor(float(manifest.optimizer[STEP]), device=key.device)  # where a fused optimizer keeps it
            optimizer.state[key] = {STEP: step, **zeros}
    for fragment in found:
        _restore_fragment(fragment, reader, kinds, optimizer)
    refresh_model_weights(engine, found)
    restore_scaler(engine, manifest.optimizer.get(SCALER, {}))
    engine.global_steps = manifest.step
    engine.micro_steps = manifest.step * engine.gradient_accumulation_steps()
    engine.global_samples = manifest.step * engine.train_batch_size()


def _restore_fragment(
    fragment: Fragment, reader: FragmentReader, kinds: list[str], optimizer: torch.optim.Optimizer
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
