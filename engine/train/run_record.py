"""What is recorded of every run beside its own settings."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from engine.config.deepspeed_json import DeepSpeedSettings
from engine.train.distributed import world_size


def run_record(settings: DeepSpeedSettings) -> dict[str, Any]:
    """How a run is computed, and by what."""
    return {
        "precision": settings.precision,
        "gradient_clipping": settings.config.get("gradient_clipping", 0.0),
        "world_size": world_size(),
        "deepspeed": settings.config,
        "versions": versions(),
        "torch_threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Versions of what decides numbers, for the run's record."""
    names = ("torch", "deepspeed", "numpy", "tokenizers", "h5py", "safetensors")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {"python": platform.python_version(), **{name: version(name) for name in names}, "device": device}


def _processor() -> str:
    """The model of the CPU where the system tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), "") or platform.processor() or platform.machine()
