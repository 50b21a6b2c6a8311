"""Filler: what is put behind a packed batch so that its tensors have one of few shapes.

With the shapes of the batch before, a GPU's allocator hands out the blocks of the batch before, and torch.compile need
not allow for any size. Filler changes no loss: its tokens are in no sequence, so that attention passes them by, and its
targets are ignored. Counts stay those of the text.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.data.batch import PackedBatch, Targets
from engine.models.layout import PackedLayout
from kernels.cross_entropy import IGNORE_INDEX

SMALLEST = 8  # of any size; all sizes are multiples of it

# N tokens, S sequences and M targets of a batch; what they are filled up to has a stroke


def filled(batch: PackedBatch, most_tokens: int | None = None, longest: int | None = None) -> PackedBatch:
    """Fill a batch up to sizes that are a function of its own and of what is the same for all batches of a stage.

    Targets of the filler are the batch's own once more, in their order and with a label that is ignored. So what they
    read was read already, and no element gets more than a few gradients of zero: where thousands of targets name the
    same element, a GPU adds their gradients up one after the other.

    Args:
        batch: on the host, without filler.
        most_tokens: that a batch of the stage has: its rows times their budget. None: not known.
        longest: bound of a sequence's tokens in the stage. None: not known.

    Returns:
        tokens, positions and segments [N'], boundaries [S'+1], targets [M'].
    """
    num_tokens, lengths = batch.num_tokens, batch.layout.lengths
    size = coarse(num_tokens) if most_tokens is None else max(num_tokens, most_tokens)
    boundaries, longest_here = batch.layout.cu_seqlens, max(lengths, default=0)
    prefixes = batch.layout.prefix_lengths
    num_boundaries = power_of_two(len(lengths)) + 1
    layout = PackedLayout(
        F.pad(boundaries, (0, num_boundaries - len(boundaries)), value=num_tokens),
        lengths,
        num_filler=size - num_tokens,
        bound=power_of_two(longest_here) if longest is None else max(longest, longest_here),
        prefix_lengths=None if prefixes is None else F.pad(prefixes, (0, num_boundaries - len(boundaries))),
    )

    def pad(tensor: Tensor) -> Tensor:
        return F.pad(tensor, (0, size - num_tokens))

    return replace(
        batch,
        tokens=pad(batch.tokens),
        positions=pad(batch.positions),
        segments=None if batch.segments is None else pad(batch.segments),
        layout=layout,
        targets={name: _filled_targets(target) for name, target in batch.targets.items()},
    )


def _filled_targets(targets: Targets) -> Targets:
    """[M] to [M'], labels of further dimensions too; without any of its own, the filler names the first element."""
    own = targets.index
    more = coarse(len(own)) - len(own)
    repeated = own[torch.arange(more) % len(own)] if len(own) else own.new_zeros(more)
    sides = (0, 0) * (targets.labels.dim() - 1) + (0, more)  # F.pad counts from the last dimension
    return Targets(torch.cat([own, repeated]), F.pad(targets.labels, sides, value=IGNORE_INDEX))


def coarse(size: int) -> int:
    """The next size of a scale of eight steps between powers of two: at most an eighth more, and few over a run."""
    step = max(SMALLEST, 1 << max(0, (size - 1).bit_length() - 4))
    return max(SMALLEST, -(-size // step) * step)


def power_of_two(size: int) -> int:
    """The next power of two: for sizes that cost nothing."""
    return max(SMALLEST, 1 << max(0, size - 1).bit_length())
