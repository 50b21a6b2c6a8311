"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum made orthogonal, matrix by matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from engine.optim.whole import WholeParameterOptimizer, Work, adam_direction, apply_update, moment, next_step

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; Jordan's, for the steepest slope at 0
ITERATIONS = 5
UPDATE_SCALE = 0.2  # root mean square of AdamW's updates (Moonlight, arXiv:2502.16982, section 2.2)
FUSED = ("attention.qkv.weight", 3)  # queries, keys and values are three matrices in one parameter
BUCKET_ELEMENTS = 2**25  # of whole matrices gathered at a time: 128 MiB


class Muon(WholeParameterOptimizer):
    """Nesterov momentum, orthogonalised, for matrices of layers; AdamW for groups whose ``rule`` is ``adamw``.

    Matrices that ZeRO cut are summed together from their pieces. One rank makes each orthogonal and hands it to the
    others, at stage 0 too, so that all ranks have the same bits. Clipping acts on gradients, before all this.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, momentum: float
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "rule": "muon", "momentum": momentum}
        super().__init__(params, defaults)

    def update(self, work: Work) -> None:
        """Take a step on some keys."""
        updates = {}
        for group, key in work:
            if group["rule"] == "muon":
                updates[key] = self._nesterov(key, group["momentum"])
            else:
                apply_update(key, adam_direction(self.state[key], key, group), group)
        if updates:
            self._orthogonalise(updates)
        for group, key in work:
            if key in updates:
                apply_update(key, updates[key], group)

    def _nesterov(self, key: Tensor, momentum: float) -> Tensor:
        """Advance the momentum and look one step ahead; a new tensor, shaped like the key."""
        state, gradient = self.state[key], key.grad
        assert gradient is not None
        next_step(state)
        average = moment(state, "exp_avg", key).lerp_(gradient, 1 - momentum)
        return torch.lerp(gradient, average, momentum)

    def _orthogonalise(self, updates: dict[Tensor, Tensor]) -> None:
        """Replace the pieces of matrices by those of the orthogonal ones."""
        shared = torch.distributed.get_world_size() > 1
        gather = []
        for number in sorted({number for key in updates for number in self.members[key]}):
            if shared and (self.cut[number] or not self.sharded):
                gather.append(number)
            else:
                for view, _ in self._views(updates, number):
                    view.copy_(self._orthogonal(number, view.view(self.shapes[number])).view(-1))
        for bucket in self._buckets(gather):
            self._exchange(updates, bucket)

    def _exchange(self, updates: dict[Tensor, Tensor], bucket: list[int]) -> None:
        """Gather matrices, have each made orthogonal by one rank, and take back this rank's pieces of them."""
        sizes = [self.shapes[number].numel() for number in bucket]
        whole = torch.zeros(sum(sizes), dtype=torch.float32, device=self._device)
        owners = self._owners(bucket)
        for number, matrix in zip(bucket, whole.split(sizes), strict=True):
            for view, offset in self._views(updates, number):
                matrix[offset : offset + view.numel()].copy_(view)
        if self.sharded:
            torch.distributed.all_reduce(whole)
        rank = torch.distributed.get_rank()
        for number, owner, matrix in zip(bucket, owners, whole.split(sizes), strict=True):
            if owner == rank:
                matrix.copy_(self._orthogonal(number, matrix.view(self.shapes[number])).view(-1))
            else:
                matrix.zero_()
        torch.distributed.all_reduce(whole)
        for number, matrix in zip(bucket, whole.split(sizes), strict=True):
            for view, offset in self._views(updates, number):
                view.copy_(matrix[offset : offset + view.numel()])

    def _views(self, updates: dict[Tensor, Tensor], number: int) -> Iterator[tuple[Tensor, int]]:
        """This rank's pieces of a matrix, and where each begins in it."""
        for key, update in updates.items():
            for piece in self.pieces[key]:
                if piece.parameter == number:
                    yield piece.of(update), piece.offset

    def _buckets(self, numbers: list[int]) -> Iterator[list[int]]:
        """Cut a list of matrices where a bucket is full."""
        bucket: list[int] = []
        filled = 0
        for number in numbers:
            size = self.shapes[number].numel()
            if bucket and filled + size > BUCKET_ELEMENTS:
                yield bucket
                bucket, filled = [], 0
            bucket.append(number)
            filled += size
        if bucket:
            yield bucket

    def _owners(self, bucket: list[int]) -> list[int]:
        """The rank that makes each matrix orthogonal: the one with the least work so far; the same on every rank."""
        load = [0] * torch.distributed.get_world_size()
        owners = []
        for number in bucket:
            owner = load.index(min(load))
            load[owner] += self.shapes[number].numel() * min(self.shapes[number])
            owners.append(owner)
        return owners

    def _orthogonal(self, number: int, matrix: Tensor) -> Tensor:
        """The update of a matrix, scaled so that AdamW's rate fits; same shape."""
        name, parts = FUSED
        matrices = matrix.unflatten(0, (parts if self.names[number].endswith(name) else 1, -1))  # [parts, rows, cols]
        scale = UPDATE_SCALE * max(matrices.shape[1:]) ** 0.5
        return newton_schulz(matrices.to(self._device)).mul_(scale).flatten(0, 1).to(matrix.device)


def newton_schulz(matrices: Tensor) -> Tensor:
    """Move singular values near 1 by five steps of an odd polynomial.

    Args:
        matrices: [B, rows, cols] fp32.

    Returns:
        The same shape; singular values in about [0.7, 1.2], 0 where a matrix is 0.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # the products below are of the smaller side
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).contiguous()
