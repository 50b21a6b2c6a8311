"""Where the sequences of a packed batch begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Boundaries of S sequences that lie back to back in N tokens.

    ``cu_seqlens`` is [S+1] int32 on the device of the tokens: 0, the running sum of lengths, N. ``lengths`` holds the
    same as host integers, so that no step waits for the device. A length of 0 is filler and takes no part.
    """

    cu_seqlens: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> PackedLayout:
        """Lay out sequences of these lengths in this order."""
        boundaries = [0, *accumulate(lengths)]
        return cls(torch.tensor(boundaries, dtype=torch.int32, device=device), tuple(lengths))

    @property
    def max_length(self) -> int:
        """Length of the longest sequence, 0 for none."""
        return max(self.lengths, default=0)

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Consecutive sequences of equal length as (number of sequences, length)."""
        return tuple((len(list(group)), length) for length, group in groupby(self.lengths) if length)
