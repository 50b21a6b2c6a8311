"""Embeddings against float64, by our kernels and by torch's own operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.config.arch import ArchConfig
from engine.models import dropout as dropout_module
from engine.models.dropout import draw_seed
from engine.models.embeddings import SITE, Embeddings
from kernels.philox import keep_mask, keep_scale, threshold_of

SIZES = {"vocab_size": 101, "hidden_size": 36, "num_heads": 3, "max_positions": 17, "num_layers": 1}
BERT = ArchConfig(**SIZES, hidden_dropout=0.25)
GPT2 = ArchConfig(**SIZES, hidden_dropout=0.25, num_segments=0, embedding_norm=False, causal=True, norm_position="pre")
TOKENS = 64


@pytest.fixture(params=["kernels", "torch"])
def operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of a model: with our operations, and without."""
    monkeypatch.setattr(dropout_module, "is_wanted", lambda *_, **__: request.param == "kernels")
    return str(request.param)


def made(arch: ArchConfig) -> tuple[Embeddings, Tensor, Tensor, Tensor | None]:
    """Embeddings with random weights, and tokens, positions and segments."""
    torch.manual_seed(3)
    embeddings = Embeddings(arch)
    for parameter in embeddings.parameters():
        torch.nn.init.normal_(parameter)
    segments = torch.randint(2, (TOKENS,)) if arch.num_segments else None
    return embeddings, torch.randint(101, (TOKENS,)), torch.arange(TOKENS) % 17, segments


def exact(embeddings: Embeddings, tokens: Tensor, positions: Tensor, segments: Tensor | None, kept: Tensor) -> Tensor:
    """What is expected in float64; autograd goes on to the weights."""
    hidden = embeddings.word.weight.double()[tokens] + embeddings.position.weight.double()[positions]
    if embeddings.segment is not None:
        hidden = hidden + embeddings.segment.weight.double()[torch.zeros_like(tokens) if segments is None else segments]
    if embeddings.norm is not None:
        norm = embeddings.norm
        hidden = F.layer_norm(hidden, hidden.shape[1:], norm.weight.double(), norm.bias.double(), norm.eps)
    return hidden * kept


@pytest.mark.parametrize("arch", [BERT, GPT2], ids=["bert", "gpt2"])
@pytest.mark.parametrize("segmented", [True, False])
def test_values_and_gradients(arch: ArchConfig, segmented: bool, operators: str) -> None:
    embeddings, tokens, positions, segments = made(arch)
    segments = segments if segmented else None
    gradient = torch.randn(TOKENS, 36)
    for training in (True, False):
        embeddings.train(training).zero_grad()
        seed = draw_seed(tokens.device) if training else None
        hidden = embeddings(tokens, positions, segments, seed)
        kept = (hidden != 0) * (keep_scale(threshold_of(0.25)) if training else 1.0)
        if operators == "kernels" and seed is not None:
            assert torch.equal(hidden != 0, keep_mask(seed, SITE, TOKENS, 36, threshold_of(0.25)))
        assert float((hidden == 0).double().mean()) == pytest.approx(0.25 if training else 0.0, abs=0.04)
        hidden.backward(gradient)
        found = {name: parameter.grad for name, parameter in embeddings.named_parameters()}
        embeddings.zero_grad()
        expected = exact(embeddings, tokens, positions, segments, kept)
        expected.backward(gradient.double())
        torch.testing.assert_close(hidden.double(), expected, atol=1e-5, rtol=1e-5)
        for name, parameter in embeddings.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-5)


def test_frozen_words_get_no_gradient(operators: str) -> None:
    embeddings, tokens, positions, segments = made(BERT)
    embeddings.word.weight.requires_grad_(False)
    embeddings.eval()(tokens, positions, segments).sum().backward()
    assert embeddings.word.weight.grad is None and embeddings.position.weight.grad is not None


def test_segments_need_a_table(operators: str) -> None:
    embeddings, tokens, positions, _ = made(GPT2)
    with pytest.raises(ValueError, match=r"given to a model without them: arch\.num_segments is 0"):
        embeddings(tokens, positions, torch.zeros_like(tokens))
