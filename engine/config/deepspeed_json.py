"""Read a DeepSpeed JSON file, check it against what this engine owns and what DeepSpeed 0.19.8 does, and complete it.

DeepSpeed owns precision, ZeRO, offload, clipping and communication; the engine owns all else. A key that DeepSpeed
would ignore in silence is an error here.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config.cli import UsageError, nearest
from engine.config.deepspeed_zero import AIO_KEYS, ZERO_KEYS, zero_problems
from engine.config.train import BatchShape

BATCH_KEYS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
}
OWNED_BY_US = {
    "optimizer": "--train.optimizer.*",
    "scheduler": "--train.schedule.*",
    "tensorboard": "--train.tensorboard",
    "csv_monitor": "the run folder's metrics.jsonl",
    "wandb": "the run folder's metrics.jsonl",
    "comet": "the run folder's metrics.jsonl",
    "steps_per_print": "--train.log_every",
    "zero_allow_untested_optimizer": "--train.optimizer.name (set for you)",
    "checkpoint": "--train.save_every (checkpoints are the engine's own)",
    "data_efficiency": "--data.*",
    "activation_checkpointing": "--train.activation_checkpointing",
}
REMOVED = (
    "amp", "compression_training", "curriculum_learning", "eigenvalue", "elasticity", "graph_harvesting", "nebula",
    "progressive_layer_drop", "quantize_training", "sparse_attention", "sparse_gradients",
)  # fmt: skip
KNOWN = (
    "aio", "bf16", "bfloat16", "check_overflow", "comms_logger", "communication_data_type", "data_types",
    "disable_allgather", "dump_state", "flops_profiler", "fp16", "gradient_clipping", "gradient_predivide_factor",
    "memory_breakdown", "prescale_gradients", "timers", "wall_clock_breakdown", "zero_optimization",
)  # fmt: skip
# Keys below the top level.
KNOWN_BELOW = {
    "bf16": ("enabled", "immediate_grad_update", "check_grad_overflow"),
    "fp16": (
        "enabled", "auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis",
        "consecutive_hysteresis", "min_loss_scale",
    ),
    "data_types": ("grad_accum_dtype",),
    "zero_optimization": ZERO_KEYS,
    "aio": AIO_KEYS,
}  # fmt: skip
BLOCKS = ("aio", "bf16", "bfloat16", "data_types", "fp16", "zero_optimization")


@dataclass(frozen=True)
class Device:
    """What the accelerator of this process can do; filled in by the caller so that this file needs no torch."""

    type: str  # "cuda" or "cpu"
    has_bf16: bool
    has_fp16: bool = True


@dataclass(frozen=True)
class DeepSpeedSettings:
    """A checked configuration, ready for ``deepspeed.initialize``.

    Attributes:
        config: the completed JSON tree.
        precision: fp32, bf16 or fp16: the type of weights and activations.
        notes: what was changed, in sentences for the log.
        fp32_gradients: whether the engine has 16-bit weights' gradients added up in fp32, which DeepSpeed cannot do at
            stage 0.
    """

    config: dict[str, Any]
    precision: str
    notes: tuple[str, ...] = ()
    fp32_gradients: bool = False

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return int(self.config.get("zero_optimization", {}).get("stage", 0))


def read_deepspeed_json(path: str) -> dict[str, Any]:
    """Read the file; UsageError with the nearest existing file where it is missing, or the place of a syntax error."""
    file = Path(path)
    if not file.is_file():
        folder = file.parent if file.parent.is_dir() else Path("ds_configs")
        names = sorted(str(found) for found in folder.glob("*.json"))
        raise UsageError(
            f"--ds_config {path}: no such file{nearest(path, names)}"
            + (f" (there are {', '.join(names)})" if names else "")
        )
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"--ds_config {path} is not a text file: {error}") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"--ds_config {path} is not JSON: line {error.lineno}: {error.msg}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"--ds_config {path}: expected a JSON object, found {type(tree).__name__}")
    return tree


def deepspeed_problems(tree: dict[str, Any], path: str, batch: BatchShape, device: Device) -> list[str]:
    """Everything wrong with a DeepSpeed file for this run, each with the place where the setting belongs."""
    found = []
    for key, value in tree.items():
        if key in OWNED_BY_US:
            found.append(f"{path}: {key!r} is not DeepSpeed's here; remove it and use {OWNED_BY_US[key]}")
        elif key in REMOVED:
            found.append(f"{path}: DeepSpeed 0.19.8 no longer has {key!r}; remove it (even disabled it is refused)")
        elif key in BATCH_KEYS:
            found += _batch_problem(key, value, path, batch)
        elif key not in KNOWN:
            found.append(f"{path}: unknown key {key!r} (DeepSpeed would ignore it){nearest(key, KNOWN)}")
    for block, known in KNOWN_BELOW.items():
        keys = tree[block] if isinstance(tree.get(block), dict) else {}
        unknown = [key for key in keys if key not in known]
        found += [f"{path}: unknown or unsupported key {block}.{key}{nearest(key, known)}" for key in unknown]
    clipping = tree.get("gradient_clipping", 0.0)
    is_number = isinstance(clipping, int | float) and not isinstance(clipping, bool)
    if clipping != "auto" and not (is_number and 0 <= clipping < float("inf")):
        found.append(f"{path}: 'gradient_clipping' is {json.dumps(clipping)}; it must be a number, 0 (off) or above")
    wrong = [key for key in BLOCKS if not isinstance(tree.get(key, {}), dict)]
    found += [f"{path}: {key!r} must be an object in braces, found {json.dumps(tree[key])}" for key in wrong]
    rest = {key: value for key, value in tree.items() if key not in wrong and key not in BATCH_KEYS}
    found += [
        f'{path}: {name} is "auto", which only the batch sizes can be; give a value or remove it'
        for name in _automatic(rest)
    ]
    return found + zero_problems(rest, path) + _precision_problems(rest, path, device)


def _automatic(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys whose value is "auto": transformers' Trainer fills them in, DeepSpeed does not."""
    names = []
    for key, value in tree.items():
        if isinstance(value, dict):
            names += _automatic(value, f"{prefix}{key}.")
        elif value == "auto":
            names.append(prefix + key)
    return names


def _batch_problem(key: str, value: Any, path: str, batch: BatchShape) -> list[str]:
    ours = {
        "train_batch_size": batch.batch_size,
        "train_micro_batch_size_per_gpu": batch.micro_batch_size,
        "gradient_accumulation_steps": batch.accumulation,
    }[key]
    if value in ("auto", ours):
        return []
    return [f'{path}: {key!r} is {value!r}, but by {BATCH_KEYS[key]} it is {ours}; remove it or set it to "auto"']


def _enabled(tree: dict[str, Any], key: str) -> bool:
    return tree.get(key, {}).get("enabled", False) is True


def _precision_problems(tree: dict[str, Any], path: str, device: Device) -> list[str]:
    bf16, fp16 = _enabled(tree, "bf16") or _enabled(tree, "bfloat16"), _enabled(tree, "fp16")
    found = [
        f"{path}: {key}.enabled is {json.dumps(tree[key]['enabled'])}; it must be true or false"
        for key in ("bf16", "bfloat16", "fp16")
        if not isinstance(tree.get(key, {}).get("enabled", False), bool)
    ]
    if bf16 and fp16:
        found.append(f"{path}: both bf16 and fp16 are enabled; keep one")
    if bf16 and device.type == "cuda" and not device.has_bf16:
        found.append(f"{path}: this GPU has no bf16; use the fp16 file of the same stage, such as ds_configs/fp16.json")
    accumulation = tree.get("data_types", {}).get("grad_accum_dtype")
    if accumulation not in (None, "fp32", "bf16" if bf16 else "fp16" if fp16 else "fp32"):
        found.append(
            f"{path}: data_types.grad_accum_dtype is {json.dumps(accumulation)}; it must be fp32, or the type of the "
            "weights"
        )
    if tree.get("bf16", {}).get("check_grad_overflow", True) is not True:
        found.append(f"{path}: bf16.check_grad_overflow false would let a gradient of NaN into the weights; remove it")
    return found


def complete_deepspeed_config(tree: dict[str, Any], batch: BatchShape, device: Device) -> DeepSpeedSettings:
    """Fill in batch sizes and choose a precision that the device has.

    Args:
        tree: a file without problems.
        batch: the batch of the run.
        device: where it runs; fp16 where that has none becomes bf16 where it has that, else fp32.
    """
    config = copy.deepcopy(tree)
    notes = []
    if "bfloat16" in config:
        config["bf16"] = config.pop("bfloat16")
    if _enabled(config, "fp16") and not device.has_fp16:
        config.pop("fp16")
        if device.has_bf16:
            config["bf16"] = {"enabled": True}
            config.update(communication_data_type="fp32", data_types={"grad_accum_dtype": "fp32"})
        chosen = "bf16" if device.has_bf16 else "fp32"
        notes.append(
            f"fp16 is not for CPUs (slower than fp32, and DeepSpeed refuses it): this run computes in {chosen}"
        )
    elif _enabled(config, "bf16") and device.type == "cpu" and not device.has_bf16:
        notes.append(
            "this CPU has no bf16 instructions: bf16 is emulated and slow; ds_configs/fp32.json is faster here"
        )
    precision = "bf16" if _enabled(config, "bf16") else "fp16" if _enabled(config, "fp16") else "fp32"
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if precision == "bf16":
        config["bf16"].setdefault("check_grad_overflow", True)  # else stages 1 and 2 step with a gradient of NaN
        if config.get("data_types", {}).get("grad_accum_dtype") != "fp32":
            notes.append(
                "gradients add up in bf16, so the loss depends on the ranks: ds_configs/README.md says how to avoid it"
            )
    if stage == 3:
        # DeepSpeed's own linear map rounds otherwise than torch's, so stage 3 would differ from the others in bf16.
        config["zero_optimization"].setdefault("memory_efficient_linear", False)
    fp32_gradients = precision != "fp32" and stage == 0 and config.get("data_types") == {"grad_accum_dtype": "fp32"}
    if fp32_gradients:
        del config["data_types"]
        config.setdefault("communication_data_type", "fp32")
    config.update(
        train_batch_size=batch.batch_size,
        train_micro_batch_size_per_gpu=batch.micro_batch_size,
        gradient_accumulation_steps=batch.accumulation,
        steps_per_print=2**31,
        zero_allow_untested_optimizer=True,
        zero_force_ds_cpu_optimizer=False,  # other optimizers run on offloaded partitions too
    )
    return DeepSpeedSettings(config, precision, tuple(notes), fp32_gradients)
