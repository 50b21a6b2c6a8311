"""What a DeepSpeed file says of ZeRO: the keys that there are, their types, and which offload fits which stage."""

from __future__ import annotations

import ctypes.util
import json
import mmap
import os
from pathlib import Path
from typing import Any

from engine.config.cli import nearest

STAGES = (0, 1, 2, 3)
# Left out: what the engine cannot use (hpZ, ZeRO++, ZenFlow, leaf modules), and what its own checkpoints replace.
SWITCHES = (
    "contiguous_gradients", "reduce_scatter", "use_multi_rank_bucket_allreduce", "allgather_partitions", "overlap_comm",
    "ignore_unused_parameters", "round_robin_gradients", "stage3_use_all_reduce_for_fetch_params",
    "stage3_allgather_sequential", "memory_efficient_linear",
)  # fmt: skip
SIZES = (
    "reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)  # fmt: skip
OFFLOADS = ("offload_optimizer", "offload_param")
ZERO_KEYS = ("stage", *SWITCHES, *SIZES, *OFFLOADS)
AIO_KEYS = ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events")
OFFLOAD_KEYS = {
    "offload_optimizer": ("device", "nvme_path", "buffer_count", "pin_memory", "fast_init"),
    "offload_param": ("device", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory"),
}
ONLY_STAGE_3 = ("sub_group_size", "memory_efficient_linear")  # and all that begin with stage3_


def zero_problems(tree: dict[str, Any], path: str) -> list[str]:
    """Everything wrong with ``zero_optimization`` and ``aio`` of a DeepSpeed file; unknown keys are told elsewhere."""
    zero = tree.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    found = []
    if stage not in STAGES or isinstance(stage, bool):
        found.append(f"{path}: zero_optimization.stage is {json.dumps(stage)}; it must be 0, 1, 2 or 3")
        stage = 3
    found += _type_problems(zero, path)
    ignored = [key for key in zero if key.startswith("stage3_") or key in ONLY_STAGE_3]
    if stage < 3 and ignored:
        found.append(
            f"{path}: zero_optimization.{ignored[0]} means nothing at stage {stage}; remove it or take stage 3"
        )
    for key in OFFLOADS:
        found += _offload_problems(zero, key, stage, path)
    if not found and device_of(zero, "offload_param") == "nvme" != device_of(zero, "offload_optimizer"):
        found.append(f"{path}: zero_optimization.offload_param on nvme needs offload_optimizer on nvme too")
    nvme = "nvme" in [device_of(zero, key) for key in OFFLOADS]
    if tree.get("aio") and not nvme:
        found.append(f"{path}: 'aio' means nothing without an offload to nvme; remove it")
    if nvme and not found and ctypes.util.find_library("aio") is None:
        found.append(f"{path}: an offload to nvme needs libaio, which is not installed (apt-get install libaio-dev)")
    return found


def device_of(zero: dict[str, Any], key: str) -> str:
    """Where ``offload_optimizer`` or ``offload_param`` puts things: none, cpu or nvme."""
    block = zero.get(key)
    return (block.get("device") or "none") if isinstance(block, dict) else "none"


def _type_problems(zero: dict[str, Any], path: str) -> list[str]:
    found = []
    for key, value in zero.items():
        if value == "auto":
            continue  # told elsewhere
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in SWITCHES and not isinstance(value, bool):
            found.append(f"{path}: zero_optimization.{key} is {json.dumps(value)}; it must be true or false")
        if key in SIZES and not (is_number and value >= 0 and value == int(value)):
            found.append(
                f"{path}: zero_optimization.{key} is {json.dumps(value)}; it must be a whole number of elements, such "
                "as 5e8"
            )
    return found


def _offload_problems(zero: dict[str, Any], key: str, stage: int, path: str) -> list[str]:
    block, name = zero.get(key), f"{path}: zero_optimization.{key}"
    if block is None:
        return []
    if not isinstance(block, dict):
        return [f"{name} must be an object in braces with a device, found {json.dumps(block)}"]
    known = OFFLOAD_KEYS[key]
    found = [f"{name}.{k} is unknown or unsupported{nearest(k, known)}" for k in block if k not in known]
    device = block.get("device") or "none"
    if device not in ("none", "cpu", "nvme"):
        found.append(f"{name}.device is {json.dumps(device)}; it must be none, cpu or nvme")
    lowest = 3 if device == "nvme" or key == "offload_param" else 1
    if device in ("cpu", "nvme") and stage < lowest:
        stages = "stage 3" if lowest == 3 else "stage 1, 2 or 3"
        found.append(f"{name} on {device} needs ZeRO {stages}, and zero_optimization.stage is {stage}")
    if device == "nvme":
        found += _folder_problems(block.get("nvme_path"), f"{name}.nvme_path")
    elif "nvme_path" in block:
        found.append(f"{name}.nvme_path means nothing on device {device}; remove it")
    return found


def _folder_problems(folder: Any, name: str) -> list[str]:
    """What is wrong with a folder for tensors; it is made where it is missing."""
    if not isinstance(folder, str) or not folder:
        return [f"{name} is missing: name a folder on a local NVMe disk"]
    path = Path(folder).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        _write_around_the_cache(path / f".probe-{os.getpid()}")
    except OSError as error:
        return [
            f"{name} is {folder}, which cannot take tensors ({error.strerror}); name a folder on a local NVMe disk, on "
            "no file system in memory"
        ]
    return []


def _write_around_the_cache(file: Path) -> None:
    """Write a block as DeepSpeed will, by O_DIRECT, which not every file system knows; OSError where it fails."""
    block = mmap.mmap(-1, mmap.PAGESIZE)  # its memory is aligned, as O_DIRECT wants
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | getattr(os, "O_DIRECT", 0), 0o600)
    try:
        os.write(descriptor, block)
    finally:
        os.close(descriptor)
        file.unlink()
