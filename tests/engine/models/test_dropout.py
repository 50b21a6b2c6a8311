"""Our dropout: the right share, the right scale, one mask for forward and backward, torch's generator."""

from __future__ import annotations

import pytest
import torch

from engine.models.dropout import dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_and_expectation(dtype: torch.dtype, probability: float) -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(1001, 997, dtype=dtype), probability, training=True)
    share = float((dropped == 0).double().mean())
    assert share == pytest.approx(probability, abs=2e-3)  # 4 standard deviations of the mean of a million
    assert float(dropped.double().mean()) == pytest.approx(1.0, abs=0.015)
    kept = dropped[dropped != 0].unique()
    assert len(kept) == 1 and float(kept) == pytest.approx(1 / (1 - probability), rel=4e-3)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 13)])
def test_backward_uses_the_mask_of_forward(shape: tuple[int, ...]) -> None:
    hidden = torch.ones(shape, requires_grad=True)
    torch.manual_seed(1)
    dropped = dropout(hidden, 0.4, training=True)
    dropped.sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, dropped.detach())


def test_mask_follows_torchs_seed_alone() -> None:
    hidden = torch.ones(64, 64)
    masks = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        masks.append(dropout(hidden, 0.3, training=True))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_neighbours_are_independent() -> None:
    torch.manual_seed(2)
    kept = (dropout(torch.ones(400_000), 0.5, training=True) != 0).double()
    for distance in range(1, 9):  # four elements share a draw
        both = float((kept[:-distance] * kept[distance:]).mean())
        assert both == pytest.approx(0.25, abs=0.004)


def test_nothing_is_dropped_in_evaluation_or_at_zero() -> None:
    hidden = torch.ones(8)
    assert dropout(hidden, 0.5, training=False) is hidden
    assert dropout(hidden, 0.0, training=True) is hidden
