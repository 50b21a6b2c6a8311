"""Multi-head self-attention within each sequence of a packed batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.models import attention_libraries as libraries
from engine.models.layers import Linear
from engine.models.layout import PackedLayout
from kernels.attention import operation_of, packed_attention
from kernels.dispatch import choose, is_wanted

# N tokens in the packed batch, D hidden_size, H heads, K head_size


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) between two projections."""

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.num_heads = arch.num_heads
        self.causal = arch.causal
        self.dropout = arch.attention_dropout
        self.qkv = Linear(arch.hidden_size, 3 * arch.hidden_size)  # rows: queries, keys, values
        self.output = Linear(arch.hidden_size, arch.hidden_size)
        self.attend = attend

    def forward(self, hidden: Tensor, layout: PackedLayout, seed: Tensor | None = None, site: int = 0) -> Tensor:
        """Attend within each sequence; tokens of different sequences never see each other.

        Args:
            hidden: [N, D].
            layout: sequence boundaries.
            seed: of the dropout mask, [1] int64, where weights are dropped.
            site: number of the call in the model.

        Returns:
            [N, D].
        """
        qkv = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1))  # [N, 3, H, K]
        context = self.attend(qkv, layout, self.causal, self.dropout if self.training else 0.0, seed, site)
        return self.output(context.flatten(1))  # [N, H, K] -> [N, D]


def attend(
    qkv: Tensor, layout: PackedLayout, causal: bool, dropout: float = 0.0, seed: Tensor | None = None, site: int = 0
) -> Tensor:
    """Attend by the fastest way that takes this input.

    Args:
        qkv: [N, 3, H, K], any device and floating dtype.
        layout: sequence boundaries; tokens behind the last one are filler.
        causal: whether a token sees only itself and those before it; ``layout.prefix_lengths`` decides instead where
            they are given.
        dropout: probability of dropping an attention weight.
        seed: of our kernels' mask, [1] int64; libraries draw by torch's generator.
        site: number of the call in the model.

    Returns:
        [N, H, K], same dtype; zero for filler.
    """
    if layout.cache is not None:
        return layout.cache.attend(qkv, layout, causal, site)
    if uses_operator(qkv.device, qkv.dtype, qkv.shape[3], layout.max_length, dropout):
        prefix = layout.prefix_lengths
        mask = "prefix" if prefix is not None else "causal" if causal else "full"
        heads, longest = qkv.shape[2], max(1, layout.max_length)
        return packed_attention(
            qkv.flatten(1, 2), layout.cu_seqlens, heads, longest, mask=mask, prefix_lengths=prefix, dropout=dropout,
            seed=seed, site=site,
        )  # fmt: skip
    return libraries.attend(qkv, layout, causal, dropout)


def uses_operator(device: torch.device, dtype: torch.dtype, head_size: int, longest: int, dropout: float) -> bool:
    """Whether ``attend`` calls our operator, which torch.compile may see; the answer is a constant to it."""
    return is_wanted(operation_of(longest, dropout), device, size=head_size, dtype=dtype)


torch.compiler.assume_constant_result(uses_operator)


def name_of(device: torch.device, dtype: torch.dtype, head_size: int, longest: int, dropout: float) -> str:
    """Whose code ``attend`` runs, for the log and for ranks to compare: a backend of ours, or a library's function."""
    if not uses_operator(device, dtype, head_size, longest, dropout):
        return libraries.name_of(device, dtype, head_size, longest, dropout)
    backend = choose(operation_of(longest, dropout), device, size=head_size, dtype=dtype)
    return f"packed_attention on {backend}"


def slow_dropout(device: torch.device, name: str, dropout: float) -> str | None:
    """A note on attention whose dropout makes it slow on a GPU; None where it does not."""
    if device.type != "cuda" or not dropout or name != libraries.BY_RUNS:
        return None
    return (
        f"arch.attention_dropout {dropout} has no fast kernel here: attention is a call of torch for each run of "
        "equally long sequences. Give --arch.attention_dropout 0, install flash-attn, or have our kernels measured: "
        "make gpu-bench"
    )
