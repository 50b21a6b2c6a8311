"""Parts that embeddings, transformer and heads share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class Linear(nn.Linear):
    """torch's linear map, zero until ``init_weights`` fills it: building a model draws no random numbers."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """torch's lookup table, zero until ``init_weights`` fills it."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016, arXiv:1607.06450) whose arithmetic is never below fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension: [..., D] to the same shape and dtype."""
        weight, bias = self.weight, self.bias
        if hidden.device.type == "cpu" and hidden.dtype in (torch.bfloat16, torch.float16):
            # The CUDA kernel keeps its sums in fp32; the CPU kernel's gradients of weight and bias are 13 % off.
            normed = F.layer_norm(hidden.float(), weight.shape, weight.float(), bias.float(), self.eps)
            return normed.to(hidden.dtype)
        return F.layer_norm(hidden, weight.shape, weight, bias, self.eps)
