"""Clipping and unscaling by a factor of the optimizer's own pass: the curves of DeepSpeed's pass over the gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.train.clipping import clip, hand_over_factors, total_norm
from engine.train.zero import ZeroEngine
from kernels.optimizer import AdamW
from tests.engine.ranks import run_ranks
from tests.engine.train.test_zero_fp16 import DYNAMIC, HIGH, STATIC, allow_fp16
from tests.engine.train.zero_layouts import CLIP, FP32_SUMS, Layout, begin, build, train

MODULE = "tests.engine.train.test_clipping"
IMMEDIATE = (("bf16", {"immediate_grad_update": True}),)
LAYOUTS = {
    "fp32": [Layout(stage) for stage in range(4)],
    "fp32 not clipped": [Layout(stage, clip=0.0) for stage in range(4)],
    "bf16": [Layout(stage, "bf16", top=FP32_SUMS) for stage in range(4)],
    "bf16 immediate": [Layout(1, "bf16", top=FP32_SUMS + IMMEDIATE)],
    "fp16": [Layout(stage, "fp16", top=DYNAMIC) for stage in range(4)],
    "fp16 skips": [Layout(stage, "fp16", top=HIGH) for stage in range(4)],
    "fp16 not clipped": [Layout(stage, "fp16", top=STATIC, clip=0.0) for stage in range(4)],
}
TOLERANCE = {"fp32": 1e-6, "bf16": 2e-3, "fp16": 1e-3}


def followed(engine: ZeroEngine) -> list[list[float]]:
    """Of each step: loss, norm, the scale after it, and steps skipped."""
    rows = []
    for step in range(4):
        (loss,), (norm,) = train(engine, [step])
        rows.append([loss, norm, engine.loss_scale or 0.0, engine.skipped_steps])
    return rows


def curves(folder: Path) -> dict[str, list[Any]]:
    """Of each layout: what torch's AdamW gives, what ours does, and the factor of its last step."""
    begin()
    allow_fp16()
    found: dict[str, list[Any]] = {}
    for name, layouts in LAYOUTS.items():
        for layout in layouts:
            engine = build(replace(layout, optimizer=AdamW), folder)
            ours = followed(engine)
            factor = None if engine.optimizer.factor is None else float(engine.optimizer.factor)
            found.setdefault(name, []).append([followed(build(layout, folder)), ours, factor])
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_curves_are_those_of_a_pass_over_the_gradients(ranks, tmp_path):
    for found in run_ranks(MODULE, "curves", tmp_path, ranks, timeout=400):
        for name, layouts in LAYOUTS.items():
            for layout, (expected, rows, factor) in zip(layouts, found[name], strict=True):
                tolerance = TOLERANCE[layout.precision]
                np.testing.assert_allclose(rows, expected, rtol=tolerance, err_msg=str(layout))
                if name == "fp16 skips":
                    assert factor is None and rows[-1][3] == len(rows)
                elif "not" in name:
                    assert factor == (1 / 256 if layout.precision == "fp16" else None)
                else:
                    scale = rows[-2][2] or 1.0  # after the step before
                    assert factor == pytest.approx(min(1.0, CLIP / (rows[-1][1] + 1e-6)) / scale, rel=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_norm_and_clipping_are_torch_s(backend, monkeypatch):
    monkeypatch.setenv("KERNELS_BACKEND", backend)
    parameters = [torch.nn.Parameter(torch.randn(5)), torch.nn.Parameter(torch.randn(3, 4))]
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    expected = [gradient / 8 for gradient in gradients]
    norm = torch.nn.utils.get_total_norm(expected)
    for parameter, gradient in zip(parameters, expected, strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grads_with_norm_(parameters, 0.3, norm)
    found = total_norm(gradients)
    torch.testing.assert_close(found, 8 * norm)
    ours = AdamW(parameters)
    before = [gradient.clone() for gradient in gradients]
    clip(ours, gradients, found, 0.3, 8.0)
    assert ours.factor is not None and all(map(torch.equal, gradients, before))
    clip(ours, gradients, found.double(), 0.3, 8.0)
    assert ours.factor.dtype == torch.float32  # fp64 would have gradients copied to fp64
    clip(torch.optim.AdamW(parameters), gradients, found, 0.3, 8.0)
    for gradient, old, right in zip(gradients, before, expected, strict=True):
        torch.testing.assert_close(gradient, right)
        torch.testing.assert_close(old * ours.factor, right)


def test_an_optimizer_without_a_factor_leaves_deepspeed_as_it_is(monkeypatch):
    engine = SimpleNamespace(optimizer=SimpleNamespace(clip_grad=1.0), basic_optimizer=None)
    monkeypatch.setattr("engine.train.clipping.layout_of", lambda engine: "zero12")
    hand_over_factors(engine, torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
    assert vars(engine.optimizer) == {"clip_grad": 1.0}
