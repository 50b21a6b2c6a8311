"""Norms, alone and after a residual sum, against float64, by our kernels and by torch's own operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.models import dropout as dropout_module
from engine.models.dropout import draw_seed, dropout_add
from engine.models.layers import ACTIVATION_FUNCTIONS, AddNorm, Embedding, LayerNorm, Linear
from kernels.philox import keep_mask, keep_scale, threshold_of

ROWS, SIZE = 1531, 251


@pytest.fixture(params=["kernels", "torch"])
def operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of a model: with our operations, and without."""
    monkeypatch.setattr(dropout_module, "is_wanted", lambda *_, **__: request.param == "kernels")
    return str(request.param)


def norm_and_gradients(norm: LayerNorm, hidden: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = hidden.clone().requires_grad_()
    output = norm(hidden)
    output.backward(gradient)
    assert hidden.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return output.detach(), hidden.grad, norm.weight.grad, norm.bias.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3), (torch.float32, 2e-6)])
def test_layer_norm_equals_float64_forward_and_backward(dtype: torch.dtype, tolerance: float, operators: str) -> None:
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


def test_layer_norm_keeps_its_input_and_two_numbers_a_row(operators: str) -> None:
    hidden, norm = torch.randn(7, 12, requires_grad=True), LayerNorm(12, 1e-5)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(hidden)
    given = {tensor.data_ptr(): tensor.numel() for tensor in (hidden, norm.weight, norm.bias)}
    assert sorted(size for place, size in kept.items() if place not in given) == [7, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_add_norm_gives_the_norm_and_the_sum(dtype: torch.dtype, training: bool, operators: str) -> None:
    branch, residual = (1 + torch.rand(2, 40, 64)).to(dtype).unbind()
    norm, seed = AddNorm(64, 1e-5, 0.25).to(dtype).train(training), draw_seed(branch.device)
    torch.manual_seed(3)
    normed, total = norm(branch, residual, seed, 5)
    assert normed.dtype == total.dtype == dtype
    difference = (total - residual).double() / branch.double()
    kept = difference.abs() > 0.5
    if operators == "kernels" and training:
        assert torch.equal(kept, keep_mask(seed, 5, 40, 64, threshold_of(0.25)))
    assert kept.double().mean().item() == (pytest.approx(0.75, abs=0.03) if training else 1.0)
    expected = residual.double() + branch.double() * kept * (keep_scale(threshold_of(0.25)) if training else 1.0)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(total.double(), expected, atol=tolerance, rtol=tolerance)
    centred = F.layer_norm(total.double(), (64,), eps=1e-5)
    torch.testing.assert_close(normed.double(), centred, atol=tolerance, rtol=tolerance)


def test_sum_after_dropout_drops_with_the_mask_of_its_site(operators: str) -> None:
    branch, residual, seed = torch.ones(64, 64), torch.zeros(64, 64), draw_seed(torch.device("cpu"))
    first, second = (dropout_add(branch, residual, 0.5, True, seed, site) for site in (1, 2))
    assert not torch.equal(first, second)
    assert float((first != 0).double().mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(dropout_add(branch, residual, 0.5, False, None, 1), branch)


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
