"""The layer norm against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.models.layers import ACTIVATION_FUNCTIONS, Embedding, LayerNorm, Linear

ROWS, SIZE = 1531, 251


def norm_and_gradients(norm: LayerNorm, hidden: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = hidden.clone().requires_grad_()
    output = norm(hidden)
    output.backward(gradient)
    assert hidden.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return output.detach(), hidden.grad, norm.weight.grad, norm.bias.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3), (torch.float32, 2e-6)])
def test_layer_norm_equals_float64_forward_and_backward(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = (2 * torch.randn(ROWS, SIZE, generator=generator) + 0.5).to(dtype)
    gradient = torch.randn(ROWS, SIZE, generator=generator).to(dtype)
    norm = LayerNorm(SIZE, 1e-12)
    torch.nn.init.normal_(norm.weight, 1.0, 0.1, generator=generator)
    torch.nn.init.normal_(norm.bias, 0.0, 0.1, generator=generator)
    norm.to(dtype)
    found = norm_and_gradients(norm, hidden, gradient)

    hidden64 = hidden.double().requires_grad_()
    weight64, bias64 = (p.detach().double().requires_grad_() for p in (norm.weight, norm.bias))
    centred = hidden64 - hidden64.mean(-1, keepdim=True)
    output64 = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * weight64 + bias64
    output64.backward(gradient.double())
    for tensor, expected in zip(found, (output64, hidden64.grad, weight64.grad, bias64.grad), strict=True):
        assert expected is not None
        assert tensor.dtype == dtype
        assert (tensor.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_layer_norm_copies_nothing_in_fp32() -> None:
    hidden = torch.randn(7, 12, requires_grad=True)
    output = LayerNorm(12, 1e-5)(hidden)
    assert output.grad_fn is not None
    assert output.grad_fn.name() == "NativeLayerNormBackward0"
    assert output.grad_fn.next_functions[0][0].name().endswith("AccumulateGrad")


def test_layers_are_zero_and_draw_no_random_numbers() -> None:
    before = torch.get_rng_state()
    assert not Linear(5, 7).weight.any()
    assert not Embedding(5, 7).weight.any()
    assert torch.equal(before, torch.get_rng_state())


def test_activations() -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    erf = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    tanh = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ACTIVATION_FUNCTIONS["gelu"](x), erf)
    torch.testing.assert_close(ACTIVATION_FUNCTIONS["gelu_tanh"](x), tanh)
    assert F.gelu is ACTIVATION_FUNCTIONS["gelu"]
