"""A micro-batch: sequences of several rows packed back to back, and the targets of each objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        labels: [M], what stands there: int64 token ids or classes; of some tasks floats, or [M, ...].
    """

    index: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Inputs and targets of one forward pass; N tokens, S sequences, filler included where shapes are fixed.

    Attributes:
        tokens: [N] int64.
        positions: [N] int64, counted from 0 in each sequence.
        segments: [N] int64, or None where all tokens are in segment 0.
        layout: sequence boundaries.
        targets: per objective.
        counts: targets per objective without filler, host integers that the loss is divided by.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor | None
    layout: PackedLayout
    targets: dict[str, Targets] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens in the batch, special tokens included, filler not."""
        return int(self.tokens.shape[0]) - self.layout.num_filler

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on a device; copies from pinned memory do not wait."""
        if device.type == "cpu":
            return self
        return self.each(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))

    def each(self, function: Callable[[Tensor], Tensor]) -> PackedBatch:
        """The same batch with a function's result for each of its tensors."""
        prefixes = self.layout.prefix_lengths
        layout = replace(
            self.layout,
            cu_seqlens=function(self.layout.cu_seqlens),
            prefix_lengths=None if prefixes is None else function(prefixes),
        )
        return replace(
            self,
            tokens=function(self.tokens),
            positions=function(self.positions),
            segments=None if self.segments is None else function(self.segments),
            layout=layout,
            targets={name: Targets(function(t.index), function(t.labels)) for name, t in self.targets.items()},
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
