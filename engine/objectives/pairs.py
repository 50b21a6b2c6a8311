"""Sentence pairs beside masked language modelling: does B follow A (nsp), are the two in order (sop).

nsp: next sentence prediction (BERT, arXiv:1810.04805, section 3.1). sop: sentence order prediction (ALBERT,
arXiv:1909.11942, section 3.1). A window of text is split into A and B, anew in every epoch; one in two is made wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engine.config.arch import ArchConfig
from engine.config.masking import MaskingConfig
from engine.data.batch import PackedBatch, Targets
from engine.data.draws import Draw
from engine.data.order import philox
from engine.data.plan import SequenceLayout
from engine.data.rows import Piece, Row, TokenRange
from engine.models.heads import MaskedLMHead, SentencePairHead
from engine.models.model import Model
from engine.objectives.base import LossTerm, Vocabulary, cross_entropy_term, encode, require_tokens, token_term
from engine.objectives.masking import RowText, TokenMasker
from engine.objectives.other_text import CANDIDATES, Wanted, find_other_text

NO_PAIR = -1
RIGHT, WRONG = 0, 1  # as transformers' BertForPreTraining counts its classes

Int64 = NDArray[np.int64]


class Part(NamedTuple):
    """A or B: its tokens [n], and whether a word starts at each [n] (None: as the vocabulary tells)."""

    tokens: NDArray[np.unsignedinteger]
    word_starts: NDArray[np.bool_] | None


class Pair(NamedTuple):
    """A sequence of one part or two, and what is to be predicted: RIGHT, WRONG or NO_PAIR."""

    parts: tuple[Part, ...]
    label: int


class PairedMaskedLM:
    """Predict masked tokens and how A and B belong together; sequences are [CLS] A [SEP] B [SEP]."""

    def __init__(
        self, pair: str, config: MaskingConfig, vocabulary: Vocabulary, seed: int, short_seq_prob: float
    ) -> None:
        """Check the vocabulary.

        Args:
            pair: nsp or sop.
            config: of the masks.
            vocabulary: of the tokenizer.
            seed: of the run.
            short_seq_prob: share of the windows of random length.

        Raises:
            ValueError: if it lacks [CLS], [SEP] or [MASK].
        """
        self.pair, self.name = pair, f"mlm,{pair}"
        require_tokens(self.name, vocabulary, ("cls", "sep", "mask"))
        self.config, self.vocabulary, self.seed = config, vocabulary, seed
        self.sequence_layout = SequenceLayout(
            per_sequence=3, per_document=0, pairs=True, short_seq_prob=short_seq_prob, other_text=pair == "nsp"
        )
        self._masker = TokenMasker(config, vocabulary, seed)

    def make_heads(self, arch: ArchConfig) -> dict[str, nn.Module]:
        """The head of masked language modelling, and a pooler with two classes."""
        return {"mlm": MaskedLMHead(arch), self.pair: SentencePairHead(arch)}

    def collate(self, rows: Sequence[Row], masking_rate: float | None = None) -> PackedBatch:
        """Make a pair of every window, half of them wrong, and mask each row."""
        pairs = [self._pairs(row) for row in rows]
        texts = [self._text(row, of_row) for row, of_row in zip(rows, pairs, strict=True)]
        batch = self._masker.masked_batch(texts, masking_rate)
        labels = np.array([pair.label for of_row in pairs for pair in of_row], np.int64)
        index = np.flatnonzero(labels != NO_PAIR)
        target = Targets(torch.from_numpy(index), torch.from_numpy(labels[index]))
        return replace(
            batch,
            targets={**batch.targets, self.pair: target},
            counts={**batch.counts, self.pair: len(index)},
        )

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Cross-entropy of the masked tokens, and of the pairs with how many of them are right."""
        hidden = encode(model, batch)  # [N, D]
        target = batch.targets[self.pair]
        first = batch.layout.cu_seqlens[target.index]  # [M]
        logits = model.heads[self.pair](hidden[first])  # [M, 2]
        return {
            "mlm": token_term(model, "mlm", hidden, batch, with_accuracy),
            self.pair: cross_entropy_term(logits, target.labels, batch.counts[self.pair], with_accuracy=True),
        }

    def _pairs(self, row: Row) -> list[Pair]:
        """The pairs of a row, drawn by a generator keyed by (seed, epoch, row)."""
        generator = philox(self.seed, row.epoch, row.index, Draw.PAIRS)
        draws = generator.random_raw(len(row.pieces) * (2 + CANDIDATES)).reshape(len(row.pieces), -1)
        return [self._pair(piece, row, of_piece) for piece, of_piece in zip(row.pieces, draws, strict=True)]

    def _pair(self, piece: Piece, row: Row, draws: NDArray[np.uint64]) -> Pair:
        if len(piece.tokens) < 2:
            return Pair((Part(piece.tokens, piece.word_starts),), NO_PAIR)
        split, at_sentence = self._split(piece, int(draws[0]))
        starts = piece.word_starts
        a = Part(piece.tokens[:split], None if starts is None else starts[:split])
        b = Part(piece.tokens[split:], None if starts is None else starts[split:])
        if int(draws[1]) >> 63 == RIGHT:
            return Pair((a, b), RIGHT)
        if row.other_text is None:
            return Pair((b, a), WRONG)
        return Pair((a, self._other(piece, row.other_text, len(b.tokens), at_sentence, draws[2:])), WRONG)

    def _split(self, piece: Piece, draw: int) -> tuple[int, bool]:
        """Where B begins: a sentence inside, else a word of the middle half, else a token of it; and if a sentence."""
        assert piece.sentences is not None
        starts, size = piece.sentences.starts, len(piece.tokens)
        if len(starts):
            return int(starts[draw % len(starts)]), True
        words = ~self.vocabulary.continuation[piece.tokens] if piece.word_starts is None else piece.word_starts
        middle = np.arange((size + 3) // 4, size - (size + 3) // 4 + 1)  # as far from one end as from the other
        places = middle[words[middle]] if words[middle].any() else middle
        return int(places[draw % len(places)]), False

    def _other(self, piece: Piece, text: TokenRange, size: int, at_sentence: bool, draws: NDArray[np.uint64]) -> Part:
        """A B for a piece from another document."""
        assert piece.sentences is not None
        wanted = Wanted(piece.sentences.document, size, at_sentence, piece.sentences.ends_sentence)
        start, stop = find_other_text(text, wanted, draws, self.vocabulary.continuation)
        return Part(text.tokens[start:stop], None if text.word_starts is None else text.word_starts[start:stop])

    def _text(self, row: Row, pairs: Sequence[Pair]) -> RowText:
        """[CLS] A [SEP] B [SEP] of every pair, [CLS] A [SEP] where there is no B."""
        cls, sep = ([self.vocabulary.special_ids[role]] for role in ("cls", "sep"))
        parts: list[NDArray[np.integer] | list[int]] = []
        sizes = []
        for pair in pairs:
            parts.append(cls)
            for part in pair.parts:
                parts += [part.tokens, sep]
            first, *second = (len(part.tokens) for part in pair.parts)
            sizes += [first + 2, second[0] + 1 if second else 0]
        segments = np.repeat(np.arange(len(sizes)) % 2, sizes)
        lengths = [sizes[i] + sizes[i + 1] for i in range(0, len(sizes), 2)]
        tokens = np.concatenate(parts).astype(np.int64)
        starts = self._word_starts(pairs) if self.config.whole_word else None
        return RowText((row.epoch, row.index), tokens, lengths, starts, segments)

    def _word_starts(self, pairs: Sequence[Pair]) -> NDArray[np.bool_]:
        """[n] whether a word starts at each of a row's tokens, special ones included."""
        flags: list[NDArray[np.bool_] | list[bool]] = []
        for pair in pairs:
            flags.append([True])
            for tokens, starts in pair.parts:
                flags += [~self.vocabulary.continuation[tokens] if starts is None else starts, [True]]
        return np.concatenate(flags)
