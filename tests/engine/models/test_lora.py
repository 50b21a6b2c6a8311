"""Adapters against dense weights, in a model's forward and backward pass, and their names and limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, pack
from engine.models.lora import adapted_maps, add_adapters, merged
from engine.models.model import Model, build_model
from engine.objectives.base import encode

BERT: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 3,
    "intermediate_size": 64,
    "max_positions": 19,
    "hidden_dropout": 0.0,
    "init_std": 0.2,
}
GPT2: dict[str, Any] = {**BERT, "causal": True, "norm_position": "pre", "num_segments": 0, "embedding_norm": False}
ALL = ["encoder.layers.*"]


def adapted(fields: dict[str, Any], targets: list[str] = ALL) -> Model:
    """A model whose adapters add something."""
    model = build_model(ArchConfig(**fields), {}, 3)
    add_adapters(model, targets, rank=3, scale=1.5, seed=7)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(0.0, 0.3, generator=generator)
    return model


def dense(model: Model, fields: dict[str, Any]) -> Model:
    """The same without adapters."""
    plain = build_model(ArchConfig(**fields), {}, 3)
    plain.load_state_dict(merged(model.state_dict(), 1.5))
    return plain


def batch_of(seed: int = 0) -> PackedBatch:
    generator = torch.Generator().manual_seed(seed)
    return pack([torch.randint(0, 61, (length,), generator=generator).numpy() for length in (5, 19, 1, 11)])


@pytest.mark.parametrize("fields", [BERT, GPT2], ids=["bert", "gpt2"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_adapters_compute_what_merged_weights_compute(fields, backend, monkeypatch):
    monkeypatch.setenv("KERNELS_BACKEND", backend)
    model = adapted(fields)
    plain, before = dense(model, fields), build_model(ArchConfig(**fields), {}, 3)
    found, expected = encode(model, batch_of()), encode(plain, batch_of())
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    assert (found - encode(before, batch_of())).abs().max() > 0.1

    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for name in adapted_maps(model, ALL):
        slope: Tensor = plain.get_parameter(f"{name}.weight").grad  # dL/dW; W = W0 + s U D
        adapter = model.get_submodule(name).adapter
        torch.testing.assert_close(adapter.up.grad, 1.5 * slope @ adapter.down.T, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(adapter.down.grad, 1.5 * adapter.up.T @ slope, atol=1e-3, rtol=1e-3)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        f"{name}.adapter.{part}" for name in adapted_maps(model, ALL) for part in ("down", "up")
    }


def test_new_adapters_change_nothing_and_follow_the_seed():
    plain = build_model(ArchConfig(**BERT), {}, 3)
    models = [build_model(ArchConfig(**BERT), {}, 3) for _ in range(3)]
    for model, seed in zip(models, (7, 7, 8), strict=True):
        torch.manual_seed(seed * 11)  # global state decides nothing
        add_adapters(model, ["*.attention.qkv"], rank=2, scale=4.0, seed=seed)
    torch.testing.assert_close(encode(models[0], batch_of()), encode(plain, batch_of()), atol=0, rtol=0)
    first, again, other = (model.encoder.layers[1].attention.qkv.adapter for model in models)
    assert torch.equal(first.down, again.down) and not torch.equal(first.down, other.down)
    assert first.down.shape == (2, 24) and first.up.shape == (72, 2) and 0.1 < first.down.abs().max() <= 24**-0.5
    assert models[0].encoder.layers[0].mlp.up.adapter is None


def test_what_is_refused():
    model = build_model(ArchConfig(**BERT), {}, 3)
    with pytest.raises(ValueError, match=r"'\*\.query' matches no linear map .*the nearest name is encoder\.layers"):
        add_adapters(model, ["*.attention.*", "*.query"], 2, 1.0, 0)
    with pytest.raises(ValueError, match=r"lora\.rank is 25; encoder\.layers\.0\.attention\.qkv has a rank of 24 at"):
        add_adapters(model, ALL, 25, 1.0, 0)
