"""Tokens to vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.config.arch import ArchConfig, padded_vocab_size
from engine.models.dropout import dropout, uses_kernel
from engine.models.layers import Embedding, LayerNorm
from kernels.embedding import EMBEDDING, embed

SITE = 0  # of the dropout in the model


class Embeddings(nn.Module):
    """The sum of word, position and segment vectors, then a norm where the architecture has one, then dropout."""

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.word = Embedding(padded_vocab_size(arch.vocab_size), arch.hidden_size)
        self.position = Embedding(arch.max_positions, arch.hidden_size)
        self.segment = Embedding(arch.num_segments, arch.hidden_size) if arch.num_segments else None
        self.norm = LayerNorm(arch.hidden_size, arch.norm_eps) if arch.embedding_norm else None
        self.dropout = arch.hidden_dropout

    def forward(self, tokens: Tensor, positions: Tensor, segments: Tensor | None, seed: Tensor | None = None) -> Tensor:
        """Embed a packed batch.

        Args:
            tokens: [N] int64.
            positions: [N] int64, counted from 0 in each sequence.
            segments: [N] int64; None means segment 0 everywhere, and only None fits a model without segments.
            seed: of the dropout mask, [1] int64, where something is dropped.

        Returns:
            [N, D], the dtype of the weights.

        Raises:
            ValueError: if segments are given to a model that has none.
        """
        if segments is not None and self.segment is None:
            raise ValueError("segments were given to a model without them: arch.num_segments is 0")
        if self.reads_all_weights(tokens.device):
            return self._by_kernel(tokens, positions, segments, seed)
        hidden = self.word(tokens) + self.position(positions)  # [N, D]
        if self.segment is not None:
            hidden = hidden + (self.segment.weight[0] if segments is None else self.segment(segments))
        if self.norm is not None:
            hidden = self.norm(hidden)
        return dropout(hidden, self.dropout, self.training)

    def _by_kernel(self, tokens: Tensor, positions: Tensor, segments: Tensor | None, seed: Tensor | None) -> Tensor:
        return embed(
            tokens,
            positions,
            segments,
            self.word.weight,
            self.position.weight,
            None if self.segment is None else self.segment.weight,
            None if self.norm is None else self.norm.weight,
            None if self.norm is None else self.norm.bias,
            eps=0.0 if self.norm is None else self.norm.eps,
            dropout=self.dropout if self.training else 0.0,
            seed=seed,
            site=SITE,
        )

    def reads_all_weights(self, device: torch.device) -> bool:
        """Whether this module reads the weights of its parts on a device itself, rather than call them."""
        return uses_kernel(EMBEDDING, device, self.word.embedding_dim)
