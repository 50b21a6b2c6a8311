"""Masked language modelling (BERT, arXiv:1810.04805, section 3.1) with masks drawn anew in every epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from engine.config.arch import ArchConfig
from engine.config.masking import MaskingConfig
from engine.data.batch import PackedBatch
from engine.data.plan import SequenceLayout
from engine.data.rows import Row
from engine.models.heads import MaskedLMHead
from engine.models.model import Model
from engine.objectives.base import LossTerm, Vocabulary, encode, require_tokens, token_term
from engine.objectives.masking import RowText, TokenMasker

Int64 = NDArray[np.int64]


class MaskedLM:
    """Predict the tokens that were masked; sequences are [CLS] text [SEP]."""

    name = "mlm"
    sequence_layout = SequenceLayout(per_sequence=2, per_document=0)

    def __init__(self, config: MaskingConfig, vocabulary: Vocabulary, seed: int) -> None:
        """Check the vocabulary.

        Raises:
            ValueError: if it lacks [CLS], [SEP] or [MASK].
        """
        require_tokens(self.name, vocabulary, ("cls", "sep", "mask"))
        self.config, self.vocabulary = config, vocabulary
        self._masker = TokenMasker(config, vocabulary, seed)

    def make_heads(self, arch: ArchConfig) -> dict[str, nn.Module]:
        """Transform, norm and a decoder tied to the word embedding."""
        return {"mlm": MaskedLMHead(arch)}

    def collate(self, rows: Sequence[Row], masking_rate: float | None = None) -> PackedBatch:
        """Put [CLS] and [SEP] round every piece and mask each row."""
        return self._masker.masked_batch([self._text(row) for row in rows], masking_rate)

    def _text(self, row: Row) -> RowText:
        cls, sep = self.vocabulary.special_ids["cls"], self.vocabulary.special_ids["sep"]
        parts = [np.concatenate([[cls], piece.tokens, [sep]]).astype(np.int64) for piece in row.pieces]
        tokens = np.concatenate(parts)
        starts = self._word_starts(tokens, row) if self.config.whole_word else None
        return RowText((row.epoch, row.index), tokens, [len(part) for part in parts], starts)

    def _word_starts(self, tokens: Int64, row: Row) -> NDArray[np.bool_]:
        """[n] whether a word starts at each of a row's tokens: as the shards store it, else by the vocabulary."""
        starts = ~self.vocabulary.continuation[tokens]
        place = 1  # behind [CLS]
        for piece in row.pieces:
            if piece.word_starts is not None:
                starts[place : place + len(piece.tokens)] = piece.word_starts
            place += len(piece.tokens) + 2  # [SEP] and the next [CLS]
        return starts

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Cross-entropy of the masked tokens; the head sees only them."""
        return {"mlm": token_term(model, "mlm", encode(model, batch), batch, with_accuracy)}
