"""Low-rank adapters of linear maps (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from engine.data.draws import Draw, stable_seed
from engine.models.layers import Linear
from engine.models.model import Model

DOWN, UP = ".adapter.down", ".adapter.up"


class Adapter(nn.Module):
    """The product of two thin matrices, beside a linear map whose own weights stay as they are."""

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float) -> None:
        """Make an adapter that adds nothing yet.

        Args:
            in_features: of the linear map.
            out_features: of the linear map.
            rank: of the product.
            scale: its factor, alpha / rank.
        """
        super().__init__()
        self.down = nn.Parameter(torch.zeros(rank, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        self.scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return F.linear(F.linear(hidden, self.down), self.up) * self.scale


def adapted_maps(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the encoder's linear maps that the patterns match, in the order of the model.

    Raises:
        ValueError: naming a pattern that matches none, and the nearest name.
    """
    names = [
        name for name, module in model.named_modules() if isinstance(module, Linear) and name.startswith("encoder.")
    ]
    for pattern in targets:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            hint = f"; the nearest name is {near[0]}" if near else ""
            raise ValueError(
                f"lora.targets: {pattern!r} matches no linear map of the encoder{hint} (* stands for anything, as in "
                "*.attention.qkv)"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in targets)]


def add_adapters(model: Model, targets: Sequence[str], rank: int, scale: float, seed: int) -> None:
    """Give linear maps adapters, and freeze all else of the encoder; heads are trained.

    The model computes what it did: the second matrix is zero. The first is uniform in +-1/sqrt(in_features), as in the
    paper's code, from a generator of its own. Queries, keys and values are one map here, and share one adapter.

    Args:
        model: whole, before ``deepspeed.initialize``.
        targets: patterns of names, as ``adapted_maps`` takes them.
        rank: of each adapter.
        scale: factor of what they add.
        seed: of the first matrices.

    Raises:
        ValueError: as ``adapted_maps``, or if the rank is above what a map has.
    """
    generator = torch.Generator().manual_seed(stable_seed(Draw.ADAPTERS, seed))
    model.encoder.requires_grad_(False)
    for name in adapted_maps(model, targets):
        linear = model.get_submodule(name)
        assert isinstance(linear, Linear)
        if rank > (most := min(linear.in_features, linear.out_features)):
            raise ValueError(f"lora.rank is {rank}; {name} has a rank of {most} at most")
        bound = 1 / math.sqrt(linear.in_features)
        with torch.device(linear.weight.device):
            linear.adapter = Adapter(linear.in_features, linear.out_features, rank, scale)
        if not linear.weight.is_meta:
            with torch.no_grad():
                linear.adapter.down.uniform_(-bound, bound, generator=generator)


def merged(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights in which adapters are part of the maps that they belong to; those without adapters are passed on.

    Args:
        weights: whole, by name.
        scale: that the adapters were trained with.
    """
    result = {name: tensor for name, tensor in weights.items() if not name.endswith((DOWN, UP))}
    for name in (name.removesuffix(DOWN) for name in weights if name.endswith(DOWN)):
        added = scale * (weights[name + UP].double() @ weights[name + DOWN].double())
        weight = weights[f"{name}.weight"]
        result[f"{name}.weight"] = (weight.double() + added).to(weight.dtype)
    return result
