"""Which tokens of a row become targets of masked language modelling, and what replaces them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from engine.config.masking import MaskingConfig
from engine.data.batch import PackedBatch, Targets, pack_flat
from engine.data.draws import Draw
from engine.data.order import philox
from engine.objectives.base import Vocabulary

GEOMETRIC_P = 0.2  # SpanBERT (arXiv:1907.10529), section 3.1
_TWO_POW_64 = 2.0**64

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowText:
    """A row as the model reads it, before masks; n tokens, S sequences.

    Attributes:
        key: epoch and row.
        tokens: [n] special tokens included.
        lengths: of the S sequences.
        word_starts: [n], whether a word starts at each token; None: as the vocabulary tells.
        segments: [n], or None where all tokens are in segment 0.
    """

    key: tuple[int, int]
    tokens: Int64
    lengths: Sequence[int]
    word_starts: NDArray[np.bool_] | None = None
    segments: Int64 | None = None


class TokenMasker:
    """Draws the targets of rows, each by a generator keyed by (seed, epoch, row).

    A unit is a token or a whole word. Spans are runs of units inside a sequence: each sequence is laid out with spans
    of drawn lengths, and whole spans are drawn until the budget is spent. So the lengths of masked spans follow the
    distribution (a span at a sequence's end is cut there), and each token is masked about equally often. A row has at
    least one unit or span, so short rows of long spans have a few targets more than their share.
    """

    def __init__(self, config: MaskingConfig, vocabulary: Vocabulary, seed: int) -> None:
        self.config, self.vocabulary, self.seed = config, vocabulary, seed
        self._text_ids = np.flatnonzero(~vocabulary.special)
        self._span_ends = np.cumsum(span_shares(config.span, config.longest_span()))[:-1]

    def masked_batch(self, texts: Sequence[RowText], rate: float | None = None) -> PackedBatch:
        """Rows with their masks as a packed batch, whose targets ``mlm`` are the masked tokens.

        Args:
            texts: all of them with segments, or none.
            rate: share of the tokens of text that become targets; None: the configured one.
        """
        tokens = np.concatenate([text.tokens for text in texts])
        indices, labels = [], []
        offset = 0
        for text in texts:
            used = self.config.rate if rate is None else rate
            chosen, replaced = self.mask(text.tokens, text.word_starts, text.key, used)
            indices.append(chosen + offset)
            labels.append(text.tokens[chosen])
            tokens[indices[-1]] = replaced
            offset += len(text.tokens)
        lengths = np.array([length for text in texts for length in text.lengths], np.int64)
        segments = [text.segments for text in texts if text.segments is not None]
        batch = pack_flat(tokens, lengths, np.concatenate(segments) if segments else None)
        index = np.concatenate(indices)
        target = Targets(torch.from_numpy(index), torch.from_numpy(np.concatenate(labels)))
        return replace(batch, targets={"mlm": target}, counts={"mlm": len(index)})

    def mask(
        self, tokens: Int64, word_starts: NDArray[np.bool_] | None, key: tuple[int, int], rate: float
    ) -> tuple[Int64, Int64]:
        """Choose targets of a row and what replaces them.

        Args:
            tokens: [n] the row's tokens, special tokens included.
            word_starts: [n], whether a word starts at each token; None: as the vocabulary tells.
            key: epoch and row.
            rate: share of the tokens of text that become targets.

        Returns:
            [M] positions in ascending order, [M] token ids to write there.
        """
        text = np.flatnonzero(~self.vocabulary.special[tokens])  # literal special tokens in text are never targets
        if not len(text):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        generator = philox(self.seed, *key, Draw.MASKS)
        raw = generator.random_raw(3 * len(text) + 1)
        draws, coin = raw[:-1].reshape(3, -1), float(raw[-1] / _TWO_POW_64)
        unit = self._units(tokens, text, word_starts)
        if self.config.span != "none":
            unit = self._spans(unit, text, generator)
        num_units = int(unit[-1]) + 1
        sizes = np.bincount(unit, minlength=num_units)
        order = np.argsort(draws[0, :num_units], kind="stable")
        taken = np.zeros(num_units, np.bool_)
        taken[draw_units(sizes, order, rate * len(text), coin)] = True
        chosen = np.flatnonzero(taken[unit])
        # SpanBERT replaces a span as a whole: all its tokens share the draw of the first.
        first = np.searchsorted(unit, unit[chosen]) if self.config.span == "geometric" else chosen
        kind, choice = draws[1, first] / _TWO_POW_64, draws[2, chosen]
        return text[chosen], self._replacements(tokens[text[chosen]], kind, choice)

    def _replacements(self, original: Int64, kind: NDArray[np.float64], choice: NDArray[np.uint64]) -> Int64:
        """What stands in the place of targets: the mask token, a random one or the original, by draws [M]."""
        random = self._text_ids[(choice % len(self._text_ids)).astype(np.int64)]
        mask_share = self.config.mask_share
        replaced = np.where(kind < mask_share + self.config.random_share, random, original)
        return np.where(kind < mask_share, self.vocabulary.special_ids["mask"], replaced)

    def _units(self, tokens: Int64, text: Int64, word_starts: NDArray[np.bool_] | None) -> Int64:
        """Number of the unit that is masked together, for each text position: a token, or a whole word."""
        if not self.config.whole_word:
            return np.arange(len(text))
        known = ~self.vocabulary.continuation[tokens] if word_starts is None else word_starts
        starts = known[text]
        starts |= np.diff(text, prepend=-2) != 1  # never across a special token
        return np.cumsum(starts) - 1

    def _spans(self, unit: Int64, text: Int64, generator: np.random.Philox) -> Int64:
        """Number of the span for each text position: runs of units with lengths drawn, never across a special token."""
        draws = generator.random_raw(len(text)) / _TWO_POW_64
        lengths = np.searchsorted(self._span_ends, draws, side="right") + 1
        breaks = np.flatnonzero(np.diff(text, prepend=-2) != 1)
        first_unit = np.append(unit[breaks], unit[-1] + 1)
        begins = np.zeros(int(unit[-1]) + 1, np.bool_)
        for first, last in zip(first_unit[:-1].tolist(), first_unit[1:].tolist(), strict=True):
            starts = np.cumsum(lengths[first:last])
            begins[first] = True
            begins[first + starts[: np.searchsorted(starts, last - first)]] = True
        return (np.cumsum(begins) - 1)[unit]


def span_shares(span: str, longest: int) -> NDArray[np.float64]:
    """Shares [longest] of the span lengths 1, 2, ...; they sum to 1.

    ``geometric``: p (1 - p)^(n - 1) with p = 0.2, cut off and made to sum to 1 (SpanBERT, arXiv:1907.10529, section
    3.1; mean 3.8 for lengths up to 10). ``ngram``: in proportion to 1 / n (ALBERT, arXiv:1909.11942, section 3.1).
    """
    lengths = np.arange(1, longest + 1)
    shares = (1.0 - GEOMETRIC_P) ** (lengths - 1) if span == "geometric" else 1.0 / lengths
    return shares / shares.sum()


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
