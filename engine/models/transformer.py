"""The transformer: BERT and GPT-2 from the same parts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.config.arch import ArchConfig
from engine.models.attention import Attention
from engine.models.dropout import draw_seed, dropout_add
from engine.models.embeddings import Embeddings
from engine.models.layers import ActivatedLinear, AddNorm, LayerNorm, Linear
from engine.models.layout import PackedLayout

SITES_OF_A_LAYER = 3  # calls of dropout, each with masks of its own: attention weights, and two residual sums

# N tokens in the packed batch, D hidden_size, I intermediate_size


class Transformer(nn.Module):
    """Embeddings and a stack of layers.

    BERT (arXiv:1810.04805) is post-norm with an embedding norm and segments; GPT-2 (Radford et al. 2019) is causal,
    pre-norm, with a final norm.

    Attributes:
        checkpoint_layers: keep only the input of each layer for the backward pass, and compute the rest again there,
            with the same dropout (activation checkpointing, Chen et al. 2016, arXiv:1604.06174). False at first.
        perturb: called with the vectors that enter the first layer and their layout, returns what enters it instead.
    """

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(arch)
        self.layers = nn.ModuleList(Layer(arch) for _ in range(arch.num_layers))
        self.final_norm = LayerNorm(arch.hidden_size, arch.norm_eps) if arch.norm_position == "pre" else None
        self.drops = arch.hidden_dropout > 0.0 or arch.attention_dropout > 0.0
        self.checkpoint_layers = False
        self.compiled = False
        self.perturb: Callable[[Tensor, PackedLayout], Tensor] | None = None

    def forward(self, tokens: Tensor, positions: Tensor, segments: Tensor | None, layout: PackedLayout) -> Tensor:
        """Encode a packed batch.

        Args:
            tokens: [N] int64, the sequences back to back.
            positions: [N] int64, counted from 0 in each sequence, below ``max_positions``.
            segments: [N] int64, or None.
            layout: sequence boundaries.

        Returns:
            [N, D], the dtype of the weights.
        """
        seed = draw_seed(tokens.device) if self.training and self.drops else None
        hidden = self.embeddings(tokens, positions, segments, seed)  # [N, D]
        if self.perturb is not None:
            hidden = self.perturb(hidden, layout)
        for index, layer in enumerate(self.layers):
            site = 1 + SITES_OF_A_LAYER * index  # 0 is that of the embeddings
            if self.checkpoint_layers and self.training:
                hidden = checkpoint(layer, hidden, layout, seed, site, use_reentrant=False)
            else:
                hidden = layer(hidden, layout, seed, site)
        return hidden if self.final_norm is None else self.final_norm(hidden)


class Layer(nn.Module):
    """Attention and MLP, each inside a residual sum."""

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.pre_norm = arch.norm_position == "pre"
        self.attention = Attention(arch)
        self.attention_norm = LayerNorm(arch.hidden_size, arch.norm_eps) if self.pre_norm else add_norm(arch)
        self.mlp = MLP(arch)
        self.mlp_norm = add_norm(arch)
        self.dropout = arch.hidden_dropout

    def forward(self, hidden: Tensor, layout: PackedLayout, seed: Tensor | None = None, site: int = 1) -> Tensor:
        """Go through the layer.

        Args:
            hidden: [N, D].
            layout: sequence boundaries.
            seed: of dropout masks, [1] int64, where something is dropped.
            site: number of the layer's first dropout in the model.

        Returns:
            [N, D], same dtype.
        """
        if self.pre_norm:
            branch = self.attention(self.attention_norm(hidden), layout, seed, site)
            normed, hidden = self.mlp_norm(branch, hidden, seed, site + 1)
            width = self.mlp.down.out_features
            return dropout_add(self.mlp(normed), hidden, self.dropout, self.training, seed, site + 2, width)
        hidden, _ = self.attention_norm(self.attention(hidden, layout, seed, site), hidden, seed, site + 1)
        hidden, _ = self.mlp_norm(self.mlp(hidden), hidden, seed, site + 2)
        return hidden


def add_norm(arch: ArchConfig) -> AddNorm:
    """The norm at the end of a branch."""
    return AddNorm(arch.hidden_size, arch.norm_eps, arch.hidden_dropout)


class MLP(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.up = ActivatedLinear(arch.hidden_size, arch.intermediate_size, arch.activation)
        self.down = Linear(arch.intermediate_size, arch.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, D] to [N, D] by way of [N, I]."""
        return self.down(self.up(hidden))
