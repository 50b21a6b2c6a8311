"""What the trainer asks of an objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch
from engine.data.plan import SequenceLayout
from engine.data.rows import Row
from engine.models.dropout import uses_kernel
from engine.models.model import Model
from kernels.cross_entropy import LINEAR_CROSS_ENTROPY

TOKEN_TERMS = ("mlm", "lm")  # terms whose targets are tokens


@dataclass(frozen=True)
class Vocabulary:
    """What objectives know of a tokenizer.

    Attributes:
        size: number of tokens, padding of the embedding not included.
        special_ids: ids by role: pad, unk, cls, sep, mask, bos, eos.
        special: [size] bool, tokens that never stand for text.
        continuation: [size] bool, tokens that continue the word before them.
    """

    size: int
    special_ids: Mapping[str, int]
    special: NDArray[np.bool_]
    continuation: NDArray[np.bool_]


class LossTerm(NamedTuple):
    """One term of a loss: its sum over the targets of a batch, how many they are, and its weight in the whole.

    A tuple, because DeepSpeed looks for tensors in the tuples and dicts that a forward returns: what it does not find
    it does not prepare for the backward pass, and accumulated bf16 gradients would be wrong.

    Attributes:
        loss_sum: scalar fp32 tensor.
        num_targets: how many they are, known on the host.
        weight: factor of the mean.
        correct: scalar tensor, targets predicted right; only where asked for.
    """

    loss_sum: Tensor
    num_targets: int
    weight: float = 1.0
    correct: Tensor | None = None


class Objective(Protocol):
    """A pretraining objective or a fine-tuning task: how a model's hidden states become losses."""

    name: str

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Run the model on a batch and return the terms of the loss by name."""
        ...


class PretrainingObjective(Objective, Protocol):
    """An objective on rows of text."""

    sequence_layout: SequenceLayout

    def make_heads(self, arch: ArchConfig) -> dict[str, nn.Module]:
        """The heads that the objective trains, by the names of their losses."""
        ...

    def collate(self, rows: Sequence[Row], masking_rate: float | None = None) -> PackedBatch:
        """Rows of text to a packed batch with targets; a pure function of the rows and the rate.

        Args:
            rows: of text.
            masking_rate: share of tokens that become targets; None: the configured one.
        """
        ...


def encode(model: Model, batch: PackedBatch) -> Tensor:
    """Hidden states [N, D] of a packed batch."""
    hidden: Tensor = model.encoder(batch.tokens, batch.positions, batch.segments, batch.layout)
    return hidden


def cross_entropy_term(logits: Tensor, labels: Tensor, count: int, with_accuracy: bool) -> LossTerm:
    """Summed cross-entropy in fp32 of logits [M, C] against labels [M] int64."""
    loss_sum = F.cross_entropy(logits.float(), labels, reduction="sum")
    correct = (logits.argmax(-1) == labels).sum() if with_accuracy else None
    return LossTerm(loss_sum, count, correct=correct)


def token_term(
    model: Model, name: str, hidden: Tensor, batch: PackedBatch, with_accuracy: bool, head: str | None = None
) -> LossTerm:
    """The loss of a batch's tokens that a head predicts.

    Args:
        model: whose head it is.
        name: of the targets, and of the head where that is not given.
        hidden: [N, D], the hidden states of the batch.
        batch: with targets.
        with_accuracy: count the tokens that are predicted right.
        head: that predicts them.
    """
    target, count = batch.targets[name], batch.counts[name]
    hidden, head = hidden[target.index], head or name  # [M, D]
    if not uses_kernel(LINEAR_CROSS_ENTROPY, hidden.device):
        logits = model.heads[head](hidden, model.word_embedding)  # [M, Vp]
        return cross_entropy_term(logits, target.labels, count, with_accuracy)
    loss_sum, correct = model.heads[head](hidden, model.word_embedding, target.labels, with_accuracy)
    return LossTerm(loss_sum, count, correct=correct)


def perplexity_of(means: Mapping[str, float]) -> dict[str, float]:
    """``perplexity``: exp of the mean loss, in nats per target token, of the term that predicts tokens.

    For lm the targets are all tokens. For mlm they are the masked ones, each seen with both its sides: a figure to
    compare with runs of the same masking, and not with a language model's.

    Args:
        means: mean loss of each term, by name.

    Returns:
        Nothing where no term predicts tokens; infinity where a float cannot hold the figure.
    """
    for name in TOKEN_TERMS:
        if name in means:
            return {"perplexity": math.inf if means[name] > 700 else math.exp(means[name])}
    return {}


def require_tokens(objective: str, vocabulary: Vocabulary, roles: Sequence[str]) -> None:
    """ValueError naming the special tokens that an objective needs and a vocabulary lacks."""
    missing = [role for role in roles if role not in vocabulary.special_ids]
    if missing:
        have = ", ".join(sorted(vocabulary.special_ids)) or "none"
        raise ValueError(
            f"objective {objective} needs the special token(s) {', '.join(missing)}, and the vocabulary has {have}; "
            "add them to the vocabulary (WordPiece: lines [CLS] [SEP] [MASK] [PAD] [UNK]) and prepare the shards again"
        )
