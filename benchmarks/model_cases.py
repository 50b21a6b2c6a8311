"""The models that train.py and models.py time, and the text that they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from engine.config.arch import ArchConfig
from engine.config.masking import MaskingConfig
from engine.config.presets import load_preset
from engine.data.batch import PackedBatch, Targets
from engine.data.rows import Piece, Row
from engine.models.layout import PackedLayout
from engine.objectives.base import PretrainingObjective, Vocabulary
from engine.objectives.lm import CausalLM
from engine.objectives.mlm import MaskedLM

SEED = 1
TEXTS = ("full", "half")
BERT_TOKENS, GPT2_TOKENS = 30522, 50257


@dataclass(frozen=True)
class Case:
    """A model at a length.

    Args:
        model: preset.
        length: of a row, and of a padded sequence.
        rows: of a step.
        vocab_size: of the vocabulary.
        texts: that it is timed on.
        attention_dropout: of attention's weights; hidden states have the preset's.
    """

    model: str
    length: int
    rows: int
    vocab_size: int
    texts: tuple[str, ...] = TEXTS
    attention_dropout: float = 0.0


ON_CPU = {
    "bert-tiny": Case("bert-tiny", 128, 32, BERT_TOKENS),
    "bert-small": Case("bert-small", 128, 16, BERT_TOKENS),
    "bert-base": Case("bert-base", 128, 8, BERT_TOKENS),
    "bert-large": Case("bert-large", 128, 32, BERT_TOKENS),
    "gpt2-tiny": Case("gpt2-tiny", 128, 8, GPT2_TOKENS),
    "gpt2": Case("gpt2", 256, 4, GPT2_TOKENS),
}
# 32,768 tokens a step (gpt2-medium: 16,384) fit 80 GB on either side; the first are the most telling ones.
ON_GPU = {
    "bert-large-128": Case("bert-large", 128, 256, BERT_TOKENS),
    "gpt2-1024": Case("gpt2", 1024, 32, GPT2_TOKENS, ("full",)),
    "bert-large-512": Case("bert-large", 512, 64, BERT_TOKENS),
    "bert-large-128-dropout": Case("bert-large", 128, 256, BERT_TOKENS, ("full",), attention_dropout=0.1),
    "bert-base-128": Case("bert-base", 128, 256, BERT_TOKENS),
    "gpt2-medium-1024": Case("gpt2-medium", 1024, 16, GPT2_TOKENS, ("full",)),
}


def make_rows(case: Case, text: str, steps: int, specials: int, together: bool) -> list[list[Row]]:
    """Rows of random tokens, in steps.

    Args:
        case: length, and number of rows of a step.
        text: full: each sequence has the row's length; half: lengths are uniform and drawn in pairs that fill a row, so
            that half of a padded batch is padding.
        steps: number of steps.
        specials: tokens of a sequence that are left for the objective.
        together: whether a pair shares a row, as in packed rows; else each sequence has a row of its own.
    """
    generator = np.random.default_rng(SEED)
    rows: list[list[Row]] = []
    for step in range(steps):
        if text == "full":
            lengths = np.full((case.rows, 1), case.length)
        else:
            drawn = generator.integers(specials + 1, case.length - specials, case.rows)
            lengths = np.stack([drawn, case.length - drawn], 1)  # [rows, 2]
            if not together:
                lengths = lengths[: (case.rows + 1) // 2].reshape(-1, 1)[: case.rows]
        pieces = [[generator.integers(1000, case.vocab_size, size - specials) for size in row] for row in lengths]
        rows.append([Row(tuple(Piece(t, False) for t in row), step, number) for number, row in enumerate(pieces)])
    return rows


def make_objective(case: Case) -> tuple[PretrainingObjective, ArchConfig]:
    """The preset's objective over a vocabulary of the usual special tokens, and its architecture."""
    fields, name = load_preset(case.model)
    sizes = {"vocab_size": case.vocab_size, "max_positions": max(512, case.length)}
    arch = ArchConfig(**{**fields, **sizes, "attention_dropout": case.attention_dropout})
    special = np.zeros(case.vocab_size, np.bool_)
    special[:106] = True
    ids = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103, "bos": 104, "eos": 105}
    vocabulary = Vocabulary(case.vocab_size, ids, special, np.zeros(case.vocab_size, np.bool_))
    return (MaskedLM(MaskingConfig(), vocabulary, SEED) if name == "mlm" else CausalLM(vocabulary)), arch


def on_all_tokens(batch: PackedBatch) -> PackedBatch:
    """The same batch with a target at each token; those that were none have the label -100."""
    targets = {}
    for name, target in batch.targets.items():
        labels = torch.full((len(batch.tokens),), -100)
        labels[target.index] = target.labels
        targets[name] = Targets(torch.arange(len(labels)), labels)
    return replace(batch, targets=targets)


def filled_to(batch: PackedBatch, length: int) -> PackedBatch:
    """The same batch with each sequence filled up to a length, as if padding were text."""
    number = len(batch.layout.lengths)
    starts = batch.layout.cu_seqlens[:-1].long()
    sequence = torch.repeat_interleave(torch.arange(number), torch.tensor(batch.layout.lengths))
    place = torch.arange(len(batch.tokens)) - starts[sequence] + sequence * length  # of each token among all

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(number * length, dtype=tensor.dtype).index_copy_(0, place, tensor)

    return replace(
        batch,
        tokens=spread(batch.tokens),
        positions=torch.arange(length).repeat(number),
        segments=None if batch.segments is None else spread(batch.segments),
        layout=PackedLayout.from_lengths([length] * number),
        targets={name: Targets(place[each.index], each.labels) for name, each in batch.targets.items()},
    )


def padded(batch: PackedBatch, name: str, length: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The packed batch as transformers wants it: [B, L] tokens, mask and labels (-100 where nothing is predicted)."""
    whole = filled_to(batch, length)
    number = len(batch.layout.lengths)
    mask = (torch.arange(length) < torch.tensor(batch.layout.lengths)[:, None]).long()
    if name == "mlm":
        labels = on_all_tokens(whole).targets[name].labels.view(number, length)
    else:
        labels = whole.tokens.view(number, length).masked_fill(mask == 0, -100)  # transformers shifts by itself
    parts = {"input_ids": whole.tokens.view(number, length), "attention_mask": mask, "labels": labels}
    return {key: value.to(device) for key, value in parts.items()}


def transformers_model(case: Case, arch: ArchConfig) -> Any:
    """The same architecture as transformers' own class, with its default attention (SDPA)."""
    import transformers

    if arch.causal:
        config = transformers.GPT2Config(
            vocab_size=case.vocab_size, n_positions=arch.max_positions, n_embd=arch.hidden_size,
            n_layer=arch.num_layers, n_head=arch.num_heads, attn_pdrop=arch.attention_dropout,
            resid_pdrop=arch.hidden_dropout, embd_pdrop=arch.hidden_dropout, attn_implementation="sdpa",
            use_cache=False,  # which torch.compile would compile each layer anew for
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)
    config = transformers.BertConfig(
        vocab_size=case.vocab_size, hidden_size=arch.hidden_size, num_hidden_layers=arch.num_layers,
        num_attention_heads=arch.num_heads, intermediate_size=arch.intermediate_size,
        max_position_embeddings=arch.max_positions, hidden_dropout_prob=arch.hidden_dropout,
        attention_probs_dropout_prob=arch.attention_dropout, attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def sequences_of(rows: Sequence[Row]) -> int:
    """How many sequences rows hold."""
    return sum(len(row.pieces) for row in rows)
