"""What moves tensors between ranks. Never imports torch."""

from __future__ import annotations

from engine.config.deepspeed_json import Device

BACKENDS = ("nccl", "gloo")


def backend_on(device_type: str, backend: str | None) -> str:
    """The backend that was asked for, or the one for this kind of device."""
    return backend or ("nccl" if device_type == "cuda" else "gloo")


def backend_problems(backend: str | None, device: Device, stage: object) -> list[str]:
    """Everything wrong with a backend on this device at this ZeRO stage.

    Of tensors on GPUs gloo knows all-reduce and broadcast alone, and stages 1 to 3 scatter and gather them.
    """
    if backend is None:
        return []
    if backend not in BACKENDS:
        return [f"backend is {backend!r}; it must be {' or '.join(BACKENDS)}"]
    if backend == "nccl" and device.type == "cpu":
        return ["backend nccl moves tensors of GPUs, and torch sees none here; leave --backend out, or take gloo"]
    if backend == "gloo" and device.type == "cuda" and stage != 0:
        return [
            f"backend gloo moves tensors of GPUs at ZeRO stage 0 alone, and this is stage {stage}: take nccl, or a "
            'file of stage 0 such as ds_configs/zero0.json, or compute on CPUs (CUDA_VISIBLE_DEVICES="")'
        ]
    return []
