"""Tokens of sentences' units, where the first of each stands in a batch, and the scores of a sentence's windows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.data.batch import PackedBatch
from finetune.features.sequences import Ids, Int64, SequenceBuilder
from finetune.readers.sentences import Sentence
from finetune.tasks.base import Example
from finetune.tasks.crf import Float32, Transitions

_WHITE_SPACE = re.compile(r"\s")


class UnitScores(NamedTuple):
    """Of the units that belong to an example: logits [k, number of labels] fp32, and a CRF's transitions."""

    logits: Float32
    transitions: Transitions | None


def tokenize_units(builder: SequenceBuilder, records: Sequence[Sentence]) -> tuple[Ids, list[Int64]]:
    """Tokens of all units, one after another, and how many each unit has, for each record.

    A unit of which the tokenizer makes nothing is the unknown token, so that each has one. A tokenizer whose tokens
    hold the white space before a word is given that.
    """
    tokenizer = builder.tokenizer
    spaced = tokenizer.keeps_whitespace
    texts = [
        " " * (spaced and begin > 0 and _WHITE_SPACE.match(record.text[begin - 1]) is not None) + record.text[begin:end]
        for record in records
        for begin, end in record.places
    ]
    ids, counts = tokenizer.encode(texts)
    if (counts == 0).any():
        unknown = tokenizer.special_ids.get("unk", next(iter(tokenizer.special_ids.values())))
        ids = np.insert(ids, (np.cumsum(counts) - counts)[counts == 0], unknown)
        counts = np.maximum(counts, 1)
    ends = np.cumsum([len(record.places) for record in records])
    return ids, np.split(counts, ends[:-1])


def unit_index(batch: PackedBatch, examples: Sequence[Example]) -> Tensor:
    """Where the first tokens of the examples' units are in their batch: [M] int64."""
    begins = np.cumsum([0, *batch.layout.lengths])
    parts = [begin + example.details for begin, example in zip(begins, examples, strict=False)]
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def joined_logits(outputs: Sequence[UnitScores], examples: Sequence[Example]) -> dict[int, UnitScores]:
    """The scores of each record's units, of all its windows."""
    parts: dict[int, list[UnitScores]] = {}
    for output, example in zip(outputs, examples, strict=True):
        parts.setdefault(example.record, []).append(output)
    return {
        number: UnitScores(np.concatenate([part.logits for part in found]), found[0].transitions)
        for number, found in parts.items()
    }
