"""Trains a WordPiece vocabulary, deterministically.

The trainer of ``tokenizers`` numbers continuation characters ("##a") in the order of a randomly seeded hash table, and
its merges break ties by number, so two runs differ. Here the alphabet and its continuations are counted first and
handed over as tokens that exist already; what is left to the trainer is deterministic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from tokenizers import trainers

from preprocess.tokenizer.bert_pipeline import PREFIX, Normalization, build_backend
from preprocess.tokenizer.pipeline import NUM_CODE_POINTS
from preprocess.tokenizer.wordpiece import ISOLATED, WORD, WordPieceEncoder

TRAINED_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LINES_PER_CALL = 1000


def train_vocabulary(
    texts: Iterable[str], vocab_size: int, normalization: Normalization, min_frequency: int, coverage: float = 1.0
) -> list[str]:
    """Return the tokens in id order; see ``training.train_wordpiece``.

    Args:
        coverage: share of the text's characters that the alphabet must cover; the rarest beyond it become unknown.
    """
    if vocab_size <= len(TRAINED_SPECIAL_TOKENS):
        raise ValueError(
            f"vocab_size is {vocab_size}: the {len(TRAINED_SPECIAL_TOKENS)} special tokens leave no room, so it must "
            f"be greater; BERT has 30522 (English) and 21128 (Chinese)"
        )
    if iter(texts) is texts:  # a generator: it is read twice
        texts = list(texts)
    backend = build_backend({"[UNK]": 0}, "[UNK]", normalization)
    alphabet = count_alphabet(texts, WordPieceEncoder(backend, np.uint16))
    room = vocab_size - len(TRAINED_SPECIAL_TOKENS)
    characters, continuations = alphabet.most_frequent(room, min_frequency, coverage)
    if not characters:
        raise ValueError(no_character(min_frequency))
    existing = [*TRAINED_SPECIAL_TOKENS, *characters, *continuations]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=existing,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    backend.train_from_iterator(batched(texts), trainer)
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return sorted(vocabulary, key=lambda token: vocabulary[token])


def no_character(min_frequency: int) -> str:
    """Say that nothing can be trained on such a corpus."""
    return (
        f"the corpus has no character that occurs {min_frequency} times or more; give more text or a smaller "
        "--min_frequency"
    )


class Alphabet:
    """How often each normalised character occurs, and which occur within words."""

    def __init__(self, counts: Counter[str], inner: set[str]) -> None:
        self.counts = counts
        self.inner = inner

    def ranked(self, min_frequency: int, coverage: float) -> Iterator[str]:
        """Yield characters by frequency, those first that cover ``coverage`` of the text, then none."""
        wanted = coverage * self.counts.total()
        covered = 0
        for character, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            if count < min_frequency or covered >= wanted:
                return
            covered += count
            yield character

    def most_frequent(self, room: int, min_frequency: int, coverage: float) -> tuple[list[str], list[str]]:
        """Return characters and continuation tokens, in code point order, at most ``room`` together."""
        characters: list[str] = []
        continuations: list[str] = []
        for character in self.ranked(min_frequency, coverage):
            if len(characters) + len(continuations) + 1 + (character in self.inner) > room:
                break
            characters.append(character)
            if character in self.inner:
                continuations.append(PREFIX + character)
        return sorted(characters), sorted(continuations)


def count_alphabet(texts: Iterable[str], encoder: WordPieceEncoder) -> Alphabet:
    """Count the characters of the texts after the normalisation of ``encoder``."""
    raw_counts = np.zeros(NUM_CODE_POINTS, np.int64)
    raw_inner = np.zeros(NUM_CODE_POINTS, np.bool_)
    for batch in batched(texts):
        code_points, classes = encoder.classify("\n".join(batch))
        present = (classes == WORD) | (classes == ISOLATED)
        points, counts = np.unique(code_points[present], return_counts=True)
        raw_counts[points] += counts
        words = classes == WORD
        raw_inner[code_points[1:][words[1:] & words[:-1]]] = True
    return _normalized(raw_counts, raw_inner, encoder)


def _normalized(
    raw_counts: npt.NDArray[np.int64], raw_inner: npt.NDArray[np.bool_], encoder: WordPieceEncoder
) -> Alphabet:
    counts: Counter[str] = Counter()
    inner: set[str] = set()
    for point in np.flatnonzero(raw_counts).tolist():
        characters = encoder.backend.normalizer.normalize_str(chr(point)).replace(" ", "")
        for index, character in enumerate(characters):
            counts[character] += int(raw_counts[point])
            if raw_inner[point] or index > 0:
                inner.add(character)
    return Alphabet(counts, inner)


def batched(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts in lists of LINES_PER_CALL."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == LINES_PER_CALL:
            yield batch
            batch = []
    if batch:
        yield batch
