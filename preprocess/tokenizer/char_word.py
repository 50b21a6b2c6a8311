"""Character and word tokenizers: each character, or each run of characters without white space, is one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from preprocess.tokenizer.bert_pipeline import Normalization
from preprocess.tokenizer.pipeline import Encoder, IntArray, Pipeline, vocabulary_file
from preprocess.tokenizer.roles import Vocabulary
from preprocess.tokenizer.wordpiece import WORD as SPAN
from preprocess.tokenizer.wordpiece import WordPieceEncoder

CHARACTER, WORD = "char", "word"


class CharacterEncoder(WordPieceEncoder):
    """Each character is a token; those that normalisation takes apart (Hangul without accents) are spans."""

    def encode_with_positions(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids, counts and positions; by offsets where a text has spans."""
        if (self.classify("\n".join(texts))[1] == SPAN).any():
            return Encoder.encode_with_positions(self, texts)
        return super().encode_with_positions(texts)


class WholeTokens(Pipeline):
    """White space cuts; then a list says the id of each word, or of each character of it.

    The normalisation is BERT's: control characters go, and lower-cased text loses its accents; CJK characters get no
    spaces of their own. No token continues a word: with these tokenizers whole-word masking is that of single tokens
    unless a word segmenter says more.
    """

    files = (*Pipeline.files, "vocab.txt")

    def __init__(self, kind: str, normalization: Normalization) -> None:
        self.type = kind
        self.normalization = normalization

    def backend(self, vocabulary: Vocabulary, hidden: bool) -> tokenizers.Tokenizer:
        """Return the library's tokenizer."""
        assert vocabulary.unknown is not None
        backend = tokenizers.Tokenizer(models.WordLevel(vocabulary.ids(hidden), unk_token=vocabulary.unknown))
        backend.normalizer = self.normalization.normalizer()
        cut: pre_tokenizers.PreTokenizer = pre_tokenizers.WhitespaceSplit()
        if self.type == CHARACTER:
            cut = pre_tokenizers.Sequence([cut, pre_tokenizers.Split(Regex("(?m)."), "isolated")])
            backend.decoder = decoders.Fuse()
        backend.pre_tokenizer = cut
        return backend

    def encoder(self, vocabulary: Vocabulary, dtype: np.dtype) -> Encoder:
        """Return the fast encoder."""
        kind = CharacterEncoder if self.type == CHARACTER else WordPieceEncoder
        return kind(self.backend(vocabulary, hidden=True), dtype)

    def decisive(self) -> dict[str, Any]:
        """Return the settings."""
        return {"normalization": asdict(self.normalization)}

    def config(self) -> dict[str, Any]:
        """Return the normalisation, and the kind for a folder whose tokenizer.json is gone."""
        return {**self.normalization.config(), "tokenizer_kind": self.type}

    def classic_files(self, vocabulary: Vocabulary) -> dict[str, bytes]:
        """Return vocab.txt."""
        return {"vocab.txt": vocabulary_file(vocabulary)}
