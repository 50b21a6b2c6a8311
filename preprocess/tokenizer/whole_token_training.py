"""Counts characters or words and keeps the most frequent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from preprocess.tokenizer.bert_pipeline import Normalization
from preprocess.tokenizer.char_word import CHARACTER, WORD, WholeTokens
from preprocess.tokenizer.roles import Vocabulary
from preprocess.tokenizer.wordpiece import WordPieceEncoder
from preprocess.tokenizer.wordpiece_training import TRAINED_SPECIAL_TOKENS, batched, count_alphabet, no_character


def train_characters(
    texts: Iterable[str], vocab_size: int, normalization: Normalization, min_frequency: int, coverage: float
) -> list[str]:
    """Return special tokens and the most frequent characters, by frequency, in id order."""
    pipeline = WholeTokens(CHARACTER, normalization)
    backend = pipeline.backend(Vocabulary.build(["[UNK]"], {"unk": "[UNK]"}), hidden=False)
    alphabet = count_alphabet(texts, WordPieceEncoder(backend, np.uint16))
    found = list(alphabet.ranked(min_frequency, coverage))
    if not found:
        raise ValueError(no_character(min_frequency))
    return [*TRAINED_SPECIAL_TOKENS, *found][:vocab_size]


def train_words(
    texts: Iterable[str], vocab_size: int, normalization: Normalization, min_frequency: int, special: Sequence[str]
) -> list[str]:
    """Return special tokens and the most frequent words but those in ``special``, by frequency, in id order."""
    backend = WholeTokens(WORD, normalization).backend(Vocabulary.build(["[UNK]"], {"unk": "[UNK]"}), hidden=False)
    counts: Counter[str] = Counter()
    for batch in batched(texts):
        normalized = backend.normalizer.normalize_str("\n".join(batch))
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    skipped = {*TRAINED_SPECIAL_TOKENS, *special}
    found = [word for word, count in ranked if count >= min_frequency and word not in skipped]
    if not found:
        raise ValueError(
            f"the corpus has no word that occurs {min_frequency} times or more; give more text or a smaller "
            "--min_frequency"
        )
    return [*TRAINED_SPECIAL_TOKENS, *found][:vocab_size]
