"""The generator of dropout masks against its published algorithm, and its masks against their probability."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.philox import LEVELS, draws, keep_mask, keep_scale, seed_tensor, threshold_of


def philox(counter: list[int], key: list[int], rounds: int) -> list[int]:
    """Philox4x32 of Salmon et al. 2011 in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_algorithm_gives_the_published_numbers():
    # Known answers of Random123 1.14, kat_vectors, for 7 and 10 rounds.
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    assert philox([0] * 4, [0] * 2, 7) == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    assert philox([0] * 4, [0] * 2, 10) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox(*pi, 10) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("seed", [0, 5, (1 << 63) + 12345, (1 << 64) - 1])
def test_draws_are_philox_of_their_place(seed):
    found = draws(seed_tensor(seed), site=(1 << 32) - 7, rows=5, width=19)
    for row, column in ((0, 0), (0, 7), (0, 8), (4, 18), (3, 1)):
        words = philox([column // 8, row, 0, (1 << 32) - 7], [seed & 0xFFFFFFFF, seed >> 32], 7)
        word = words[column % 8 // 2]
        assert int(found[row, column]) == (word >> 16 if column % 2 else word & 0xFFFF)


def test_draws_are_even_and_unlike_for_seeds_sites_and_rows():
    one, other, elsewhere = (draws(seed_tensor(seed), site, 256, 256) for seed, site in ((1, 0), (2, 0), (1, 1)))
    counts = np.bincount((one >> 12).flatten().numpy(), minlength=16)
    assert abs(counts / one.numel() - 1 / 16).max() < 0.005
    for second in (other, elsewhere, one.roll(1, 0), one.roll(1, 1)):
        assert (one == second).float().mean() < 0.001
    assert one.min() >= 0 and one.max() < LEVELS


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.999999])
def test_masks_keep_their_expectation(probability):
    threshold = threshold_of(probability)
    assert abs(threshold / LEVELS - probability) <= 1 / LEVELS
    kept = keep_mask(seed_tensor(3), 1, 512, 512, threshold).double().mean()
    assert abs(float(kept) - (1 - probability)) < 0.003
    assert keep_scale(threshold) * (1 - threshold / LEVELS) == pytest.approx(1)


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_impossible_probabilities(probability):
    with pytest.raises(ValueError, match=r"the dropout probability is .*; it must be in \[0, 1\)"):
        threshold_of(probability)


def test_rows_beyond_32_bits_have_draws_of_their_own():
    assert not torch.equal(draws(seed_tensor(1), 0, 1, 8), draws(seed_tensor(1), 0, 2, 8)[1:])
