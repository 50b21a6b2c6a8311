"""What is built, and which backend each operation runs on: for ``python -m kernels`` and the log of a run."""

from __future__ import annotations

import torch

from kernels import apex, build, dispatch
from kernels.activation import BIAS_GELU, GATED
from kernels.attention import ATTENTION, DROPPING_ATTENTION, SHORT_ATTENTION
from kernels.cross_entropy import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY
from kernels.dispatch import Operation
from kernels.embedding import EMBEDDING
from kernels.norm import DROPOUT_ADD, LAYER_NORM, NORM
from kernels.optimizer import ADAMW, GRADIENT_NORM, LAMB

OF_ATTENTION = (ATTENTION, SHORT_ATTENTION, DROPPING_ATTENTION)
OF_MODELS = (NORM, LAYER_NORM, DROPOUT_ADD, BIAS_GELU, EMBEDDING, LINEAR_CROSS_ENTROPY, *OF_ATTENTION)
OPERATIONS = (*OF_MODELS, GATED, CROSS_ENTROPY, GRADIENT_NORM, ADAMW, LAMB)
LIBRARIES = ("cpu", "cuda", "emulator")


def describe(device: torch.device) -> str:
    """One line for the log of a run: whose code runs each operation of a model; the optimizer has its own line.

    torch is its own operators, not the reference.

    Raises:
        BackendError: if ``KERNELS_BACKEND`` names a backend that is unknown, missing, or for another device.
    """
    line = f"kernels: {', '.join(f'{operation.name} {_runs(operation, device)}' for operation in OF_MODELS)}"
    own = dispatch.IN_TURN.get(device.type, ("",))[0]
    reason = dispatch.unavailable(own) if own and dispatch.requested() == "auto" else None
    return f"{line} ({own}, {reason})" if reason else line


def runs(device: torch.device) -> dict[str, tuple[str, str]]:
    """By name of all operations: whose code runs it on a device, and why it is not the device's own.

    Raises:
        BackendError: as ``describe``.
    """
    return {op.name: (_runs(op, device), dispatch.explain(op, device)[1]) for op in OPERATIONS}


def _runs(operation: Operation, device: torch.device) -> str:
    return dispatch.explain(operation, device)[0] if dispatch.is_wanted(operation, device) else "torch"


def libraries() -> list[str]:
    """A line for each library: where it is, or why it is not there."""
    lines = [f"torch {torch.__version__}, KERNELS_BACKEND={dispatch.requested()}"]
    for name in LIBRARIES:
        reason = build.missing(name) or build.failure(name) or f"not built yet: python -m kernels --build {name}"
        lines.append(f"{name:9} {build.find(name) or reason}")
    lines.append(f"{'apex':9} {apex.norms_missing() or 'installed, of NVIDIA'}")
    return lines


def backends() -> list[str]:
    """A line for each operation on a CPU and on a GPU: whose code runs it, and why it is not the device's own.

    Raises:
        BackendError: as ``describe``.
    """
    lines = []
    for operation in OPERATIONS:
        lines.append(_line(operation, "cpu", _runs(operation, torch.device("cpu")), _why(operation, "cpu")))
        if torch.cuda.is_available():
            lines.append(_line(operation, "cuda", _runs(operation, torch.device("cuda")), _why(operation, "cuda")))
        else:
            lines.append(_line(operation, "cuda", "-", f"no CUDA device is here; on one: {_unseen(operation)}"))
    return lines


def _line(operation: Operation, device: str, runs: str, why: str) -> str:
    return f"{operation.name:20} {device:5} {runs:10} {why}".rstrip()


def _why(operation: Operation, device: str) -> str:
    return dispatch.explain(operation, torch.device(device))[1]


def _unseen(operation: Operation) -> str:
    """What would run on a CUDA device that is not here."""
    if dispatch.requested() != "auto":
        return "what KERNELS_BACKEND names"
    if reason := build.missing("cuda"):
        return f"torch, since {reason}"
    ahead = [
        device
        for device, gains in dispatch.measured().items()
        if device != "cpu" and dispatch.is_gain(gains.get(operation.name, {}))
    ]
    return f"cuda on {', '.join(ahead)}, else torch" if ahead else "torch, until measured.json has ours ahead there"
