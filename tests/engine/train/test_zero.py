"""The engine of every ZeRO stage and precision against a plain loop in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint.fragments import fragments
from engine.config.optimizer import OptimizerConfig
from engine.data.batch import PackedBatch
from engine.models.model import Model
from engine.train.zero import ZeroEngine
from tests.engine.ranks import run_ranks
from tests.engine.train import zero_layouts
from tests.engine.train.zero_layouts import (
    FP32_SUMS,
    ROWS,
    Layout,
    Objective,
    begin,
    build,
    make_batch,
    plain_loop,
    rows,
    tiny_model,
    train,
)

MODULE = "tests.engine.train.test_zero"
STEPS = range(5)
ON_CPU = (("offload_param", {"device": "cpu"}),)
MOVED = [Layout(2), Layout(3), Layout(3, "bf16", frozen=True), Layout(3, "bf16", zero=ON_CPU)]
WORDS = "encoder.embeddings.word.weight"
IMMEDIATE = (("bf16", {"immediate_grad_update": True}),)
FP32 = [Layout(stage) for stage in range(4)]
BF16 = [
    *(Layout(stage, "bf16", top=FP32_SUMS) for stage in range(4)),
    Layout(1, "bf16", top=FP32_SUMS + IMMEDIATE),
]


def curves(folder: Path) -> list[Any]:
    """Losses and norms of every layout, with fixed and with varying accumulation."""
    begin()
    found = []
    for layout in [*FP32, *BF16]:
        fixed = train(build(layout, folder), STEPS)
        found.append((fixed, train(build(layout, folder), STEPS, [2, 1, 3, 2, 6])))
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_curves_follow_a_plain_loop(ranks, tmp_path):
    expected = plain_loop(STEPS)
    for found in run_ranks(MODULE, "curves", tmp_path, ranks):
        for layout, (fixed, varying) in zip([*FP32, *BF16], found, strict=True):
            loose = layout.precision == "bf16"
            for losses, norms in (fixed, varying):
                np.testing.assert_allclose(losses, expected[0], rtol=5e-3 if loose else 1e-6, err_msg=str(layout))
                np.testing.assert_allclose(norms, expected[1], rtol=0.03 if loose else 1e-5, err_msg=str(layout))


def gathered(folder: Path) -> list[Any]:
    """Curves at stage 3 where every weight is divided, and the word embedding, which is the decoder too, is frozen."""
    begin()
    zero_layouts.FROZEN = WORDS
    zero = (("stage3_param_persistence_threshold", 0),)
    return [train(build(Layout(3, zero=zero, frozen=frozen), folder), STEPS) for frozen in (False, True)]


def test_divided_weights_are_whole_where_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zero_layouts, "FROZEN", WORDS)
    for found in run_ranks(MODULE, "gathered", tmp_path):
        for frozen, (losses, norms) in enumerate(found):
            expected = plain_loop(STEPS, frozen=bool(frozen))
            np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
            np.testing.assert_allclose(norms, expected[1], rtol=1e-5)


def moved(folder: Path) -> list[list[int]]:
    """Of engines by stage, how many elements of weights went to the device in one call."""
    begin()
    found, to = [], torch.nn.Module.to

    def watched(self: torch.nn.Module, *args: Any, **options: Any) -> torch.nn.Module:
        found[-1].append(sum(p.numel() for p in self.parameters()))
        return to(self, *args, **options)

    torch.nn.Module.to = watched  # type: ignore[method-assign]
    for layout in MOVED:
        found.append([])
        build(layout, folder)
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_stage_3_never_moves_the_whole_model(ranks, tmp_path):
    size = sum(p.numel() for p in tiny_model().parameters())
    for first, *others in run_ranks(MODULE, "moved", tmp_path, ranks):
        assert first == [size]
        assert others == [[]] * len(others) and len(others) == 3


def rounded(folder: Path) -> list[Any]:
    """At each stage in bf16, losses and norms of six micro-batches a step; the last one adds gradients up in bf16."""
    begin()
    layouts = [Layout(stage, "bf16", top=FP32_SUMS, clip=clip) for clip in (0.5, 0.0) for stage in range(4)]
    return [train(build(layout, folder), STEPS, 6) for layout in [*layouts, Layout(0, "bf16")]]


def test_bf16_gradients_add_up_in_fp32_at_every_stage(tmp_path):
    """Stage 0 is a little nearer still: there the two gradients of the tied embedding meet in fp32 too."""
    for found in run_ranks(MODULE, "rounded", tmp_path):
        *exact, coarse = found
        for first in (0, 4):
            zero, one, *others = exact[first : first + 4]
            for losses, norms in others:
                np.testing.assert_allclose(losses, one[0], rtol=1e-7)
                np.testing.assert_allclose(norms, one[1], rtol=1e-6)
            np.testing.assert_allclose(zero[0], one[0], rtol=1e-4)
            np.testing.assert_allclose(zero[1], one[1], rtol=1e-3)
        assert np.abs(np.divide(coarse[1], exact[0][1]) - 1).max() > 1e-4


def gradients(folder: Path) -> list[float]:
    """Relative error of a gradient of 6 micro-batches on this rank and as many on the other, at stage 0 in bf16."""
    begin()
    found = []
    for top in (FP32_SUMS, ()):
        engine = build(Layout(0, "bf16", top=top, clip=0.0), folder)
        train(engine, range(1), 6)
        pieces = {
            f.name: f.of(engine.optimizer.state[f.key]["exp_avg"]) for f in fragments(engine.deepspeed, engine.model)
        }
        expected = summed_gradient()
        error = sum(float((10 * pieces[name].double() - expected[name]).norm() ** 2) for name in expected)
        found.append((error / sum(float(value.norm() ** 2) for value in expected.values())) ** 0.5)
    return found


def summed_gradient() -> dict[str, torch.Tensor]:
    """By parameter, the gradient of a bf16 model in 12 micro-batches of a row, added up in float64."""
    model = tiny_model().bfloat16()
    total = {name: torch.zeros(p.numel(), dtype=torch.float64) for name, p in model.named_parameters()}
    tokens, chosen = rows(0)
    for row in range(ROWS):
        batch = make_batch(tokens[row : row + 1], chosen[row : row + 1])
        (Objective().losses(model, batch)["mlm"].loss_sum / sum(map(len, chosen))).backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad.double().view(-1)
        model.zero_grad()
    return total


def test_fp32_sums_are_exact(tmp_path):
    for fine, coarse in run_ranks(MODULE, "gradients", tmp_path):
        assert fine < 1e-3
        assert coarse > 3e-3


def inside(folder: Path) -> list[Any]:
    """What a function sees of the model at each stage, between two training steps."""
    begin()
    found = []
    for stage in range(4):
        engine = build(Layout(stage, zero=(("stage3_param_persistence_threshold", 60),) if stage == 3 else ()), folder)
        batch = make_batch(*rows(9))

        def look(model: Model, batch: PackedBatch) -> Any:
            loss = Objective().losses(model, batch)["mlm"].loss_sum
            return [loss.item(), loss.requires_grad, model.training, batch.num_tokens]

        before = engine.run(look, batch)
        train(engine, range(2))
        found.append([before, engine.run(look, batch), engine.run(lambda model, batch: None, batch)])
        assert engine.model.training and engine.deepspeed.training
        assert train(engine, range(2, 3))[0] == train_plainly(folder, stage)
    return found


def train_plainly(folder: Path, stage: int) -> list[float]:
    """The third loss of a run without evaluation."""
    return train(build(Layout(stage), folder), range(3))[0][2:]


@pytest.mark.parametrize("ranks", [1, 2])
def test_functions_run_inside_the_forward_call(ranks, tmp_path):
    batch = make_batch(*rows(9))
    expected = Objective().losses(tiny_model(), batch)["mlm"].loss_sum.item()
    for found in run_ranks(MODULE, "inside", tmp_path, ranks):
        assert len(found) == 4
        for before, after, nothing in found:
            assert before == [pytest.approx(expected, rel=1e-6), False, False, batch.num_tokens]
            assert after[0] < 0.999 * before[0] and after[1:] == before[1:]
            assert after[0] == pytest.approx(found[0][1][0], rel=1e-6)
            assert nothing is None


def applied(folder: Path) -> list[Any]:
    """Groups before and after settings were applied."""
    begin()
    engine = build(Layout(1), folder)
    engine.optimizer.param_groups[0]["lr_scale"] = 0.5
    before = [{name: group[name] for name in ("lr", "betas", "eps", "weight_decay")} for group in groups_of(engine)]
    engine.apply(OptimizerConfig(betas=(0.8, 0.95), eps=1e-7, weight_decay=0.3), 2e-3)
    after = [{name: group[name] for name in ("lr", "betas", "eps", "weight_decay")} for group in groups_of(engine)]
    engine.apply(OptimizerConfig(weight_decay=0.0), 1e-3)
    engine.optimizer.param_groups[0]["decay"] = True
    engine.apply(OptimizerConfig(weight_decay=0.2), 1e-3)
    return [before, after, [{name: group[name] for name in ("betas", "weight_decay")} for group in groups_of(engine)]]


def groups_of(engine: ZeroEngine) -> list[dict[str, Any]]:
    return engine.optimizer.param_groups


def test_settings_of_a_stage_are_applied(tmp_path):
    ((before, after, again),) = run_ranks(MODULE, "applied", tmp_path, 1)
    assert [group["weight_decay"] for group in before] == [0.1, 0.0]
    assert after == [
        {"lr": 1e-3, "betas": [0.8, 0.95], "eps": 1e-7, "weight_decay": 0.3},
        {"lr": 2e-3, "betas": [0.8, 0.95], "eps": 1e-7, "weight_decay": 0.0},
    ]
    assert again == [{"betas": [0.9, 0.999], "weight_decay": 0.2}, {"betas": [0.9, 0.999], "weight_decay": 0.0}]
