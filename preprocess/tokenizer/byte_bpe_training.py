"""Trains byte-level BPE (GPT-2's kind) with the ``tokenizers`` library.

Its result does not depend on the order of its hash tables: the alphabet is given, all 256 bytes in GPT-2's order, and
ties between pairs are broken by the ids of their parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from preprocess.tokenizer.byte_bpe import ByteBPE, byte_bpe_data
from preprocess.tokenizer.byte_level import CHARACTER_OF_BYTE
from preprocess.tokenizer.wordpiece_training import batched

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def train_byte_bpe(texts: Iterable[str], vocab_size: int, min_frequency: int) -> tuple[list[str], ByteBPE]:
    """Return the tokens in id order and the pipeline: special tokens, bytes, then merges.

    Raises:
        ValueError: if ``vocab_size`` does not hold the special tokens and all bytes.
    """
    fixed = [*SPECIAL_TOKENS, *CHARACTER_OF_BYTE.values()]
    if vocab_size < len(fixed):
        raise ValueError(
            f"vocab_size is {vocab_size}: {len(SPECIAL_TOKENS)} special tokens and all 256 bytes need {len(fixed)} at "
            "least; GPT-2 has 50257"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=fixed,
        initial_alphabet=list(CHARACTER_OF_BYTE.values()),
        show_progress=False,
    )
    backend.train_from_iterator(batched(texts), trainer)
    model = json.loads(backend.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    data = byte_bpe_data(vocab, [tuple(merge) for merge in model["merges"]], SPECIAL_TOKENS)
    return sorted(vocab, key=lambda token: vocab[token]), ByteBPE(data, "the trained tokenizer")
