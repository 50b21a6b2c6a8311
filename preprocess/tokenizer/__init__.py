"""Tokenizers: loading any kind, training, encoding fast, and saving so that ``AutoTokenizer`` reads them."""

from preprocess.tokenizer.base import Tokenizer
from preprocess.tokenizer.loading import load_tokenizer
from preprocess.tokenizer.saving import BERT, CAUSAL_TEXTS, LANGUAGE_MODEL
from preprocess.tokenizer.training import TrainingSettings, sample, train, train_wordpiece

__all__ = [
    "BERT",
    "CAUSAL_TEXTS",
    "LANGUAGE_MODEL",
    "Tokenizer",
    "TrainingSettings",
    "load_tokenizer",
    "sample",
    "train",
    "train_wordpiece",
]
