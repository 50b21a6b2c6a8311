"""A micro-batch: sequences of several rows packed back to back, and the targets of each objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.models.layout import PackedLayout

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Targets:
    """What one objective predicts in a packed batch.

    Attributes:
        index: [M] int64, positions in the packed batch (sequences for sequence-level targets).
        labels: [M], what stands there: int64 token ids or classes.
    """

    index: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Inputs and targets of one forward pass; N tokens, S sequences.

    Attributes:
        tokens: [N] int64.
        positions: [N] int64, counted from 0 in each sequence.
        segments: [N] int64, or None where all tokens are in segment 0.
        layout: sequence boundaries.
        targets: per objective.
        counts: targets per objective, host integers that the loss is divided by.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor | None
    layout: PackedLayout
    targets: dict[str, Targets] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens in the batch, special tokens included."""
        return int(self.tokens.shape[0])

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on a device; copies from pinned memory do not wait."""
        if device.type == "cpu":
            return self

        def move(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        return replace(
            self,
            tokens=move(self.tokens),
            positions=move(self.positions),
            segments=None if self.segments is None else move(self.segments),
            layout=PackedLayout(move(self.layout.cu_seqlens), self.layout.lengths),
            targets={k: Targets(move(t.index), move(t.labels)) for k, t in self.targets.items()},
        )


def pack(
    sequences: Sequence[NDArray[np.integer]], segments: Sequence[NDArray[np.integer]] | None = None
) -> PackedBatch:
    """Pack token sequences back to back, without targets.

    Args:
        sequences: S arrays of token ids, each of at least one token.
        segments: the segment of each token, or None for segment 0 everywhere.
    """
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    flat = None if segments is None else np.concatenate(segments)
    return pack_flat(np.concatenate(sequences), lengths, flat)


def pack_flat(tokens: NDArray[np.integer], lengths: Int64, segments: NDArray[np.integer] | None = None) -> PackedBatch:
    """Sequences that lie back to back already, without targets.

    Args:
        tokens: [N] token ids.
        lengths: [S] tokens of each sequence, each at least 1.
        segments: [N] the segment of each token, or None for segment 0 everywhere.
    """
    ends = np.cumsum(lengths)
    positions = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
    return PackedBatch(
        tokens=torch.from_numpy(tokens.astype(np.int64)),
        positions=torch.from_numpy(positions),
        segments=None if segments is None else torch.from_numpy(segments.astype(np.int64)),
        layout=PackedLayout.from_lengths(lengths.tolist()),
    )
