"""Which backend moves tensors, and where it cannot."""

from __future__ import annotations

import pytest

from engine.config.backend import backend_on, backend_problems
from engine.config.deepspeed_json import Device

CPU, GPU = Device("cpu", has_bf16=True, has_fp16=False), Device("cuda", has_bf16=True)


def test_the_device_decides_where_nobody_does():
    assert [backend_on("cuda", None), backend_on("cpu", None), backend_on("cuda", "gloo")] == ["nccl", "gloo", "gloo"]


@pytest.mark.parametrize(
    ("backend", "device", "stage"),
    [(None, CPU, 3), (None, GPU, 3), ("nccl", GPU, 3), ("gloo", CPU, 3), ("gloo", GPU, 0)],
)
def test_what_can_be(backend, device, stage):
    assert backend_problems(backend, device, stage) == []


@pytest.mark.parametrize(
    ("backend", "device", "stage", "words"),
    [
        ("mpi", CPU, 0, "backend is 'mpi'; it must be nccl or gloo"),
        ("nccl", CPU, 0, "torch sees none here; leave --backend out, or take gloo"),
        ("gloo", GPU, 1, "this is stage 1: take nccl, or a file of stage 0 such as ds_configs/zero0.json, or compute"),
        ("gloo", GPU, 3, 'compute on CPUs (CUDA_VISIBLE_DEVICES="")'),
    ],
)
def test_what_cannot_be_says_what_can(backend, device, stage, words):
    (problem,) = backend_problems(backend, device, stage)
    assert words in problem
