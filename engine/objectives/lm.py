"""Causal language modelling (GPT-2): predict each token from those before it in its own document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, Targets, pack
from engine.data.plan import SequenceLayout
from engine.data.rows import Row
from engine.models.heads import CausalLMHead
from engine.models.model import Model
from engine.objectives.base import LossTerm, Vocabulary, encode, require_tokens, token_term


class CausalLM:
    """Predict the next token; sequences are <bos> text, with <eos> where the document ends."""

    name = "lm"
    sequence_layout = SequenceLayout(per_sequence=1, per_document=1)

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Check the vocabulary.

        Raises:
            ValueError: if it has no token to begin or end a text with.
        """
        require_tokens(self.name, vocabulary, ("bos", "eos"))
        self.bos, self.eos = vocabulary.special_ids["bos"], vocabulary.special_ids["eos"]

    def make_heads(self, arch: ArchConfig) -> dict[str, nn.Module]:
        """A decoder tied to the word embedding."""
        return {self.name: CausalLMHead(arch)}

    def collate(self, rows: Sequence[Row], masking_rate: float | None = None) -> PackedBatch:
        """Begin every piece with <bos>; every position but a sequence's last predicts the next token."""
        sequences = [
            np.concatenate([[self.bos], piece.tokens, [self.eos] if piece.final else []]).astype(np.int64)
            for row in rows
            for piece in row.pieces
        ]
        batch = pack(sequences)
        not_last = np.ones(batch.num_tokens, np.bool_)
        not_last[batch.layout.cu_seqlens[1:].numpy() - 1] = False
        index = torch.from_numpy(np.flatnonzero(not_last))
        targets = Targets(index, batch.tokens[index + 1])
        return replace(batch, targets={self.name: targets}, counts={self.name: len(index)})

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Cross-entropy of the next tokens."""
        return {self.name: token_term(model, self.name, encode(model, batch), batch, with_accuracy)}
