"""A transformer with its heads, and their first weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.models.layout import PackedLayout
from engine.models.transformer import Transformer

RESIDUAL_OUTPUTS = ("attention.output.weight", "mlp.down.weight")


class Model(nn.Module):
    """An encoder and the heads on it; parameters are named ``encoder.layers.0...`` and ``heads.mlm...``."""

    def __init__(self, encoder: Transformer, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.frozen_weights: dict[str, tuple[int, Tensor]] = {}  # what a checkpoint keeps of them, in fp32

    @property
    def word_embedding(self) -> Tensor:
        """The word embedding [Vp, D], which language-model heads decode with."""
        return self.encoder.embeddings.word.weight

    def forward(self, tokens: Tensor, positions: Tensor, segments: Tensor | None, layout: PackedLayout) -> Tensor:
        """Encode a packed batch to hidden states [N, D]; objectives call the heads on what they need of it."""
        hidden: Tensor = self.encoder(tokens, positions, segments, layout)
        return hidden


def build_model(arch: ArchConfig, heads: Mapping[str, nn.Module], seed: int) -> Model:
    """Build a model whose weights are a function of (arch, heads, seed) alone.

    Raises:
        ValueError: if the architecture is impossible.
    """
    if problems := arch.problems():
        raise ValueError("; ".join(problems))
    model = Model(Transformer(arch), heads)
    init_weights(model, arch, seed)
    return model


def parameter_names(arch: ArchConfig, make_heads: Callable[[ArchConfig], Mapping[str, nn.Module]]) -> list[str]:
    """Names of a model's parameters, without memory for them."""
    with torch.device("meta"):
        return [name for name, _ in Model(Transformer(arch), make_heads(arch)).named_parameters()]


@torch.no_grad()
def init_weights(model: Model, arch: ArchConfig, seed: int) -> None:
    """Fill all parameters, in the order of their names, from a generator of their own.

    Matrices are normal(0, init_std), biases 0, norms 1 and 0, padding rows of the vocabulary 0. Before a pre-norm's
    residual sums the deviation is divided by sqrt(2 * num_layers) (GPT-2, Radford et al. 2019, section 2.3).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            continue
        std = arch.init_std
        if arch.norm_position == "pre" and name.endswith(RESIDUAL_OUTPUTS):
            std /= math.sqrt(2 * arch.num_layers)
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
    model.word_embedding[arch.vocab_size :] = 0.0
