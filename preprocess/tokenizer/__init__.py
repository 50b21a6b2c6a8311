"""Tokenizers: loading any kind, training, encoding fast, and saving so that ``AutoTokenizer`` reads them."""

from preprocess.tokenizer.base import (
    BERT,
    CAUSAL_TEXTS,
    LANGUAGE_MODEL,
    TOKENIZER_FILES,
    Tokenizer,
    load_tokenizer,
    train_wordpiece,
)

__all__ = [
    "BERT",
    "CAUSAL_TEXTS",
    "LANGUAGE_MODEL",
    "TOKENIZER_FILES",
    "Tokenizer",
    "load_tokenizer",
    "train_wordpiece",
]
