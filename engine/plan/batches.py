"""Objectives and micro-batches to plan with: real ones but for the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from engine.config.arch import ArchConfig
from engine.config.masking import MaskingConfig
from engine.config.pretrain import DataConfig, PretrainConfig
from engine.data.batch import PackedBatch, Targets, pack_flat
from engine.objectives.base import PretrainingObjective, Vocabulary
from engine.objectives.registry import build_objective

ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


def planned_objective(name: str, arch: ArchConfig) -> PretrainingObjective:
    """An objective over a vocabulary that has every special token.

    Raises:
        ValueError: if the architecture cannot learn it.
    """
    none = np.zeros(arch.vocab_size, np.bool_)
    vocabulary = Vocabulary(arch.vocab_size, dict.fromkeys(ROLES, 0), none, none)
    config = PretrainConfig(ds_config="", masking=MaskingConfig(), data=DataConfig())
    return build_objective(name, config, arch, vocabulary)


def special_tokens(objective: str) -> int:
    """Tokens that an objective adds to a sequence."""
    return {"lm": 1, "mlm": 2}.get(objective, 3)


def expected_counts(objective: str, lengths: Sequence[int], masking_rate: float, special: int) -> dict[str, float]:
    """Targets of each term of the loss on average.

    Args:
        objective: its name.
        lengths: tokens of each sequence, special ones included.
        masking_rate: share of the tokens of text that are masked.
        special: tokens of a sequence that are not text.
    """
    tokens, num = sum(lengths), len(lengths)
    if objective == "lm":
        return {"lm": tokens - num}
    counts = {"mlm": masking_rate * max(0, tokens - special * num)}
    return {**counts, objective.partition(",")[2]: num} if "," in objective else counts


def planned_batch(objective: str, lengths: Sequence[int], masking_rate: float) -> PackedBatch:
    """A micro-batch of sequences of given lengths, with as many targets as the objective gives on average.

    Args:
        objective: its name.
        lengths: tokens of each sequence.
        masking_rate: share of the tokens of text that are masked.
    """
    tokens = sum(lengths)
    segments = np.zeros(tokens, np.int64) if "," in objective else None
    batch = pack_flat(np.zeros(tokens, np.int64), np.asarray(lengths, np.int64), segments)
    expected = expected_counts(objective, lengths, masking_rate, special_tokens(objective))
    counts = {name: round(count) for name, count in expected.items()}
    targets = {
        name: Targets(torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64))
        for name, count in counts.items()
    }
    return replace(batch, targets=targets, counts=counts)
