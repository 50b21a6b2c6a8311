"""BERT's text pipeline as ``tokenizers`` implements it: the oracle that the fast encoder must equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

PREFIX = "##"
MAX_WORD_LENGTH = 100


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """BERT's text cleaning, named as in ``tokenizers``; ``strip_accents`` None follows ``lowercase``."""

    lowercase: bool = True
    strip_accents: bool | None = None
    clean_text: bool = True
    handle_chinese_chars: bool = True


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
    backend.normalizer = normalizers.BertNormalizer(**asdict(normalization))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=prefix)
    return backend
