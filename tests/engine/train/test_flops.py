"""Operations of a step, counted by hand and by the field's formula."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.data.batch import pack
from engine.train.flops import batch_flops, peak_flops

BASE = ArchConfig(vocab_size=30_522)


def batch_of(lengths: list[int], **counts: int):
    return replace(pack([np.ones(length, np.int64) for length in lengths]), counts=counts)


def matrix_products(arch: ArchConfig, lengths: list[int], head: list[tuple[int, int, int]]) -> float:
    """2 m n k for each matrix product [m, k] x [k, n] of a forward pass; a backward pass has two for each."""
    num, hidden, inner = sum(lengths), arch.hidden_size, arch.intermediate_size
    layer = [(num, hidden, 3 * hidden), (num, hidden, hidden), (num, hidden, inner), (num, inner, hidden)]
    for length in lengths:
        layer += [(length, arch.head_size, length), (length, length, arch.head_size)] * arch.num_heads
    return 3.0 * sum(2 * m * k * n for m, k, n in layer * arch.num_layers + head)


def test_hand_count():
    arch = ArchConfig(vocab_size=11, hidden_size=6, num_layers=2, num_heads=3, intermediate_size=10)
    lengths = [4, 1, 7]
    head = [(5, 6, 6), (5, 6, 11)]
    assert batch_flops(arch, batch_of(lengths, mlm=5)) == matrix_products(arch, lengths, head)
    assert batch_flops(arch, batch_of(lengths)) == matrix_products(arch, lengths, [])
    assert batch_flops(arch, batch_of(lengths, lm=5)) == matrix_products(arch, lengths, head[1:])


def test_causal_attention_is_half():
    arch = ArchConfig(vocab_size=11, hidden_size=6, num_layers=2, num_heads=3, intermediate_size=10)
    full, causal = (batch_flops(replace(arch, causal=value), batch_of([5, 3])) for value in (False, True))
    assert full - causal == 0.5 * 12 * 2 * 6 * (25 + 9)


def test_bert_base_is_six_operations_a_parameter_and_token():
    """Kaplan et al. 2020 (arXiv:2001.08361), section 2.1: C = 6 N a token, N without embeddings, beside attention."""
    layers = 12 * (12 * 768**2)
    assert layers == 84_934_656  # the matrices of BERT-base's layers
    short = batch_flops(BASE, batch_of([1] * 512)) / 512
    assert short == pytest.approx(6 * layers, rel=1e-3)
    # PaLM (arXiv:2204.02311), appendix B: 6 N + 12 L H Q T a token
    long = batch_flops(BASE, batch_of([512] * 8)) / 4096
    assert long == pytest.approx(6 * layers + 12 * 12 * 768 * 512, rel=1e-9)
    with_head = batch_flops(BASE, batch_of([512] * 8, mlm=600)) / 4096
    assert with_head - long == pytest.approx(6 * (768**2 + 768 * 30_522) * 600 / 4096, rel=1e-9)


def test_packing_counts_real_tokens():
    assert batch_flops(BASE, batch_of([64] * 8)) < batch_flops(BASE, batch_of([512]))


def test_peak_of_a_device(monkeypatch):
    assert peak_flops(12.5) == 12.5e12
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak_flops(None) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-40GB", 312e12), ("Mystery", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert peak_flops(None) == peak
