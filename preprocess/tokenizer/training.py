"""Trains a tokenizer of any type; the same texts give the same tokenizer, on any machine and in any process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from preprocess.tokenizer import byte_bpe_training, sentencepiece_training, wordpiece_training
from preprocess.tokenizer.base import Tokenizer
from preprocess.tokenizer.bert_pipeline import Normalization, WordPiece
from preprocess.tokenizer.char_word import CHARACTER, WORD, WholeTokens
from preprocess.tokenizer.pipeline import Pipeline
from preprocess.tokenizer.roles import ROLES, usual_roles
from preprocess.tokenizer.whole_token_training import train_characters, train_words

WORDPIECE, BYTE_BPE, UNIGRAM, SENTENCEPIECE_BPE = "wordpiece", "bpe", "unigram", "sentencepiece_bpe"
TYPES = (WORDPIECE, BYTE_BPE, UNIGRAM, SENTENCEPIECE_BPE, CHARACTER, WORD)
BY_SENTENCEPIECE = (UNIGRAM, SENTENCEPIECE_BPE)
LOWERCASED = (WORDPIECE, CHARACTER, WORD)  # by default
DEFAULT_MIN_FREQUENCY = 2


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What to train.

    Attributes:
        type: one of TYPES; "bpe" is byte-level, as GPT-2's.
        vocab_size: number of tokens, special ones included; a small corpus may give fewer.
        lowercase: whether text is lower-cased (and, but for sentencepiece's types, stripped of accents); None: yes for
            wordpiece, char and word, no for the others.
        min_frequency: how often a character, pair or word must occur to be taken in; None: 2. Not for sentencepiece's.
        special_tokens: more special tokens, with the last ids.
        character_coverage: share of the text that the alphabet covers; rarer characters become unknown. Not for bpe,
            which knows all bytes, nor for words.
        sample_bytes: train on about so many bytes, spread evenly over the corpus; None for all.
    """

    type: str = WORDPIECE
    vocab_size: int = 30522
    lowercase: bool | None = None
    min_frequency: int | None = None
    special_tokens: Sequence[str] = ()
    character_coverage: float = 1.0
    sample_bytes: int | None = None

    def problems(self) -> list[str]:
        """Everything wrong with these settings."""
        if self.type not in TYPES:
            return [f"type is {self.type!r}; there are: {', '.join(TYPES)}"]
        found = []
        least = smallest_vocabulary(self.type) + len(self.special_tokens)
        if self.vocab_size < least:
            found.append(f"vocab_size is {self.vocab_size}, and must be at least {least} for type {self.type}")
        if self.lowercase and self.type == BYTE_BPE:
            found.append("lowercase is not for type bpe, which keeps text as it is; use unigram or wordpiece")
        if self.min_frequency is not None and self.type in BY_SENTENCEPIECE:
            found.append(f"min_frequency is not for type {self.type}: sentencepiece has no such option")
        if self.min_frequency is not None and self.min_frequency < 1:
            found.append(f"min_frequency is {self.min_frequency}, and must be at least 1")
        if not 0 < self.character_coverage <= 1:
            found.append(f"character_coverage is {self.character_coverage}, and must be above 0 and at most 1")
        elif self.character_coverage < 1 and self.type in (BYTE_BPE, WORD):
            found.append(f"character_coverage is not for type {self.type}, which has no alphabet; leave it out")
        if self.sample_bytes is not None and self.sample_bytes < 1:
            found.append(f"sample_bytes is {self.sample_bytes}, and must be at least 1")
        return [*found, *self._token_problems()]

    def _token_problems(self) -> list[str]:
        own = own_special_tokens(self.type)
        found = []
        for token, count in Counter(self.special_tokens).items():
            if not token or any(character.isspace() for character in token):
                found.append(f"special token {token!r} must be one word without white space")
            elif count > 1 or token in own:
                known = f"; {', '.join(own)} are there anyway" if token in own else ""
                found.append(f"special token {token!r} is named twice{known}")
        return found

    @property
    def lowercases(self) -> bool:
        """Whether text is lower-cased."""
        return self.type in LOWERCASED if self.lowercase is None else self.lowercase


def own_special_tokens(kind: str) -> tuple[str, ...]:
    """Return the special tokens that every trained tokenizer of a type has."""
    if kind == BYTE_BPE:
        return byte_bpe_training.SPECIAL_TOKENS
    if kind in BY_SENTENCEPIECE:
        return sentencepiece_training.SPECIAL_TOKENS
    return wordpiece_training.TRAINED_SPECIAL_TOKENS


def smallest_vocabulary(kind: str) -> int:
    """Return the least vocab_size that can work for a type, whatever the corpus."""
    return len(own_special_tokens(kind)) + (256 if kind == BYTE_BPE else 1)


def train(texts: Iterable[str], settings: TrainingSettings) -> Tokenizer:
    """Train a tokenizer.

    Args:
        texts: of any length; wordpiece and char read them twice, so for them a generator is kept in memory. ``sample``
            makes them a sample.

    Raises:
        ValueError: if settings are wrong, the vocabulary is too small or too large for the texts, or there is no text.
    """
    if problems := settings.problems():
        raise ValueError("\n".join(problems))
    if settings.type in BY_SENTENCEPIECE:
        return _train_sentencepiece(texts, settings)
    tokens, roles, pipeline = _trained(texts, settings)
    extra = [token for token in settings.special_tokens if token not in tokens]
    if len(extra) < len(settings.special_tokens):
        taken = ", ".join(token for token in settings.special_tokens if token in tokens)
        raise ValueError(f"the special token(s) {taken} occur in the text as ordinary tokens; give them other names")
    if not extra:
        return Tokenizer(tokens, roles, pipeline)
    if isinstance(pipeline, byte_bpe_training.ByteBPE):
        pipeline = pipeline.with_special(extra)
    return Tokenizer([*tokens, *extra], roles, pipeline, extra_special=extra)


def _trained(texts: Iterable[str], settings: TrainingSettings) -> tuple[list[str], dict[str, str], Pipeline]:
    """Return tokens without the extra special ones, roles, and the pipeline."""
    size = settings.vocab_size - len(settings.special_tokens)
    least = DEFAULT_MIN_FREQUENCY if settings.min_frequency is None else settings.min_frequency
    normalization = Normalization(lowercase=settings.lowercases)
    coverage = settings.character_coverage
    if settings.type == WORDPIECE:
        tokens = wordpiece_training.train_vocabulary(texts, size, normalization, least, coverage)
        return tokens, ROLES, WordPiece(normalization)
    if settings.type == BYTE_BPE:
        tokens, pipeline = byte_bpe_training.train_byte_bpe(texts, size, least)
        return tokens, usual_roles(byte_bpe_training.SPECIAL_TOKENS), pipeline
    normalization = replace(normalization, handle_chinese_chars=False)
    if settings.type == CHARACTER:
        tokens = train_characters(texts, size, normalization, least, coverage)
    else:
        tokens = train_words(texts, size, normalization, least, settings.special_tokens)
    return tokens, ROLES, WholeTokens(settings.type, normalization)


def _train_sentencepiece(texts: Iterable[str], settings: TrainingSettings) -> Tokenizer:
    roles, model = sentencepiece_training.train_sentencepiece(
        texts,
        settings.type,
        settings.vocab_size,
        settings.lowercases,
        settings.character_coverage,
        settings.special_tokens,
    )
    return Tokenizer(model.pieces, roles, model, extra_special=settings.special_tokens)


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool = True, min_frequency: int = 2) -> Tokenizer:
    """Train a WordPiece vocabulary; see ``train``."""
    return train(texts, TrainingSettings(vocab_size=vocab_size, lowercase=lowercase, min_frequency=min_frequency))


def sample(texts: Iterable[str], num_bytes: int, sample_bytes: int | None) -> Iterator[str]:
    """Yield texts spread evenly, about ``sample_bytes`` of the ``num_bytes`` that all have; None yields all.

    A text is taken whenever what was taken so far is behind its share of what was seen, so the first always is.
    """
    share = 1.0 if sample_bytes is None else sample_bytes / max(num_bytes, 1)
    if share >= 1:
        yield from texts
        return
    seen = taken = 0
    for text in texts:
        size = len(text.encode())
        if taken <= seen * share:
            taken += size
            yield text
        seen += size
