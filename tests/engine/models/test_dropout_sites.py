"""Calls of dropout in a model: each has a site of its own, so that no two share a mask."""

from __future__ import annotations

import pytest
import torch

from engine.config.arch import ArchConfig
from engine.models import attention, dropout, embeddings, layers
from engine.models.layout import PackedLayout
from engine.models.model import build_model

LENGTHS = (5, 7)


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_no_two_calls_share_a_mask(norm_position, monkeypatch):
    for module in (attention, dropout):
        monkeypatch.setattr(module, "is_wanted", lambda *_, **__: True)
    seen: list[tuple[int, int]] = []

    def noting(function):
        def call(*args, **options):
            if options.get("dropout"):
                seen.append((int(options["seed"]), options["site"]))
            return function(*args, **options)

        return call

    monkeypatch.setattr(attention, "packed_attention", noting(attention.packed_attention))
    monkeypatch.setattr(layers, "norm", noting(layers.norm))
    monkeypatch.setattr(embeddings, "embed", noting(embeddings.embed))
    monkeypatch.setattr(dropout.kernels, "dropout_add", noting(dropout.kernels.dropout_add))
    arch = ArchConfig(
        vocab_size=40, hidden_size=16, num_layers=3, num_heads=2, intermediate_size=32, max_positions=8,
        norm_position=norm_position, hidden_dropout=0.1, attention_dropout=0.1,
    )  # fmt: skip
    model = build_model(arch, {}, seed=1).train()
    tokens = torch.arange(sum(LENGTHS))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    for _ in range(2):
        model(tokens, positions, None, PackedLayout.from_lengths(LENGTHS))
    assert len(seen) == 2 * (1 + 3 * arch.num_layers) and len(set(seen)) == len(seen)
    assert len({seed for seed, _ in seen}) == 2  # one of each forward pass
    model.eval()(tokens, positions, None, PackedLayout.from_lengths(LENGTHS))
    assert len(seen) == 2 * (1 + 3 * arch.num_layers)
