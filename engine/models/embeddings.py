"""Tokens to vectors."""

from __future__ import annotations

from torch import Tensor, nn

from engine.config.arch import ArchConfig, padded_vocab_size
from engine.models.dropout import dropout
from engine.models.layers import Embedding, LayerNorm


class Embeddings(nn.Module):
    """The sum of word, position and segment vectors, then a norm where the architecture has one, then dropout."""

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.word = Embedding(padded_vocab_size(arch.vocab_size), arch.hidden_size)
        self.position = Embedding(arch.max_positions, arch.hidden_size)
        self.segment = Embedding(arch.num_segments, arch.hidden_size) if arch.num_segments else None
        self.norm = LayerNorm(arch.hidden_size, arch.norm_eps) if arch.embedding_norm else None
        self.dropout = arch.hidden_dropout

    def forward(self, tokens: Tensor, positions: Tensor, segments: Tensor | None) -> Tensor:
        """Embed a packed batch.

        Args:
            tokens: [N] int64.
            positions: [N] int64, counted from 0 in each sequence.
            segments: [N] int64; None means segment 0 everywhere, and only None fits a model without segments.

        Returns:
            [N, D], the dtype of the weights.

        Raises:
            ValueError: if segments are given to a model that has none.
        """
        hidden = self.word(tokens) + self.position(positions)  # [N, D]
        if self.segment is not None:
            hidden = hidden + (self.segment.weight[0] if segments is None else self.segment(segments))
        elif segments is not None:
            raise ValueError("segments were given to a model without them: arch.num_segments is 0")
        if self.norm is not None:
            hidden = self.norm(hidden)
        return dropout(hidden, self.dropout, self.training)
