"""Where the sequences of a packed batch begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import Protocol

import torch
from torch import Tensor


class AttentionCache(Protocol):
    """Keeps the keys and values of tokens that went through a model before (``engine.models.cache``)."""

    def attend(self, qkv: Tensor, layout: PackedLayout, causal: bool, site: int) -> Tensor:
        """Attend to what was kept and to new tokens, and keep these: [N, 3, H, K] to [N, H, K]."""
        ...


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Boundaries of S sequences that lie back to back in N tokens.

    A length of 0 takes no part. Where batches are filled up to fixed shapes (``engine.data.filler``), filler stands
    behind the last sequence: tokens that are in none, for which attention gives 0, and boundaries of sequences without
    tokens, which all equal the end of the last one.

    Attributes:
        cu_seqlens: [S+1] int32 on the device of the tokens: 0, and the running sum of lengths, filler included.
        lengths: tokens of each sequence as host integers, so that no step waits for the device; filler has none here.
        num_filler: tokens behind the last sequence.
        bound: of the lengths, the same for all batches of a stage; None where shapes are not fixed.
        prefix_lengths: [S] int32 beside ``cu_seqlens``: how many first tokens of each sequence are seen by all its
            tokens; each of the others is seen by itself and by those after it (prefix masking, Dong et al. 2019,
            arXiv:1905.03197, section 2.4). None: the model's own mask. 0 for filler.
        cache: of keys and values, where text is generated token by token.
    """

    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    num_filler: int = 0
    bound: int | None = None
    prefix_lengths: Tensor | None = None
    cache: AttentionCache | None = None

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> PackedLayout:
        """Lay out sequences of these lengths in this order, without filler."""
        boundaries = [0, *accumulate(lengths)]
        return cls(torch.tensor(boundaries, dtype=torch.int32, device=device), tuple(lengths))

    @property
    def is_fixed(self) -> bool:
        """Whether the batch was filled up to a fixed shape."""
        return self.bound is not None

    @property
    def max_length(self) -> int:
        """A bound of the lengths: where shapes are fixed that of the stage, else the longest, 0 for none."""
        return max(self.lengths, default=0) if self.bound is None else self.bound

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Consecutive sequences of equal length as (number of sequences, length); filler is in none."""
        return tuple((len(list(group)), length) for length, group in groupby(self.lengths) if length)
