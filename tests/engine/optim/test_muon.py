"""Newton-Schulz against singular values, and how matrices are dealt to ranks and buckets."""

from __future__ import annotations

import pytest
import torch

from engine.optim import muon
from engine.optim.muon import Muon, newton_schulz


@pytest.mark.parametrize("shape", [(1, 7, 5), (3, 5, 5), (2, 4, 11)])
def test_singular_values_move_near_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    found = newton_schulz(matrices)
    assert found.shape == matrices.shape and found.is_contiguous()
    for before, after in zip(matrices, found, strict=True):
        u, _, v = torch.linalg.svd(before, full_matrices=False)
        diagonal = u.T @ after @ v.T
        values = diagonal.diagonal()
        assert bool(((values > 0.6) & (values < 1.3)).all())
        torch.testing.assert_close(diagonal, torch.diag(values), atol=1e-9, rtol=0)


def test_zero_stays_zero():
    assert not newton_schulz(torch.zeros(1, 3, 4)).any()


def optimizer_of(*shapes: tuple[int, int]) -> Muon:
    made = Muon([torch.nn.Parameter(torch.zeros(1))], 1.0, (0.9, 0.95), 1e-8, 0.95)
    made.shapes = [torch.Size(shape) for shape in shapes]
    return made


def test_buckets_hold_what_fits_and_at_least_one_matrix(monkeypatch):
    monkeypatch.setattr(muon, "BUCKET_ELEMENTS", 100)
    made = optimizer_of((10, 5), (5, 10), (1, 1), (20, 20), (2, 2), (3, 3))
    assert list(made._buckets([0, 1, 2, 3, 4, 5])) == [[0, 1], [2], [3], [4, 5]]
    assert list(made._buckets([])) == []


def test_work_is_dealt_evenly(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    made = optimizer_of((8, 8), (4, 4), (4, 4), (4, 4), (4, 4))
    assert made._owners([0, 1, 2, 3, 4]) == [0, 1, 2, 1, 2]
