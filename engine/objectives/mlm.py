"""Masked language modelling (BERT, arXiv:1810.04805, section 3.1) with masks drawn anew in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engine.config.arch import ArchConfig
from engine.config.masking import MaskingConfig
from engine.data.batch import PackedBatch, Targets, pack
from engine.data.draws import Draw
from engine.data.order import philox
from engine.data.plan import SequenceLayout
from engine.data.rows import Row
from engine.models.heads import MaskedLMHead
from engine.models.model import Model
from engine.objectives.base import LossTerm, Vocabulary, cross_entropy_term, encode, require_tokens

_TWO_POW_64 = 2.0**64

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
        self.config, self.vocabulary, self.seed = config, vocabulary, seed
        self._text_ids = np.flatnonzero(~vocabulary.special)

    def make_head(self, arch: ArchConfig) -> nn.Module:
        """Transform, norm and a decoder tied to the word embedding."""
        return MaskedLMHead(arch)

    def collate(self, rows: Sequence[Row]) -> PackedBatch:
        """Put [CLS] and [SEP] round every piece and mask each row by a generator keyed by (seed, epoch, row)."""
        cls, sep = self.vocabulary.special_ids["cls"], self.vocabulary.special_ids["sep"]
        sequences: list[Int64] = []
        indices, labels = [], []
        offset = 0
        for row in rows:
            parts = [np.concatenate([[cls], piece.tokens, [sep]]).astype(np.int64) for piece in row.pieces]
            tokens = np.concatenate(parts)
            chosen, replaced = self._mask(tokens, row)
            indices.append(chosen + offset)
            labels.append(tokens[chosen])
            tokens[chosen] = replaced
            sequences += np.split(tokens, np.cumsum([len(part) for part in parts])[:-1])
            offset += len(tokens)
        index = np.concatenate(indices)
        target = Targets(torch.from_numpy(index), torch.from_numpy(np.concatenate(labels)))
        return replace(pack(sequences), targets={self.name: target}, counts={self.name: len(index)})

    def _mask(self, tokens: Int64, row: Row) -> tuple[Int64, Int64]:
        """Choose targets of a row and what replaces them.

        Args:
            tokens: [n] the row's tokens, special tokens included.
            row: its key, and its pieces, which know where words start.

        Returns:
            [M] positions in ascending order, [M] token ids to write there.
        """
        text = np.flatnonzero(~self.vocabulary.special[tokens])  # literal special tokens in text are never targets
        if not len(text):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        raw = philox(self.seed, row.epoch, row.index, Draw.MASKS).random_raw(3 * len(text) + 1)
        draws, coin = raw[:-1].reshape(3, -1), float(raw[-1] / _TWO_POW_64)
        unit = self._units(tokens, text, row)
        num_units = int(unit[-1]) + 1
        sizes = np.bincount(unit, minlength=num_units)
        order = np.argsort(draws[0, :num_units], kind="stable")
        taken = draw_units(sizes, order, self.config.rate * len(text), coin)
        chosen = np.flatnonzero(np.isin(unit, taken))
        kind, choice = draws[1, chosen] / _TWO_POW_64, draws[2, chosen]
        original = tokens[text[chosen]]
        random = self._text_ids[(choice % len(self._text_ids)).astype(np.int64)]
        mask_share = self.config.mask_share
        replaced = np.where(kind < mask_share + self.config.random_share, random, original)
        replaced = np.where(kind < mask_share, self.vocabulary.special_ids["mask"], replaced)
        return text[chosen], replaced

    def _units(self, tokens: Int64, text: Int64, row: Row) -> Int64:
        """Number of the unit that is masked together, for each text position: a token, or a whole word."""
        if not self.config.whole_word:
            return np.arange(len(text))
        starts = self._word_starts(tokens, row)[text]
        starts |= np.diff(text, prepend=-2) != 1  # never across a special token
        return np.cumsum(starts) - 1

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
        target = batch.targets[self.name]
        hidden = encode(model, batch)[target.index]  # [M, D]
        logits = model.heads[self.name](hidden, model.word_embedding)  # [M, Vp]
        return {self.name: cross_entropy_term(logits, target.labels, batch.counts[self.name], with_accuracy)}


def draw_units(sizes: Int64, order: Int64, budget: float, coin: float) -> Int64:
    """Units in the order drawn until a budget is spent; the one across its border is taken with a probability.

    That probability is the share of the unit inside the budget, so the expected sum of sizes is the budget and long
    units are drawn as often as short ones.

    Args:
        sizes: [U] size of each unit.
        order: [U] a random permutation of the units.
        budget: of sizes, not rounded.
        coin: uniform in [0, 1).

    Returns:
        The units taken, at least one.
    """
    ends = np.cumsum(sizes[order])
    whole = int(np.searchsorted(ends, budget, side="right"))
    if whole < len(order):
        size = int(sizes[order[whole]])
        whole += coin < (budget - (int(ends[whole]) - size)) / size
    return order[: max(1, whole)]
