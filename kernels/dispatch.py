"""Which backend an operation runs on: chosen for each device and size, logged once, forced by ``KERNELS_BACKEND``.

auto takes the CPU's or GPU's own kernels where they are built, take the sizes, and were measured ahead of torch on this
device (``measured.json``); else torch's operators (reference). A forced backend that is missing is an error; sizes that
it does not take go to the reference, which is said once.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from kernels import build

BACKENDS = ("auto", "reference", "cpu", "cuda", "emulator", "apex")
DEVICE_OF = {"cpu": "cpu", "emulator": "cpu", "cuda": "cuda", "apex": "cuda"}
MEASURED = Path(__file__).resolve().parent / "measured.json"
ABOUT_AS_FAST, HALF_THE_MEMORY = 0.9, 0.5
_log = logging.getLogger("kernels")


class BackendError(ValueError):
    """A backend was asked for that is not there; the text says why, and the way out."""


@dataclass(frozen=True)
class Operation:
    """What dispatch must know of an operation.

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
    backend, why = explain(operation, device)
    if backend != "reference" and (reason := operation.limits[backend](**sizes)):
        backend, why = "reference", f"{operation.name} on {backend}: {reason}"
    if why and (backend, requested()) != ("reference", "reference"):
        _say_once(f"{why}; torch's own operators run")
    return backend


def is_wanted(operation: Operation, device: torch.device) -> bool:
    """Whether a model should call an operation rather than torch's own: one is forced, or one was measured ahead.

    The reference keeps our contract (its dropout masks are those of the kernels), and is slower than torch's own.
    """
    return requested() != "auto" or explain(operation, device)[0] != "reference"


def explain(operation: Operation, device: torch.device) -> tuple[str, str]:
    """The backend of an operation on a device, for sizes that it takes; and why it is not the device's own.

    Raises:
        BackendError: as ``choose``.
    """
    asked = requested()
    name = device.type if asked == "auto" else asked
    if name == "reference":
        return name, "KERNELS_BACKEND asks for it"
    if name not in operation.limits:
        return "reference", f"{name} has no {operation.name}"
    if reason := unavailable(name):
        if asked != "auto":
            raise BackendError(f"KERNELS_BACKEND is {asked}, but {reason}; unset it, or mend that")
        return "reference", f"{name}: {reason}"
    if asked != "auto" and DEVICE_OF[name] != device.type:
        raise BackendError(f"KERNELS_BACKEND is {asked}, which does not run on {device.type} tensors; unset it")
    if asked == "auto" and not is_ahead(operation.name, name):
        return "reference", f"{operation.name} was not measured ahead of torch on this {name} device (measured.json)"
    return name, ""


def requested() -> str:
    """What ``KERNELS_BACKEND`` asks for.

    Raises:
        BackendError: if there is no such backend.
    """
    asked = os.environ.get("KERNELS_BACKEND", "auto")
    if asked not in BACKENDS:
        raise BackendError(f"KERNELS_BACKEND is {asked!r}; it must be one of {', '.join(BACKENDS)}")
    return asked


@cache
def unavailable(name: str) -> str | None:
    """Why a backend does not run on this machine; None where it does. Builds its library where that is missing."""
    if name == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        load(name)
    except (build.BuildError, OSError) as error:
        return str(error)
    return None


@cache
def load(name: str) -> ModuleType:
    """The operators of a compiled backend, ``torch.ops.kernels_NAME``."""
    torch.ops.load_library(str(build.build(name)))
    operators: ModuleType = getattr(torch.ops, f"kernels_{name}")
    return operators


def is_ahead(operation: str, backend: str) -> bool:
    """Whether a backend was measured ahead of torch on this device; without a measurement it counts as behind.

    Ahead is: faster, or about as fast in half the memory.
    """
    device = torch.cuda.get_device_name() if backend in ("cuda", "apex") else "cpu"
    gain = measured().get(device, {}).get(operation, {})
    speed = gain.get("speed", 0.0)
    return speed > 1.0 or (speed >= ABOUT_AS_FAST and gain.get("memory", 1.0) <= HALF_THE_MEMORY)


@cache
def measured() -> dict[str, dict[str, dict[str, float]]]:
    """By device and operation: how many times as fast as torch's own (speed), and in what share of memory (memory)."""
    table: dict[str, dict[str, dict[str, float]]] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return table


@cache
def _say_once(text: str) -> None:
    _log.warning("kernels: %s", text)
