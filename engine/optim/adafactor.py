"""Adafactor (Shazeer and Stern 2018, arXiv:1804.04235): the second moment of a matrix as a row and a column.

Without first moment, with update clipping, at an outer rate, with decoupled weight decay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.optim.whole import Piece, WholeParameterOptimizer, Work, apply_update, moment, next_step

ROWS, COLUMNS = "factored_rows", "factored_columns"


@dataclass(frozen=True)
class Rectangle:
    """A block of whole rows, or a part of one row, of a matrix.

    Attributes:
        begin: first element in the piece.
        rows: rows of the matrix.
        columns: columns of the matrix.
    """

    begin: int
    rows: slice
    columns: slice

    def of(self, piece: Tensor) -> Tensor:
        """View [rows, columns] of a flat piece."""
        rows, columns = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return piece[self.begin : self.begin + rows * columns].view(rows, columns)


def rectangles(offset: int, size: int, columns: int) -> Iterator[Rectangle]:
    """Cut a piece of a flattened matrix, from an offset, into three rectangles at most."""
    end, at = offset + size, offset
    while at < end:
        row, column = divmod(at, columns)
        whole = (end - at) // columns if column == 0 else 0
        if whole:
            yield Rectangle(at - offset, slice(row, row + whole), slice(0, columns))
            at += whole * columns
        else:
            stop = min(columns, column + end - at)
            yield Rectangle(at - offset, slice(row, row + 1), slice(column, stop))
            at += stop - column


class Adafactor(WholeParameterOptimizer):
    """Groups of rule ``factored`` hold matrices, all others have a second moment of their own shape.

    Every rank keeps the factors of all matrices: a step sums those of its matrices over the ranks, then one number of
    each parameter. Eps is added to squared gradients.
    """

    def __init__(self, params: Iterable[Any], lr: float, eps: float, clip_update: float, decay_rate: float) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": 0.0, "rule": "factored"})
        self.clip_update, self.decay_rate = clip_update, decay_rate
        self.factors: dict[int, tuple[Tensor, Tensor]] = {}

    def bind(self, engine: Any, model: nn.Module) -> None:
        """Learn where the pieces are and make room for the factors."""
        super().bind(engine, model)
        device = next(iter(self.pieces)).device
        self.factors = {
            number: (torch.zeros(shape[0], device=device), torch.zeros(shape[1], device=device))
            for number, shape in enumerate(self.shapes)
            if len(shape) == 2
        }

    def replicated_state(self) -> dict[tuple[str, str], Tensor]:
        """The factors by kind and parameter name: fp32, the same on every rank, to be read and written in place."""
        return {
            (kind, self.names[number]): factor
            for number, factors in self.factors.items()
            for kind, factor in zip((ROWS, COLUMNS), factors, strict=True)
        }

    def update(self, work: Work) -> None:
        """Take a step on some keys."""
        decays = {key: 1 - next_step(self.state[key]) ** -self.decay_rate for _, key in work}
        self._advance_factors([(group, key) for group, key in work if group["rule"] == "factored"], decays)
        updates = {key: self._direction(group, key, decays[key]) for group, key in work}
        squares = self.squared_norms({key: [update] for key, update in updates.items()})[0]
        sizes = torch.tensor([shape.numel() for shape in self.shapes], dtype=torch.float64, device=squares.device)
        too_large = ((squares / sizes).sqrt() / self.clip_update).clamp(min=1.0)
        for group, key in work:
            for piece in self.pieces[key]:
                piece.of(updates[key]).div_(too_large[piece.parameter])
            apply_update(key, updates[key], group)

    def _advance_factors(self, work: Work, decays: dict[Tensor, float]) -> None:
        """Average the rows' and the columns' means of the squared gradients in."""
        members = sorted({number for _, key in work for number in self.members[key]})
        if not members:
            return
        device = work[0][1].device
        lengths = [length for number in members for length in self.shapes[number]]
        flat = torch.zeros(sum(lengths), dtype=torch.float64, device=device)
        parts = flat.split(lengths)
        sums = {number: (parts[2 * i], parts[2 * i + 1]) for i, number in enumerate(members)}
        for group, key in work:
            for piece in self.pieces[key]:
                self._add_squares(piece, key, group["eps"], sums[piece.parameter])
        total = self.sum(flat).split(lengths)
        decay = next(iter(decays[key] for _, key in work))  # keys of a call have taken equally many steps
        for i, number in enumerate(members):
            rows, columns = self.shapes[number]
            row_factor, column_factor = self.factors[number]
            row_factor.lerp_((total[2 * i] / columns).float(), 1 - decay)
            column_factor.lerp_((total[2 * i + 1] / rows).float(), 1 - decay)

    def _add_squares(self, piece: Piece, key: Tensor, eps: float, sums: tuple[Tensor, Tensor]) -> None:
        assert key.grad is not None
        gradient, (rows, columns) = piece.of(key.grad), sums
        for rectangle in rectangles(piece.offset, piece.size, len(columns)):
            squares = rectangle.of(gradient).square().add_(eps)
            rows[rectangle.rows] += squares.sum(1, dtype=torch.float64)
            columns[rectangle.columns] += squares.sum(0, dtype=torch.float64)

    def _direction(self, group: dict[str, Any], key: Tensor, decay: float) -> Tensor:
        """The gradient over the root of the second moment, shaped like the key."""
        gradient = key.grad
        assert gradient is not None
        if group["rule"] != "factored":
            second = moment(self.state[key], "exp_avg_sq", key)
            second.mul_(decay).add_(gradient.square().add_(group["eps"]), alpha=1 - decay)
            return gradient / second.sqrt()
        update = torch.zeros_like(key, memory_format=torch.contiguous_format)
        for piece in self.pieces[key]:
            rows, columns = self.factors[piece.parameter]
            row_scale, column_scale = (rows / rows.mean()).rsqrt(), columns.rsqrt()
            for rectangle in rectangles(piece.offset, piece.size, len(columns)):
                scale = row_scale[rectangle.rows, None] * column_scale[rectangle.columns]
                torch.mul(rectangle.of(piece.of(gradient)), scale, out=rectangle.of(piece.of(update)))
        return update
