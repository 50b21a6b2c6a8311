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


def planned_batch(objective: str, lengths: Sequence[int], masking_rate: float) -> PackedBatch:
    """A micro-batch of sequences of given lengths, with as many targets as the objective gives on average.

    Args:
        objective: its name.
        lengths: tokens of each sequence.
        masking_rate: share of the tokens that are masked.
    """
    num, tokens = np.asarray(lengths, np.int64), int(sum(lengths))
    paired = "," in objective
    batch = pack_flat(np.zeros(tokens, np.int64), num, np.zeros(tokens, np.int64) if paired else None)
    counts = {"lm": tokens - len(num)} if objective == "lm" else {"mlm": round(masking_rate * tokens)}
    if paired:
        counts[objective.partition(",")[2]] = len(num)
    targets = {
        name: Targets(torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64))
        for name, count in counts.items()
    }
    return replace(batch, targets=targets, counts=counts)
