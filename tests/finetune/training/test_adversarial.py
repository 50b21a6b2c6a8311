"""Adversarial training against a loop over sequences in float64, at every ZeRO stage and on two ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.checkpoint.files import CheckpointManifest, write_tensors
from engine.checkpoint.state import model_shapes, model_snapshot, restore
from engine.data.filler import filled
from engine.models.compiled import compile_layers
from engine.models.model import Model
from engine.objectives.base import LossTerm
from engine.train.zero import ZeroEngine
from finetune.config.techniques import AdversarialConfig
from finetune.training.adversarial import AdversarialObjective
from tests.engine.ranks import run_ranks
from tests.engine.train.zero_layouts import (
    ARCH,
    CLIP,
    FP32_SUMS,
    RATE,
    Layout,
    Objective,
    begin,
    groups,
    make_batch,
    rows,
    tiny_model,
    train,
)

MODULE = "tests.finetune.training.test_adversarial"
FGM = AdversarialConfig(method="fgm", epsilon=0.7)
PGD = AdversarialConfig(method="pgd", epsilon=0.7, steps=3, step_size=0.4)
WHOLE = (("stage3_param_persistence_threshold", 0),)
STEPS = range(3)
CASES = [(FGM, Layout(0)), (PGD, Layout(0, frozen=True)), (PGD, Layout(2)), (PGD, Layout(3, zero=WHOLE))]


def engine_of(layout: Layout, folder: Path, config: AdversarialConfig, arch: Any = ARCH) -> ZeroEngine:
    model = tiny_model(0, layout.frozen, arch)
    shapes, weights = model_shapes(model), model_snapshot(model)
    optimizer = torch.optim.AdamW(groups(model), lr=RATE)
    objective = AdversarialObjective(Objective(), config)
    engine = ZeroEngine(model, objective, optimizer, layout.settings(torch.distributed.get_world_size()))
    file = f"initial-{torch.distributed.get_rank()}.safetensors"
    manifest = CheckpointManifest(0, shapes, {}, {}, {file: write_tensors(folder / file, weights)})
    restore(engine.deepspeed, model, folder, manifest)
    return engine


def curves(folder: Path) -> list[Any]:
    begin()
    found = [train(engine_of(layout, folder, config), STEPS) for config, layout in CASES]
    return [*found, train(engine_of(Layout(2, "bf16", top=FP32_SUMS), folder, PGD), STEPS)]


def sequence_loss(model: Model, tokens: np.ndarray, chosen: np.ndarray, offset: Tensor) -> Tensor:
    """Sum of the losses of one sequence whose vectors are moved, by the parts of the model alone."""
    batch = make_batch([tokens], [chosen])
    hidden = model.encoder.embeddings(batch.tokens, batch.positions, batch.segments) + offset
    for layer in model.encoder.layers:
        hidden = layer(hidden, batch.layout)
    target = batch.targets["mlm"]
    logits = model.heads["mlm"](hidden[target.index], model.word_embedding)
    return nn.functional.cross_entropy(logits, target.labels, reduction="sum")


def both_losses(model: Model, tokens: np.ndarray, chosen: np.ndarray, config: AdversarialConfig) -> Tensor:
    """Mean of the clean and of the attacked loss of one sequence."""
    offset = torch.zeros(len(tokens), ARCH.hidden_size, dtype=torch.float64)
    for _ in range(config.steps if config.method == "pgd" else 1):
        offset.requires_grad_()
        (slope,) = torch.autograd.grad(sequence_loss(model, tokens, chosen, offset), offset)
        size = config.step_size if config.method == "pgd" else config.epsilon
        if slope.norm() > 0:
            offset = offset.detach() + size * slope / slope.norm()
            offset = offset * min(1.0, config.epsilon / float(offset.norm()))
        offset = offset.detach()
    return (sequence_loss(model, tokens, chosen, 0 * offset) + sequence_loss(model, tokens, chosen, offset)) / 2


def plain_loop(config: AdversarialConfig, frozen: bool) -> tuple[list[float], list[float]]:
    model = tiny_model(0, frozen).double()
    optimizer = torch.optim.AdamW(groups(model), lr=RATE)
    losses, norms = [], []
    for step in STEPS:
        tokens, chosen = rows(step)
        total = torch.stack([both_losses(model, *row, config) for row in zip(tokens, chosen, strict=True)]).sum()
        loss = total / sum(map(len, chosen))
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


@pytest.mark.parametrize("ranks", [1, 2])
def test_curves_follow_a_plain_loop(ranks, tmp_path):
    expected = [plain_loop(config, layout.frozen) for config, layout in CASES]
    for *found, in_bf16 in run_ranks(MODULE, "curves", tmp_path, ranks):
        for number, ((losses, norms), (their_losses, their_norms)) in enumerate(zip(found, expected, strict=True)):
            np.testing.assert_allclose(losses, their_losses, rtol=1e-5, err_msg=str(number))
            np.testing.assert_allclose(norms, their_norms, rtol=1e-4, err_msg=str(number))
        np.testing.assert_allclose(in_bf16[0], expected[-1][0], rtol=1e-2)


def dropped(folder: Path) -> list[Any]:
    begin()
    arch = replace(ARCH, hidden_dropout=0.3)
    found = []
    for layout in (Layout(0), Layout(3, zero=WHOLE)):
        engine = engine_of(layout, folder, PGD, arch)
        torch.manual_seed(3)
        found.append(train(engine, STEPS))
    return found


def test_dropout_is_the_same_where_the_attack_has_a_pass_of_its_own(tmp_path):
    ((whole, divided),) = run_ranks(MODULE, "dropped", tmp_path, 1)
    np.testing.assert_allclose(whole[0], divided[0], rtol=1e-5)


def in_two_passes(folder: Path) -> list[Any]:
    """Dropped as it is, and with layers that say they are compiled; then a step with layers that are."""
    begin()
    found = []
    for compiled in (False, True):
        engine = engine_of(Layout(0), folder, PGD, replace(ARCH, hidden_dropout=0.3))
        engine.model.encoder.compiled = compiled
        torch.manual_seed(3)
        found.append(train(engine, STEPS))
    for real in (False, True):
        engine = engine_of(Layout(0), folder, FGM)
        if real:
            compile_layers(engine.model)
        found.append(train(engine, range(1)))
    return found


def test_compiled_layers_have_a_pass_for_the_attack(tmp_path):
    ((whole, apart, plain, compiled),) = run_ranks(MODULE, "in_two_passes", tmp_path, 1)
    np.testing.assert_allclose(whole[0], apart[0], rtol=1e-5)
    np.testing.assert_allclose(plain[0], compiled[0], rtol=1e-5)


def test_filler_and_checkpointed_layers_change_nothing():
    model, objective = tiny_model().train(), AdversarialObjective(Objective(), PGD)
    batch = make_batch(*rows(0))
    plain = objective.losses(model, batch)["mlm"].loss_sum
    torch.testing.assert_close(objective.losses(model, filled(batch))["mlm"].loss_sum, plain)
    model.encoder.checkpoint_layers = True
    torch.testing.assert_close(objective.losses(model, batch)["mlm"].loss_sum, plain)
    assert model.encoder.perturb is None and all(p.grad is None for p in model.parameters())
    clean = Objective().losses(model, batch)["mlm"].loss_sum
    assert plain > clean * 1.001


def test_settings_are_checked():
    assert AdversarialConfig(method="pgd", epsilon=2.0, steps=5).attack == (5, 1.0)
    problems = AdversarialConfig(method="free", epsilon=0.0, steps=0, step_size=-1.0).problems()
    assert [text.split(" is ")[0] for text in problems] == [
        "adversarial.method",
        "adversarial.epsilon",
        "adversarial.steps",
        "adversarial.step_size",
    ]
    assert "settings of pgd" in AdversarialConfig(method="fgm", step_size=0.1).problems()[0]


class FirstSequence(Objective):
    """A loss that depends on the first sequence alone: the others have no gradient."""

    def losses(self, model: Model, batch: Any, with_accuracy: bool = False) -> dict[str, Any]:
        end = batch.layout.cu_seqlens[1]
        hidden = model.encoder(batch.tokens, batch.positions, batch.segments, batch.layout)
        return {"mlm": LossTerm(hidden[:end, 0].square().sum(), 1)}


def test_long_steps_where_there_is_no_gradient():
    """Filler and sequences without targets have none, and are not moved."""
    model, batch = tiny_model().train(), filled(make_batch(*rows(0)))
    objective = AdversarialObjective(FirstSequence(), AdversarialConfig(method="fgm", epsilon=5.0))
    term = objective.losses(model, batch)["mlm"].loss_sum
    term.backward()
    assert term.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    alone = FirstSequence().losses(model, batch)["mlm"].loss_sum
    assert term > alone * 1.001
