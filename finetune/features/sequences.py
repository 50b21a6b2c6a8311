"""One text or two as a token sequence.

BERT: [CLS] a [SEP], or [CLS] a [SEP] b [SEP] with b in segment 1 (arXiv:1810.04805, section 3.2). GPT-2: a <eos>, or
a <eos> b <eos>, so that the last token, which the class is read from, has seen everything (Radford et al. 2018,
section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, pack
from preprocess.tokenizer import Tokenizer

Ids = NDArray[np.integer]
Int64 = NDArray[np.int64]


class TokenSequence(NamedTuple):
    """Token ids [n] with special tokens, and where the second segment begins (n where there is none)."""

    tokens: Ids
    second: int


class SequenceBuilder:
    """Tokenizes texts, cuts what is too long and adds special tokens."""

    def __init__(self, tokenizer: Tokenizer, arch: ArchConfig, max_length: int) -> None:
        """Check that the parts fit.

        Raises:
            ValueError: listing all that does not fit: a special token that is missing, a vocabulary larger than the
                model's, a length beyond its positions.
        """
        problems = []
        roles = ("eos",) if arch.causal else ("cls", "sep")
        if missing := [role for role in roles if role not in tokenizer.special_ids]:
            problems.append(f"the model's vocabulary lacks the special token(s) {', '.join(missing)}")
        if tokenizer.vocab_size > arch.vocab_size:
            problems.append(
                f"the model's tokenizer has {tokenizer.vocab_size:,} tokens and its config.json says "
                f"vocab_size {arch.vocab_size:,}: they do not belong together"
            )
        if not 8 <= max_length <= arch.max_positions:
            problems.append(
                f"max_length is {max_length}; it must be at least 8 and at most the model's positions, "
                f"{arch.max_positions}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        self.tokenizer, self.arch, self.max_length = tokenizer, arch, max_length
        self._has_segments = arch.num_segments >= 2
        begin, end = ((), ("eos",)) if arch.causal else (("cls",), ("sep",))
        self._begin = np.array([tokenizer.special_ids[role] for role in begin], tokenizer.dtype)
        self._end = np.array([tokenizer.special_ids[role] for role in end], tokenizer.dtype)

    def build(
        self, texts: Sequence[str], others: Sequence[str] | None = None
    ) -> tuple[list[TokenSequence], list[bool]]:
        """Tokenize texts, or pairs of texts.

        Returns:
            The sequences, and whether each of them was cut.
        """
        first, second = self._encode(texts), None if others is None else self._encode(others)
        lengths_a = _lengths(first)
        lengths_b = np.zeros_like(lengths_a) if second is None else _lengths(second)
        budget = self.room(1 if second is None else 2)
        kept_a, kept_b = truncate_longest_first(lengths_a, lengths_b, budget)
        parts_a = [ids[:kept] for ids, kept in zip(first, kept_a.tolist(), strict=True)]
        truncated = (lengths_a + lengths_b > budget).tolist()
        if second is None:
            return [self._join(ids, ()) for ids in parts_a], truncated
        parts_b = [ids[:kept] for ids, kept in zip(second, kept_b.tolist(), strict=True)]
        return [self._join(a, (b, self._end)) for a, b in zip(parts_a, parts_b, strict=True)], truncated

    @property
    def num_before(self) -> int:
        """Special tokens before a text."""
        return len(self._begin)

    def room(self, num_texts: int = 1) -> int:
        """Tokens of an example that are left for one text or for two."""
        return self.max_length - len(self._begin) - len(self._end) * num_texts

    def of_ids(self, first: Ids, second: Ids | None = None) -> TokenSequence:
        """The sequence of a text or of a pair that was tokenized and cut elsewhere."""
        return self._join(first, () if second is None else (second, self._end))

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        ids, counts = self.tokenizer.encode(texts)
        return np.split(ids, np.cumsum(counts)[:-1]) if len(counts) else []

    def _join(self, first: Ids, rest: tuple[Ids, ...]) -> TokenSequence:
        return TokenSequence(
            np.concatenate([self._begin, first, self._end, *rest]), len(self._begin) + len(first) + len(self._end)
        )

    def pack(self, sequences: Sequence[TokenSequence]) -> PackedBatch:
        """Pack sequences back to back; no padding."""
        if not self._has_segments:
            return pack([sequence.tokens for sequence in sequences])
        segments = [(np.arange(len(tokens)) >= second).astype(np.int64) for tokens, second in sequences]
        return pack([sequence.tokens for sequence in sequences], segments)


def _lengths(texts: Sequence[Ids]) -> Int64:
    return np.fromiter(map(len, texts), np.int64, len(texts))


def truncate_longest_first(first: Int64, second: Int64, budget: int) -> tuple[Int64, Int64]:
    """Cut pairs as the `tokenizers` library does: the longer text down to the other's length, then both alike.

    Args:
        first: [n] lengths of the first texts.
        second: [n] lengths of the second texts, 0 where there is none.
        budget: the most tokens of both together.

    Returns:
        The lengths to keep, [n] each; of an odd budget the longer text has the extra token, the second where equal.
    """
    short, long = np.minimum(first, second), np.maximum(first, second)
    half = budget // 2
    room = np.where(short <= half, budget - short, budget - half)  # for the longer text
    kept_short = np.where(short + long > budget, np.minimum(short, half), short)
    kept_long = np.minimum(long, room)
    swapped = first > second
    return np.where(swapped, kept_long, kept_short), np.where(swapped, kept_short, kept_long)
