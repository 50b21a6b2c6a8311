"""Parts that embeddings, transformer and heads share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from engine.models.dropout import dropout, uses_kernel
from kernels.activation import BIAS_GELU, bias_gelu
from kernels.norm import LAYER_NORM, NORM, norm

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


class Linear(nn.Linear):
    """torch's linear map, zero until ``init_weights`` fills it: building a model draws no random numbers.

    Attributes:
        adapter: adds to what the map computes, where one was put there (``engine.models.lora``); None at first.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.adapter: nn.Module | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        mapped = F.linear(hidden, self.weight, self.bias)
        return mapped if self.adapter is None else mapped + self.adapter(hidden)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ActivatedLinear(Linear):
    """A linear map and an activation, in one module: at ZeRO stage 3 the bias is whole only in its module's forward.

    Where it is ahead, a kernel adds the bias and activates in one pass (``kernels.activation``).
    """

    def __init__(self, in_features: int, out_features: int, activation: str) -> None:
        super().__init__(in_features, out_features)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        if uses_kernel(BIAS_GELU, hidden.device, self.out_features):
            mapped = F.linear(hidden, self.weight)
            if self.adapter is not None:
                mapped = mapped + self.adapter(hidden)
            return bias_gelu(mapped, self.bias, APPROXIMATE[self.activation])
        return ACTIVATION_FUNCTIONS[self.activation](super().forward(hidden))


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
        self.size, self.eps = size, eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension: [..., D] to the same shape and dtype."""
        weight, bias = self.weight, self.bias
        if uses_kernel(LAYER_NORM if hidden.dtype == torch.float32 else NORM, hidden.device, self.size):
            return norm(hidden, weight, bias, eps=self.eps)[0]
        if hidden.device.type == "cpu" and hidden.dtype in (torch.bfloat16, torch.float16):
            # The CUDA kernel keeps its sums in fp32; the CPU kernel's gradients of weight and bias are 13 % off.
            normed = F.layer_norm(hidden.float(), weight.shape, weight.float(), bias.float(), self.eps)
            return normed.to(hidden.dtype)
        return F.layer_norm(hidden, weight.shape, weight, bias, self.eps)


class AddNorm(LayerNorm):
    """The end of a branch: dropout, the sum with the residual stream, and a norm of that."""

    def __init__(self, size: int, eps: float, dropout: float) -> None:
        super().__init__(size, eps)
        self.dropout = dropout

    def forward(  # type: ignore[override]
        self, branch: Tensor, residual: Tensor, seed: Tensor | None, site: int
    ) -> tuple[Tensor, Tensor]:
        """Add a branch to the residual stream.

        Args:
            branch: [N, D].
            residual: like it.
            seed: of the dropout mask, [1] int64, where something is dropped.
            site: number of the call in the model.

        Returns:
            The norm of the sum and the sum, like the branch.
        """
        probability = self.dropout if self.training else 0.0
        bare = probability == 0.0 and branch.dtype == torch.float32
        if uses_kernel(LAYER_NORM if bare else NORM, branch.device, self.size):
            return norm(
                branch,
                self.weight,
                self.bias,
                residual=residual,
                dropout=probability,
                seed=seed,
                site=site,
                eps=self.eps,
            )
        total = residual + dropout(branch, self.dropout, self.training)
        return super().forward(total), total
