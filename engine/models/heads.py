"""What stands on a transformer: predictions of tokens or of a sequence's class."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from engine.config.arch import ArchConfig, padded_vocab_size
from engine.models.dropout import dropout
from engine.models.layers import ActivatedLinear, LayerNorm, Linear
from engine.models.layout import PackedLayout
from engine.models.pooling import pool
from kernels.cross_entropy import linear_cross_entropy

# N tokens in the packed batch, M of them predicted, S sequences, D hidden_size, Vp padded vocabulary


class MaskedLMHead(nn.Module):
    """BERT's prediction of masked tokens; its decoder is the word embedding."""

    padding_bias: Tensor

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.dense = ActivatedLinear(arch.hidden_size, arch.hidden_size, arch.activation)
        self.norm = LayerNorm(arch.hidden_size, arch.norm_eps)
        self.bias = nn.Parameter(torch.zeros(padded_vocab_size(arch.vocab_size)))
        self.register_buffer("padding_bias", padding_bias(arch.vocab_size), persistent=False)

    def forward(
        self, hidden: Tensor, word_embedding: Tensor, labels: Tensor | None = None, count_right: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Predict tokens; see ``decode``."""
        hidden = self.norm(self.dense(hidden))  # [M, D]
        bias = self.bias + self.padding_bias.to(self.bias.dtype)  # [Vp]; DeepSpeed keeps buffers in fp32
        return decode(hidden, word_embedding, bias, labels, count_right)


class CausalLMHead(nn.Module):
    """GPT-2's prediction of the next token: the word embedding and no parameter of its own."""

    padding_bias: Tensor

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.register_buffer("padding_bias", padding_bias(arch.vocab_size), persistent=False)

    def forward(
        self, hidden: Tensor, word_embedding: Tensor, labels: Tensor | None = None, count_right: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Predict tokens; see ``decode``."""
        return decode(hidden, word_embedding, self.padding_bias.to(word_embedding.dtype), labels, count_right)


class SentencePairHead(nn.Module):
    """Whether two sentences belong together: BERT's pooler and two classes (arXiv:1810.04805, section 3.1)."""

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.pooler = Linear(arch.hidden_size, arch.hidden_size)
        self.classifier = Linear(arch.hidden_size, 2)

    def forward(self, first: Tensor) -> Tensor:
        """Classify pairs by the hidden state of their first token: [M, D] to logits [M, 2]."""
        return self.classifier(torch.tanh(self.pooler(first)))


def usual_pooling(arch: ArchConfig) -> str:
    """Where a sequence's class is read from: the last token where causal (GPT-2), else the first (BERT)."""
    return "last" if arch.causal else "first"


class SequenceClassificationHead(nn.Module):
    """A class for each sequence: from its first token by a pooler (BERT), from its last where causal (GPT-2).

    The pooler of a pre-norm encoder has dropout before it too, as transformers' RobertaPreLayerNorm. ``pooling`` (see
    ``engine.models.pooling``) takes another vector of the sequence in place of the usual token's.
    """

    def __init__(self, arch: ArchConfig, num_labels: int, pooling: str | None = None) -> None:
        super().__init__()
        self.causal = arch.causal
        self.pooling = pooling or usual_pooling(arch)
        self.dropout = arch.hidden_dropout
        self.first_dropout = arch.hidden_dropout if arch.norm_position == "pre" else 0.0
        if arch.causal:
            self.score = Linear(arch.hidden_size, num_labels, bias=False)
        else:
            self.pooler = Linear(arch.hidden_size, arch.hidden_size)
            self.classifier = Linear(arch.hidden_size, num_labels)

    def forward(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Classify sequences: hidden [N, D] to logits [S, num_labels]; those of empty sequences mean nothing."""
        vectors = pool(hidden, layout, self.pooling)  # [S, D]
        if self.causal:
            return self.score(vectors)
        pooled = torch.tanh(self.pooler(dropout(vectors, self.first_dropout, self.training)))  # [S, D]
        return self.classifier(dropout(pooled, self.dropout, self.training))


class TokenClassificationHead(nn.Module):
    """A class for each token, as transformers' ForTokenClassification."""

    def __init__(self, arch: ArchConfig, num_labels: int) -> None:
        super().__init__()
        self.dropout = arch.hidden_dropout
        self.classifier = Linear(arch.hidden_size, num_labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Classify tokens: hidden [M, D] to logits [M, num_labels]."""
        return self.classifier(dropout(hidden, self.dropout, self.training))


class SpanHead(nn.Module):
    """Where an answer begins and ends, as transformers' ForQuestionAnswering (arXiv:1810.04805, section 4.2)."""

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.outputs = Linear(arch.hidden_size, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Score tokens as the first and as the last of the answer: hidden [N, D] to logits [N, 2]."""
        return self.outputs(hidden)


def decode(
    hidden: Tensor, word_embedding: Tensor, bias: Tensor, labels: Tensor | None, count_right: bool
) -> Tensor | tuple[Tensor, Tensor | None]:
    """Predict tokens by the word embedding.

    Args:
        hidden: [M, D].
        word_embedding: [Vp, D].
        bias: [Vp], -inf for padding.
        labels: [M] int64, the right tokens.
        count_right: count the labels that are predicted.

    Returns:
        Logits [M, Vp]. With labels, without the logits as a whole: the sum of their losses, scalar fp32, and how many
        of them are predicted, scalar int64, or None.
    """
    if labels is None:
        return F.linear(hidden, word_embedding, bias)
    return linear_cross_entropy(hidden, word_embedding, bias, labels, count_right)


def padding_bias(vocab_size: int) -> Tensor:
    """A bias [Vp] that is 0 for tokens and -inf for padding, which so gets no probability and no gradient."""
    bias = torch.zeros(padded_vocab_size(vocab_size))
    bias[vocab_size:] = -torch.inf
    return bias
