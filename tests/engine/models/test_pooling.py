"""Vectors of sequences, against a loop over the sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.data.batch import pack
from engine.data.filler import filled
from engine.models.layout import PackedLayout
from engine.models.pooling import POOLING_FUNCTIONS, pool
from finetune.config.tasks import POOLINGS

LENGTHS = (3, 1, 7, 2, 5)
LOOP = {
    "first": lambda tokens: tokens[0],
    "last": lambda tokens: tokens[-1],
    "mean": lambda tokens: tokens.mean(0),
    "max": lambda tokens: tokens.max(0).values,
}


def test_the_settings_name_every_pooling():
    assert set(POOLINGS) == set(POOLING_FUNCTIONS)
    with pytest.raises(ValueError, match="pooling is 'sum'; it must be one of first, mean, max, last"):
        pool(torch.zeros(3, 2), PackedLayout.from_lengths([3]), "sum")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_sequences_and_their_gradients(pooling):
    hidden = torch.randn(sum(LENGTHS), 11, dtype=torch.float32, generator=torch.Generator().manual_seed(1))
    hidden.requires_grad_()
    weights = torch.randn(len(LENGTHS), 11, generator=torch.Generator().manual_seed(2))
    expected = torch.stack([LOOP[pooling](tokens) for tokens in hidden.split(LENGTHS)])
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), hidden)
    vectors = pool(hidden, PackedLayout.from_lengths(LENGTHS), pooling)
    (grad,) = torch.autograd.grad((vectors * weights).sum(), hidden)
    torch.testing.assert_close(vectors, expected)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_filler_changes_nothing(pooling):
    batch = filled(pack([np.arange(length) for length in LENGTHS]))
    assert batch.layout.num_filler and len(batch.layout.cu_seqlens) - 1 > len(LENGTHS)
    hidden = torch.randn(len(batch.tokens), 5, generator=torch.Generator().manual_seed(3), requires_grad=True)
    vectors = pool(hidden, batch.layout, pooling)
    real = hidden[: sum(LENGTHS)]
    expected = torch.stack([LOOP[pooling](tokens) for tokens in real.split(LENGTHS)])
    torch.testing.assert_close(vectors[: len(LENGTHS)], expected)
    assert vectors.isfinite().all()
    (grad,) = torch.autograd.grad(vectors[: len(LENGTHS)].square().sum(), hidden)
    assert not grad[sum(LENGTHS) :].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_average_is_of_its_own_sequence_alone(bad):
    """Neither filler nor another sequence spoils it, forward and backward."""
    batch = filled(pack([np.arange(length) for length in LENGTHS]))
    hidden = torch.randn(len(batch.tokens), 5, generator=torch.Generator().manual_seed(4))
    hidden[sum(LENGTHS) :], hidden[3] = bad, bad  # the filler, and the second sequence
    hidden.requires_grad_()
    vectors = pool(hidden, batch.layout, "mean")
    kept = [0, 2, 3, 4]
    assert vectors[kept].isfinite().all() and not vectors[1].isfinite().any()
    (grad,) = torch.autograd.grad(vectors[kept].sum(), hidden)
    torch.testing.assert_close(
        grad[:, 0],
        torch.tensor([1 / 3] * 3 + [0] + [1 / 7] * 7 + [1 / 2] * 2 + [1 / 5] * 5 + [0] * batch.layout.num_filler),
    )


def test_an_average_of_16_bit_numbers_is_summed_in_fp32():
    hidden = torch.full((4097, 1), 1.0, dtype=torch.bfloat16)  # a bf16 sum would stop at 256
    assert pool(hidden, PackedLayout.from_lengths([4097]), "mean").item() == 1.0
