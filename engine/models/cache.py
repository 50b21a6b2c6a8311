"""Keys and values of tokens that went through a model, so that each new token is computed alone."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.models.attention import attend
from engine.models.layout import PackedLayout

# N tokens, S sequences, T places of the longest sequence, H heads, K head_size


class KeyValueCache:
    """The keys and values of S sequences at every call of attention, kept in [S, H, T, K] each.

    A first pass takes the sequences' beginnings, of any lengths, packed (``fill_layout``). Every further pass takes one
    token of each sequence (``step_layout``), which sees all that went before it, as in a causal model; where the
    beginnings are masked by prefix, they are whole prefixes.

    Attributes:
        lengths: [S] int64, tokens of each sequence that are kept.
    """

    def __init__(self, lengths: Tensor, places: int) -> None:
        """Make an empty cache.

        Args:
            lengths: [S] int64, tokens of the beginnings.
            places: T, what the longest sequence may grow to.
        """
        self.lengths, self.places = lengths, places
        self._longest = int(lengths.max())
        self._owners = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)  # [N]
        self._offsets = torch.cat([torch.arange(int(length), device=lengths.device) for length in lengths])  # [N]
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._filled = False

    def fill_layout(self, layout: PackedLayout) -> PackedLayout:
        """The layout of the packed beginnings, for the first pass."""
        return replace(layout, cache=self)

    def step_layout(self) -> PackedLayout:
        """The layout of one more token for each sequence, at the places ``lengths``.

        The caller adds 1 to ``lengths`` when the pass is over (``advance``).
        """
        self._filled = True
        size = len(self.lengths)
        boundaries = torch.arange(size + 1, dtype=torch.int32, device=self.lengths.device)
        return PackedLayout(boundaries, (1,) * size, cache=self)

    def advance(self) -> None:
        """Count the token that every sequence got."""
        self.lengths = self.lengths + 1
        self._longest += 1

    def select(self, numbers: Tensor) -> None:
        """Go on with these sequences, [S'] int64; one may be there several times."""
        self.lengths = self.lengths[numbers]
        self._kept = {site: (keys[numbers], values[numbers]) for site, (keys, values) in self._kept.items()}

    def attend(self, qkv: Tensor, layout: PackedLayout, causal: bool, site: int) -> Tensor:
        """Attend to what was kept and to the new tokens, and keep these.

        Args:
            qkv: [N, 3, H, K] of the new tokens.
            layout: of ``fill_layout`` or ``step_layout``.
            causal: the model's own mask, in the first pass.
            site: number of the call in the model.

        Returns:
            [N, H, K].
        """
        if not self._filled:
            self._kept[site] = (self._spread(qkv[:, 1]), self._spread(qkv[:, 2]))
            return attend(qkv, replace(layout, cache=None), causal)
        keys, values = self._kept[site]
        query, key, value = qkv.unbind(1)  # [S, H, K] each
        rows = torch.arange(len(query), device=query.device)
        keys[rows, :, self.lengths] = key
        values[rows, :, self.lengths] = value
        keys, values = keys[:, :, : self._longest + 1], values[:, :, : self._longest + 1]
        seen = torch.arange(self._longest + 1, device=query.device) <= self.lengths[:, None]  # [S, longest + 1]
        context = F.scaled_dot_product_attention(query[:, :, None], keys, values, seen[:, None, None])  # [S, H, 1, K]
        return context[:, :, 0]

    def _spread(self, packed: Tensor) -> Tensor:
        """[N, H, K] of the beginnings to [S, H, T, K], 0 where nothing is yet."""
        spread = packed.new_zeros(len(self.lengths), packed.shape[1], self.places, packed.shape[2])
        spread[self._owners, :, self._offsets] = packed
        return spread
