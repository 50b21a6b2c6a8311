"""One vector for each sequence of a packed batch."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.models.layout import PackedLayout

# N tokens in the packed batch, S sequences, D hidden_size


def pool(hidden: Tensor, layout: PackedLayout, pooling: str) -> Tensor:
    """Make one vector of the vectors of each sequence's tokens, special tokens included.

    Args:
        hidden: [N, D], any device and floating dtype.
        layout: sequence boundaries; tokens behind the last one are filler and count nowhere.
        pooling: first, last, mean or max.

    Returns:
        [S, D], same dtype; a mean is summed in fp32. That of an empty sequence means nothing, but is finite and has no
        gradient where it is a mean or a maximum.

    Raises:
        ValueError: for another pooling.
    """
    if pooling not in POOLING_FUNCTIONS:
        raise ValueError(f"pooling is {pooling!r}; it must be one of {', '.join(POOLING_FUNCTIONS)}")
    return POOLING_FUNCTIONS[pooling](hidden, layout)


def first_tokens(hidden: Tensor, layout: PackedLayout) -> Tensor:
    """[N, D] to [S, D]: BERT's [CLS]."""
    return hidden[layout.cu_seqlens[:-1].clamp(max=len(hidden) - 1)]  # an empty sequence at the end begins at N


def last_tokens(hidden: Tensor, layout: PackedLayout) -> Tensor:
    """[N, D] to [S, D]: the token that has seen all others where the model is causal."""
    return hidden[(layout.cu_seqlens[1:] - 1).clamp(min=0)]


def mean_tokens(hidden: Tensor, layout: PackedLayout) -> Tensor:
    """[N, D] to [S, D], each sum from the first token to the last: on a GPU too it is the same in every run.

    Filler behind the last sequence is not read, so that whatever stands there spoils nothing.
    """
    lengths = layout.cu_seqlens.diff().long()  # [S]
    with torch.autocast(hidden.device.type, enabled=False):
        # unsafe: the lengths are not summed up on the host, where filler would make them too few
        sums = torch.segment_reduce(hidden.float(), "sum", lengths=lengths, axis=0, unsafe=True, initial=0.0)
        return (sums / lengths.clamp(min=1)[:, None]).to(hidden.dtype)


def max_tokens(hidden: Tensor, layout: PackedLayout) -> Tensor:
    """[N, D] to [S, D]: the largest of each component; 0 for empty sequences."""
    num_sequences = len(layout.cu_seqlens) - 1
    rows = sequence_numbers(hidden, layout)[:, None].expand_as(hidden)  # [N, D]
    lowest = hidden.new_full((num_sequences + 1, hidden.shape[1]), -torch.inf)  # the last row is the filler's
    highest = lowest.scatter_reduce(0, rows, hidden, "amax")[:num_sequences]
    return torch.where((layout.cu_seqlens.diff() > 0)[:, None], highest, 0.0)


def sequence_numbers(hidden: Tensor, layout: PackedLayout) -> Tensor:
    """The sequence of each token, [N] int64; S for filler. Nothing waits for the device."""
    tokens = torch.arange(len(hidden), device=hidden.device)
    return torch.searchsorted(layout.cu_seqlens[1:].long().contiguous(), tokens, right=True)


POOLING_FUNCTIONS = {"first": first_tokens, "mean": mean_tokens, "max": max_tokens, "last": last_tokens}
