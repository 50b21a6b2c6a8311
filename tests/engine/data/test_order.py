"""The order of an epoch: a permutation, found at any position, of groups that stay together."""

from __future__ import annotations

import numpy as np
import pytest

from engine.data.order import BUFFER_GROUPS, EpochOrder, permutation, philox


def offsets(rng: np.random.Generator, num_groups: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(rng.integers(1, 30, num_groups))])


@pytest.mark.parametrize("num_groups", [1, 2, 31, 32, 33, 101])
def test_order_is_a_permutation(num_groups):
    groups = offsets(np.random.default_rng(num_groups), num_groups)
    rows = EpochOrder(groups, seed=3, epoch=1).rows(np.arange(groups[-1]))
    assert sorted(rows.tolist()) == list(range(groups[-1]))


def test_any_slice_equals_the_whole():
    groups = offsets(np.random.default_rng(0), 100)
    whole = EpochOrder(groups, 7, 2).rows(np.arange(groups[-1]))
    order = EpochOrder(groups, 7, 2)
    for start in (900, 5, 400, groups[-1] - 3):
        window = np.arange(start, min(start + 60, groups[-1]))
        assert (order.rows(window) == whole[window]).all()


def test_seeds_and_epochs_differ():
    groups = offsets(np.random.default_rng(0), 50)
    everything = np.arange(groups[-1])
    orders = [EpochOrder(groups, seed, epoch).rows(everything).tolist() for seed, epoch in [(1, 0), (1, 1), (2, 0)]]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_buffer_touches_few_groups():
    groups = np.arange(0, 10_001, 10)
    order = EpochOrder(groups, 1, 0)
    for start in range(0, 10_000, 10 * BUFFER_GROUPS):
        window = np.arange(start, min(start + 10 * BUFFER_GROUPS, 10_000))
        assert len(np.unique(order.rows(window) // 10)) <= BUFFER_GROUPS


def test_draws_never_change():
    # Written down once: a change here would change the data order of runs that are under way.
    assert permutation(8, philox(1, 0, 0, 0)).tolist() == [3, 5, 2, 7, 0, 6, 1, 4]
    assert philox(5, 2, 9, 3).random_raw(2).tolist() == [6412822213994201526, 4228704809330589815]
