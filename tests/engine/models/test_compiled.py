"""Compiled layers: the same losses, and few compilations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, Targets, pack
from engine.data.filler import filled
from engine.models.compiled import compile_layers
from engine.models.heads import MaskedLMHead
from engine.models.model import Model, build_model
from engine.objectives.base import cross_entropy_term, encode
from kernels import build, dispatch

ARCH = ArchConfig(
    vocab_size=101, hidden_size=64, num_layers=3, num_heads=2, intermediate_size=96, max_positions=32,
    hidden_dropout=0.1, attention_dropout=0.1, init_std=0.1,
)  # fmt: skip
MOST = 128


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing compiled before, and no kernel that is not asked for."""
    from torch._dynamo.utils import counters

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.delenv("KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "measured", dict)
    torch._dynamo.reset()
    counters.clear()
    dispatch._candidates.cache_clear()
    yield
    dispatch._candidates.cache_clear()
    torch._dynamo.reset()
    torch.set_num_threads(threads)


def batch_of(number: int, most: int | None = MOST) -> PackedBatch:
    """A batch of other lengths for each number; of sequences there are 8 at most."""
    draw = np.random.default_rng(number)
    lengths = draw.integers(3, 17, 5 + number % 4)
    batch = pack([draw.integers(0, ARCH.vocab_size, length) for length in lengths])
    index = torch.arange(0, batch.num_tokens, 3)
    batch = replace(batch, targets={"mlm": Targets(index, batch.tokens[index])}, counts={"mlm": len(index)})
    return batch if most is None else filled(batch, most, ARCH.max_positions)


def model_of(compiled: bool, arch: ArchConfig = ARCH) -> Model:
    model = build_model(arch, {"mlm": MaskedLMHead(arch)}, seed=3)
    model.train()
    if compiled:
        compile_layers(model)
    return model


def loss_of(model: Model, batch: PackedBatch, seed: int) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(seed)
    target = batch.targets["mlm"]
    logits = model.heads["mlm"](encode(model, batch)[target.index], model.word_embedding)
    term = cross_entropy_term(logits, target.labels, batch.counts["mlm"], False)
    model.zero_grad()
    term.loss_sum.backward()
    return term.loss_sum.item() / term.num_targets, {name: p.grad.clone() for name, p in model.named_parameters()}


def graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def breaks() -> int:
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())


@pytest.mark.parametrize("backend", ["torch", "reference", "cpu"])
@pytest.mark.parametrize("position", ["post", "pre"])
def test_batches_of_one_shape_are_compiled_for_once(position, backend, fresh, monkeypatch):
    """Whatever their lengths; with our operator for attention in one graph, and without it round attention."""
    if backend == "cpu" and (reason := build.missing("cpu")):
        pytest.skip(reason)
    if backend != "torch":
        monkeypatch.setenv("KERNELS_BACKEND", backend)
    arch = dataclasses.replace(ARCH, norm_position=position)
    plain, compiled = model_of(False, arch), model_of(True, arch)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    seen = []
    for number in range(6):
        expected, gradients = loss_of(plain, batch_of(number), number)
        loss, found = loss_of(compiled, batch_of(number), number)
        assert loss == pytest.approx(expected, rel=1e-6), number
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
        seen.append(graphs())
    assert 0 < seen[0] == seen[-1], seen
    assert (breaks() == 0) == (backend != "torch")
    for number, most in ((6, 192), (7, 256), (8, 320)):  # the second shape is compiled for as any, and the others fit
        loss_of(compiled, batch_of(number, most), number)
        seen.append(graphs())
    assert seen[5] < seen[6] == seen[8], seen


def test_batches_without_fixed_shapes_beside_them(fresh):
    """As in evaluations, which are not filled up: one more compilation, for all of them."""
    plain, compiled = model_of(False), model_of(True)
    seen = []
    for number in range(6):
        most = MOST if number < 2 else None
        expected, _ = loss_of(plain, batch_of(number, most), number)
        assert loss_of(compiled, batch_of(number, most), number)[0] == pytest.approx(expected, rel=1e-6)
        seen.append(graphs())
    assert seen[0] == seen[1] < seen[2] == seen[5], seen
    loss_of(compiled, batch_of(9), 9)
    assert graphs() == seen[5]
