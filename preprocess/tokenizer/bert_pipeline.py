"""BERT's text pipeline as ``tokenizers`` implements it: the oracle that the fast encoder must equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from preprocess.tokenizer.pipeline import Encoder, Pipeline, vocabulary_file
from preprocess.tokenizer.roles import Vocabulary
from preprocess.tokenizer.wordpiece import WordPieceEncoder

PREFIX = "##"
MAX_WORD_LENGTH = 100


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """BERT's text cleaning, named as in ``tokenizers``; ``strip_accents`` None follows ``lowercase``."""

    lowercase: bool = True
    strip_accents: bool | None = None
    clean_text: bool = True
    handle_chinese_chars: bool = True

    def normalizer(self) -> normalizers.BertNormalizer:
        """Return the library's normalizer."""
        return normalizers.BertNormalizer(**asdict(self))

    def config(self) -> dict[str, Any]:
        """Return transformers' names for it."""
        return {
            "do_lower_case": self.lowercase,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.handle_chinese_chars,
        }


def build_backend(
    ids: Mapping[str, int],
    unknown_token: str,
    normalization: Normalization,
    prefix: str = PREFIX,
    max_word_length: int = MAX_WORD_LENGTH,
) -> tokenizers.Tokenizer:
    """Return normalizer, pre-tokenizer, WordPiece and decoder, without any added token."""
    model = models.WordPiece(
        dict(ids),
        unk_token=unknown_token,
        continuing_subword_prefix=prefix,
        max_input_chars_per_word=max_word_length,
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalization.normalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=prefix)
    return backend


class WordPiece(Pipeline):
    """BERT's pipeline."""

    type = "wordpiece"
    files = (*Pipeline.files, "vocab.txt")

    def __init__(
        self, normalization: Normalization, prefix: str = PREFIX, max_word_length: int = MAX_WORD_LENGTH
    ) -> None:
        self.normalization = normalization
        self.prefix = prefix
        self.max_word_length = max_word_length
        if normalization.clean_text and (prefix, max_word_length) == (PREFIX, MAX_WORD_LENGTH):
            self.transformers_class = "BertTokenizer"  # which knows no other settings than these

    def backend(self, vocabulary: Vocabulary, hidden: bool) -> tokenizers.Tokenizer:
        """Return the library's tokenizer."""
        assert vocabulary.unknown is not None
        ids = vocabulary.ids(hidden)
        return build_backend(ids, vocabulary.unknown, self.normalization, self.prefix, self.max_word_length)

    def encoder(self, vocabulary: Vocabulary, dtype: np.dtype) -> Encoder:
        """Return the fast encoder."""
        return WordPieceEncoder(self.backend(vocabulary, hidden=True), dtype)

    def decisive(self) -> dict[str, Any]:
        """Return the settings."""
        return {
            "normalization": asdict(self.normalization),
            "prefix": self.prefix,
            "max_word_length": self.max_word_length,
        }

    def continuation(self, tokens: Sequence[str]) -> list[bool]:
        """Tell by the prefix."""
        return [token.startswith(self.prefix) and len(token) > len(self.prefix) for token in tokens]

    def config(self) -> dict[str, Any]:
        """Return the normalisation."""
        return self.normalization.config()

    def classic_files(self, vocabulary: Vocabulary) -> dict[str, bytes]:
        """Return vocab.txt."""
        return {"vocab.txt": vocabulary_file(vocabulary)}
