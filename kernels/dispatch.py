"""Which backend an operation runs on: chosen for each device and size, logged once, forced by ``KERNELS_BACKEND``.

auto takes, of a device's own kernels and NVIDIA's apex, the first that is there, takes the sizes and was measured ahead
of torch on this device (``measured.json``; an apex without a measurement counts as ahead: somebody built it); else the
reference. A forced backend that is missing is an error; sizes that it does not take go to the reference, which is said
once.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from kernels import apex, build

BACKENDS = ("auto", "reference", "cpu", "cuda", "emulator", "apex")
IN_TURN = {"cpu": ("cpu",), "cuda": ("cuda", "apex")}  # what auto tries on a device, before the reference
DEVICE_OF = {"cpu": "cpu", "emulator": "cpu", "cuda": "cuda", "apex": "cuda"}
MEASURED = Path(__file__).resolve().parent / "measured.json"
CAPABILITY = (8, 0)  # the first of build.CUDA_ARCHITECTURES
ABOUT_AS_FAST, HALF_THE_MEMORY = 0.9, 0.5
_log = logging.getLogger("kernels")


class BackendError(ValueError):
    """A backend was asked for that is not there; the text says why, and the way out."""


@dataclass(frozen=True, eq=False)
class Operation:
    """What dispatch must know of an operation; there is one object of each.

    Attributes:
        name: as in ``measured.json`` and in ``python -m kernels``.
        limits: by backend: why it does not take a call of these sizes, or None; backends left out do not have it.
    """

    name: str
    limits: Mapping[str, Callable[..., str | None]]


def choose(operation: Operation, device: torch.device, **sizes: Any) -> str:
    """The backend of a call.

    Args:
        operation: what is called.
        device: of its tensors.
        sizes: whatever the operation's limits ask for.

    Raises:
        BackendError: if ``KERNELS_BACKEND`` names one that is unknown, missing, or for another device.
    """
    name, why = _decide(operation, device, sizes)
    if why:
        _say_once(f"{why}; {'the reference runs' if name == 'reference' else f'{name} runs'}")
    return name


def _decide(operation: Operation, device: torch.device, sizes: Mapping[str, Any]) -> tuple[str, str]:
    """The backend of a call, and why it is not an earlier one."""
    asked = requested()
    names, why_others = _candidates(operation, device, asked)
    reasons = list(why_others)
    for number, name in enumerate(names):
        reason = operation.limits[name](**sizes)
        if reason is None:
            if number == 0:
                return name, ""
            break
        reasons.append(f"{operation.name} on {name}: {reason}")
    else:
        name = "reference"
    if not reasons or asked == "reference":
        return name, ""
    why = "; ".join(reasons)
    return name, why if why.startswith(operation.name) else f"{operation.name}: {why}"


def is_wanted(operation: Operation, device: torch.device, **sizes: Any) -> bool:
    """Whether a model should call an operation rather than torch's own: one is forced, or one was measured ahead.

    The reference keeps our contract (its dropout masks are those of the kernels), and is slower than torch's own.

    Args:
        operation: what would be called.
        device: of its tensors.
        sizes: as of ``choose``; without them those of the call are taken to fit.
    """
    asked = requested()
    if asked != "auto":
        return True
    if not _candidates(operation, device, asked)[0]:
        return False
    if not sizes:
        return True
    name, why = _decide(operation, device, sizes)
    if name == "reference":
        _say_once(f"{why}; torch's operators run")
    return name != "reference"


def has_kernel(operation: Operation, device: torch.device) -> bool:
    """Whether an operation runs on anything but the reference, for what has no use for our contract, as optimizers.

    They also step on a device that is not the model's, for which a backend that is forced may not be.
    """
    if DEVICE_OF.get(requested(), device.type) != device.type:
        return False
    return explain(operation, device)[0] != "reference"


def explain(operation: Operation, device: torch.device) -> tuple[str, str]:
    """The backend of an operation on a device, for sizes that it takes; and why it is not an earlier one.

    Raises:
        BackendError: as ``choose``.
    """
    names, reasons = candidates(operation, device)
    return names[0] if names else "reference", "; ".join(reasons)


def candidates(operation: Operation, device: torch.device) -> tuple[list[str], list[str]]:
    """The backends to try in turn before the reference, and why others are not among them.

    Raises:
        BackendError: as ``choose``.
    """
    names, reasons = _candidates(operation, device, requested())
    return list(names), list(reasons)


@cache
def _candidates(operation: Operation, device: torch.device, asked: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if asked == "auto":
        found = {name: why_not(operation, name, device) for name in IN_TURN.get(device.type, ())}
        names = [name for name, reason in found.items() if reason is None]
        names.sort(key=lambda name: -speed(operation.name, name, device))
        return tuple(names), tuple(why for why in found.values() if why)
    if asked == "reference":
        return (), ("KERNELS_BACKEND asks for it",)
    if reason := unavailable(asked):
        raise BackendError(f"KERNELS_BACKEND is {asked}, {reason}; or unset KERNELS_BACKEND")
    if DEVICE_OF[asked] != device.type:
        raise BackendError(f"KERNELS_BACKEND is {asked}, which does not run on {device.type} tensors; unset it")
    return ((asked,), ()) if asked in operation.limits else ((), (f"{asked} has no {operation.name}",))


def why_not(operation: Operation, name: str, device: torch.device) -> str | None:
    """Why auto does not take a backend for an operation; None where it does."""
    if name not in operation.limits:
        return f"{name} has no {operation.name}"
    if reason := unavailable(name):
        return f"{name}, {reason}"
    if not is_ahead(operation.name, name, device):
        return f"{name} was not measured ahead of torch on {device_name(device)} (measured.json)"
    return None


def requested() -> str:
    """What ``KERNELS_BACKEND`` asks for.

    Raises:
        BackendError: if there is no such backend.
    """
    asked = os.environ.get("KERNELS_BACKEND") or "auto"
    if asked not in BACKENDS:
        raise BackendError(f"KERNELS_BACKEND is {asked!r}; it must be one of {', '.join(BACKENDS)}")
    return asked


@cache
def unavailable(name: str) -> str | None:
    """Why a backend does not run on this machine, as the end of a sentence about it; None where it does.

    Builds its library where that is missing.
    """
    if name == "apex" and (reason := apex.norms_missing()):
        return reason
    if DEVICE_OF[name] == "cuda" and not torch.cuda.is_available():
        return "but torch sees no CUDA device"
    if name == "apex":
        return None
    if name == "cuda" and (found := torch.cuda.get_device_capability()) < CAPABILITY:
        return "but {} has compute capability {}.{}; it must be {}.{} at least".format(
            torch.cuda.get_device_name(), *found, *CAPABILITY
        )
    try:
        load(name)
    except (build.BuildError, OSError) as error:
        return f"but {error}"
    return None


@cache
def load(name: str) -> ModuleType:
    """The operators of a compiled backend, ``torch.ops.kernels_NAME``."""
    torch.ops.load_library(str(build.build(name)))
    operators: ModuleType = getattr(torch.ops, f"kernels_{name}")
    return operators


def is_ahead(operation: str, backend: str, device: torch.device) -> bool:
    """Whether a backend was measured ahead of torch on a device; without a measurement only apex counts as ahead."""
    gain = measured().get(device_name(device), {}).get(operation, {})
    if backend == "apex":
        return gain.get("apex", math.inf) > 1.0
    return is_gain(gain)


def is_gain(gain: Mapping[str, float]) -> bool:
    """Whether a measurement has our kernels ahead of torch: faster, or about as fast in half the memory."""
    return gain.get("speed", 0.0) > (ABOUT_AS_FAST if gain.get("memory", 1.0) <= HALF_THE_MEMORY else 1.0)


def speed(operation: str, backend: str, device: torch.device) -> float:
    """How many times as fast as torch's own a backend or library was measured on a device; 0 where it was not."""
    gain = measured().get(device_name(device), {}).get(operation, {})
    return gain.get("speed" if backend in build.FOR_RUNS else backend, 0.0)


def device_name(device: torch.device) -> str:
    """A device by the name that ``measured.json`` has for it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@cache
def measured() -> dict[str, dict[str, dict[str, float]]]:
    """By device and operation: how many times as fast as torch's own ours is (speed), in what share of its memory
    (memory), and how many times as fast as torch's those of a library are (apex, flash_attn)."""
    table: dict[str, dict[str, dict[str, float]]] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return table


@cache
def _say_once(text: str) -> None:
    _log.warning("kernels: %s", text)
