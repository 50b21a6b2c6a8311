"""Attention within each sequence of a packed batch, in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kernels.philox import keep_mask, keep_scale

# N tokens, S sequences, H heads of queries, G of keys and values, K numbers in a head, L bound of the lengths;
# of one sequence: n tokens


@dataclass(frozen=True)
class Arguments:
    """What a call computes with, beside the numbers; as of ``kernels.attention.packed_attention``.

    Attributes:
        boundaries: [S + 1].
        prefix: [S], or None.
        bias: [H, 2 L - 1], or None.
        num_heads: H.
        longest: L.
        mask: full, causal or prefix.
        scale: of the products of queries and keys.
        threshold: of the dropout.
        seed: of its mask.
        site: of the call.
    """

    boundaries: Tensor
    prefix: Tensor | None
    bias: Tensor | None
    num_heads: int
    longest: int
    mask: str
    scale: float
    threshold: int
    seed: Tensor | None
    site: int

    def sequences(self) -> Iterator[tuple[int, slice]]:
        """Number and tokens of each sequence that has any."""
        boundaries = self.boundaries.tolist()
        for number, (first, last) in enumerate(pairwise(boundaries)):
            if last > first:
                yield number, slice(first, last)

    def hidden(self, number: int, length: int) -> Tensor:
        """Whether query i does not see key j of sequence ``number``: [n, n] bool."""
        keys = torch.arange(length, device=self.boundaries.device)
        later = keys[None, :] > keys[:, None]
        if self.mask == "full":
            return torch.zeros_like(later)
        if self.prefix is None:
            return later
        return later & (keys[None, :] >= self.prefix[number])

    def distances(self, length: int) -> Tensor:
        """Column of the bias for query i and key j: [n, n]."""
        places = torch.arange(length, device=self.boundaries.device)
        return places[None, :] - places[:, None] + self.longest - 1

    def kept(self, tokens: slice, total: int) -> Tensor:
        """What a sequence's dropout multiplies: [H, n, n], 0 or the scale."""
        assert self.seed is not None
        length = tokens.stop - tokens.start
        rows = keep_mask(self.seed, self.site, total * self.num_heads, length, self.threshold)  # row t H + h
        kept = rows.view(total, self.num_heads, length)[tokens]
        return kept.transpose(0, 1) * keep_scale(self.threshold)


def forward(qkv: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Attend.

    Args:
        qkv: [N, H + 2 G, K], any floating type.
        arguments: the rest.

    Returns:
        out [N, H, K] in the type of qkv; the logarithms of the sums of exponentials [H, N] in that of the computation.
    """
    compute = torch.promote_types(qkv.dtype, torch.float32)
    heads = arguments.num_heads
    out = qkv.new_zeros(qkv.shape[0], heads, qkv.shape[2], dtype=compute)
    lse = qkv.new_zeros(heads, qkv.shape[0], dtype=compute)
    for number, tokens in arguments.sequences():
        query, key, value = _heads(qkv[tokens].to(compute), heads)
        scores = _scores(query, key, number, arguments)
        lse[:, tokens] = scores.logsumexp(-1)
        weights = scores.softmax(-1)  # exact for huge scores too, where lse is rounded
        if arguments.threshold:
            weights = weights * arguments.kept(tokens, qkv.shape[0])
        out[tokens] = (weights @ value).transpose(0, 1)
    return out.to(qkv.dtype), lse


def backward(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """The gradients of ``forward``.

    Returns:
        dqkv [N, H + 2 G, K] in the type of qkv; dbias [H, 2 L - 1] in that of the computation.
    """
    compute = lse.dtype
    heads, groups = arguments.num_heads, (qkv.shape[1] - arguments.num_heads) // 2
    dqkv = torch.zeros_like(qkv, dtype=compute, memory_format=torch.contiguous_format)
    dbias = qkv.new_zeros(heads, 2 * arguments.longest - 1, dtype=compute)
    for number, tokens in arguments.sequences():
        query, key, value = _heads(qkv[tokens].to(compute), heads)
        gradient, result = (each[tokens].to(compute).transpose(0, 1) for each in (dout, out))  # [H, n, K]
        weights = _scores(query, key, number, arguments).softmax(-1)
        dweights = gradient @ value.transpose(1, 2)
        dropped = weights
        if arguments.threshold:
            kept = arguments.kept(tokens, qkv.shape[0])
            dropped, dweights = weights * kept, dweights * kept
        dscores = weights * (dweights - (gradient * result).sum(-1, keepdim=True))
        columns = arguments.distances(query.shape[1]).flatten()
        dbias.index_add_(1, columns, dscores.flatten(1))
        dquery = dscores @ key * arguments.scale
        dkey = _of_groups(dscores.transpose(1, 2) @ query * arguments.scale, groups)
        dvalue = _of_groups(dropped.transpose(1, 2) @ gradient, groups)
        dqkv[tokens] = torch.cat([dquery, dkey, dvalue]).transpose(0, 1)
    return dqkv.to(qkv.dtype), dbias


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a sequence [n, H + 2 G, K]: each [H, n, K], those of a group repeated."""
    groups = (qkv.shape[1] - heads) // 2
    query, key, value = qkv.transpose(0, 1).split([heads, groups, groups])
    return query, key.repeat_interleave(heads // groups, 0), value.repeat_interleave(heads // groups, 0)


def _scores(query: Tensor, key: Tensor, number: int, arguments: Arguments) -> Tensor:
    """[H, n, n], -inf where nothing is seen."""
    scores = query @ key.transpose(1, 2) * arguments.scale
    if arguments.bias is not None:
        scores = scores + arguments.bias.to(scores.dtype)[:, arguments.distances(query.shape[1])]
    return scores.masked_fill(arguments.hidden(number, query.shape[1]), -torch.inf)


def _of_groups(gradient: Tensor, groups: int) -> Tensor:
    """The sums over the heads of each group: [H, n, K] to [G, n, K]."""
    return gradient.unflatten(0, (groups, -1)).sum(1)
