"""Loss scaling and gradients that are not finite, the same at every ZeRO stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint.fragments import FLAT, layout_of
from engine.checkpoint.state import restore, snapshot
from engine.train.zero import ZeroEngine
from tests.engine.ranks import run_ranks
from tests.engine.train.zero_layouts import FP32_SUMS, Layout, begin, build, plain_loop, save, train

MODULE = "tests.engine.train.test_zero_fp16"
STEPS = range(8)
DYNAMIC = (("fp16", {"initial_scale_power": 10, "hysteresis": 2, "loss_scale_window": 3}),)
HIGH = (("fp16", {"initial_scale_power": 30, "hysteresis": 2, "loss_scale_window": 3}),)
STATIC = (("fp16", {"loss_scale": 256}),)


def allow_fp16() -> None:
    """This CPU computes in fp16, slowly; DeepSpeed asks for instructions that only make it fast."""
    from deepspeed.accelerator import get_accelerator

    type(get_accelerator()).is_fp16_supported = lambda self: True


def build_flat(layout: Layout, folder: Path) -> ZeroEngine:
    """At stage 0 an engine as under a fused Adam of DeepSpeed or apex, which need a GPU: one key a group."""
    import deepspeed.runtime.engine

    fused, deepspeed.runtime.engine.FusedAdam = deepspeed.runtime.engine.FusedAdam, torch.optim.AdamW
    try:
        engine = build(layout, folder)
    finally:
        deepspeed.runtime.engine.FusedAdam = fused
    assert layout_of(engine.deepspeed) == FLAT
    return engine


def followed(engine: ZeroEngine, **options: Any) -> list[list[float]]:
    """Of each step: loss, norm, the scale after it, steps skipped in all and just now."""
    rows = []
    for step in STEPS:
        (loss,), (norm,) = train(engine, [step], **options)
        rows.append([loss, norm, engine.loss_scale or 0.0, engine.skipped_steps, engine.consecutive_skips])
    return rows


def scaled(folder: Path) -> dict[str, list[Any]]:
    """Runs in fp16 by scaling and stage, and one that goes on from a checkpoint in the middle."""
    begin()
    allow_fp16()
    found: dict[str, list[Any]] = {}
    for name, top in (("dynamic", DYNAMIC), ("high", HIGH), ("static", STATIC)):
        layouts = [Layout(stage, "fp16", top=top) for stage in range(4)]
        found[name] = [followed(build(layout, folder)) for layout in layouts]
        found[name].append(followed(build_flat(layouts[0], folder)))
    found["resumed"] = []
    for stage in range(4):
        layout = Layout(stage, "fp16", top=DYNAMIC)
        first = build(layout, folder)
        train(first, STEPS[:4])
        manifest = save(first, folder, 4)
        second = build(layout, folder, 1)
        restore(second.deepspeed, second.model, folder, manifest)
        found["resumed"].append([*train(second, STEPS[4:]), second.loss_scale])
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_fp16_is_the_same_at_every_stage(ranks, tmp_path):
    losses, norms = plain_loop(STEPS)
    for found in run_ranks(MODULE, "scaled", tmp_path, ranks):
        for rows in found["dynamic"]:
            np.testing.assert_allclose([row[0] for row in rows], losses, rtol=2e-3)
            np.testing.assert_allclose([row[1] for row in rows], norms, rtol=0.02)
            assert [row[2] for row in rows] == [2.0**k for k in (10, 10, 10, 11, 11, 11, 12, 12)]
            assert rows[-1][3] == 0
        for stage, (curve, norm, scale) in enumerate(found["resumed"]):
            unbroken = found["dynamic"][stage][4:]
            assert [curve, norm, scale] == [[r[0] for r in unbroken], [r[1] for r in unbroken], unbroken[-1][2]]
        for rows in found["static"]:
            np.testing.assert_allclose([row[0] for row in rows], losses, rtol=2e-3)
            assert {row[2] for row in rows} == {256.0}
        for name in ("dynamic", "high", "static"):
            first = found[name][0]
            assert len(found[name]) == 5
            for rows in found[name][1:]:
                np.testing.assert_allclose([r[0] for r in rows], [r[0] for r in first], rtol=1e-3)
                assert [r[2:] for r in rows] == [r[2:] for r in first]
        high = found["high"][0]
        assert [row[3] for row in high] == list(range(1, 9)) == [row[4] for row in high]
        assert [row[2] for row in high] == [2.0**k for k in (30, 29, 28, 27, 26, 25, 24, 23)]


def doubled(folder: Path) -> list[float]:
    """By stage, how far the first moment is from that of a run whose scale does not double in its last step."""
    begin()
    allow_fp16()
    found = []
    for stage, make in [*((stage, build) for stage in range(4)), (0, build_flat)]:
        moments = []
        for scale in (DYNAMIC, (("fp16", {"loss_scale": 1024}),)):
            engine = make(Layout(stage, "fp16", top=scale, clip=0.0), folder)
            train(engine, range(4))
            tensors, _ = snapshot(engine.deepspeed, engine.model)
            moments.append(torch.cat([tensor for name, tensor in tensors.items() if name.startswith("exp_avg|")]))
        found.append(float((moments[0] - moments[1]).norm() / moments[1].norm()))
    return found


def test_gradient_is_divided_by_the_scale_of_its_own_loss(tmp_path):
    for found in run_ranks(MODULE, "doubled", tmp_path):
        assert len(found) == 5 and max(found) < 0.01  # 0.24 where the gradient of the fourth step is halved


def poisoned(folder: Path) -> list[Any]:
    """At every layout a step whose loss is NaN between others, and whether it changed anything."""
    begin()
    found = []
    layouts = [Layout(stage, "fp32", clip=clip) for stage in range(4) for clip in (0.5, 0.0)]
    layouts += [Layout(stage, "bf16", top=FP32_SUMS) for stage in range(4)]
    layouts += [Layout(stage, "bf16", zero=(("offload_optimizer", {"device": "cpu"}),)) for stage in (1, 2, 3)]
    layouts += [Layout(1, "bf16", top=(*FP32_SUMS, ("bf16", {"immediate_grad_update": True})))]
    for layout in layouts:
        engine = build(layout, folder)
        train(engine, range(3))
        before = save(engine, folder, 3).files
        train(engine, [3], poison=3)
        norm, skips = engine.gradient_norm(), engine.consecutive_skips
        after = save(engine, folder, 3).files
        losses, _ = train(engine, range(3, 5))
        clean = build(layout, folder)
        train(clean, range(3))
        assert before == after, layout
        assert not np.isfinite(norm) and skips == 1 and engine.skipped_steps == 1, layout
        assert engine.consecutive_skips == 0 and engine.loss_scale is None
        assert losses == train(clean, range(3, 5))[0], layout
        found.append(dataclasses.astuple(layout)[:2])
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradient_that_is_not_finite_changes_nothing(ranks, tmp_path):
    for found in run_ranks(MODULE, "poisoned", tmp_path, ranks):
        assert len(found) == 16


def exhausted(folder: Path) -> list[Any]:
    """What is raised when the scale cannot fall any more."""
    begin()
    allow_fp16()
    found = []
    for stage in range(4):
        scale = {"initial_scale_power": 2, "hysteresis": 1, "min_loss_scale": 1}
        engine = build(Layout(stage, "fp16", top=(("fp16", scale),)), folder)
        train(engine, range(2))
        try:
            for _ in range(9):
                train(engine, [2], poison=2)
        except ValueError as error:
            found.append([type(error).__name__, str(error)])
    return found


def test_scale_that_cannot_fall_any_more_is_explained(tmp_path):
    for found in run_ranks(MODULE, "exhausted", tmp_path):
        assert len(found) == 4
        for kind, text in found:
            assert kind == "SharedError"
            assert text.startswith("step 5: the gradient overflows fp16 even at the smallest loss scale")
            assert "in 3 steps in a row" in text and "_bf16.json" in text and "train.optimizer.lr" in text


def test_loss_scale_is_not_asked_of_other_precisions(tmp_path):
    torch.set_num_threads(1)
    (found,) = run_ranks(MODULE, "scale_in_fp32", tmp_path, 1)
    assert found is None


def scale_in_fp32(folder: Path) -> float | None:
    """The loss scale of a run without one."""
    begin()
    return build(Layout(1), folder).loss_scale
