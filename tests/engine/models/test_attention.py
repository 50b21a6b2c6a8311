"""Packed attention against a masked softmax over the whole batch, in float64."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.models import attention
from engine.models.attention import run_attention, varlen_attention, varlen_fits
from engine.models.layout import PackedLayout

LENGTHS = (5, 5, 1, 13, 0, 2, 2, 2)
HEADS, HEAD_SIZE = 3, 12


def masked_softmax_attention(qkv: Tensor, lengths: tuple[int, ...], causal: bool) -> Tensor:
    """[N, 3, H, K] to [N, H, K] by one N x N softmax with a block-diagonal mask."""
    query, key, value = qkv.permute(1, 2, 0, 3)  # [3, H, N, K]
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))  # [N]
    allowed = owner[:, None] == owner[None, :]
    if causal:
        allowed &= torch.ones_like(allowed).tril()
    scores = torch.einsum("hqk,hpk->hqp", query, key) / math.sqrt(qkv.shape[-1])
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return torch.einsum("hqp,hpk->qhk", weights, value)


def random_qkv(dtype: torch.dtype, num: int = sum(LENGTHS), head_size: int = HEAD_SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, 3, HEADS, head_size, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)]
)
def test_equals_masked_softmax_forward_and_backward(causal: bool, dtype: torch.dtype, tolerance: float) -> None:
    qkv = random_qkv(dtype).requires_grad_()
    reference = qkv.detach().double().requires_grad_()
    expected = masked_softmax_attention(reference, LENGTHS, causal)
    found = run_attention(qkv, PackedLayout.from_lengths(LENGTHS), causal)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected.backward(weight)
    found.backward(weight.to(dtype))
    assert found.dtype == dtype
    assert qkv.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(qkv.grad.double(), reference.grad, atol=2 * tolerance, rtol=2 * tolerance)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_token_attends_across_a_boundary(causal: bool, dtype: torch.dtype) -> None:
    layout = PackedLayout.from_lengths(LENGTHS)
    qkv = random_qkv(dtype)
    before = run_attention(qkv, layout, causal)
    changed = qkv.clone()
    changed[11:24] += 1.0  # the sequence of 13
    after = run_attention(changed, layout, causal)
    assert torch.equal(before[:11], after[:11])
    assert torch.equal(before[24:], after[24:])
    assert not torch.equal(before[11:24], after[11:24])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_attention_does_not_see_later_tokens(dtype: torch.dtype) -> None:
    layout = PackedLayout.from_lengths((7, 7))
    qkv = random_qkv(dtype, num=14)
    changed = qkv.clone()
    changed[4] += 1.0
    before, after = run_attention(qkv, layout, True), run_attention(changed, layout, True)
    assert torch.equal(before[:4], after[:4])
    assert torch.equal(before[7:], after[7:])
    assert (before[4:7] != after[4:7]).flatten(1).any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_attention_weights(dtype: torch.dtype) -> None:
    layout = PackedLayout.from_lengths((64,))
    qkv = torch.ones(64, 3, 1, 8, dtype=dtype)
    context = run_attention(qkv, layout, False, 0.5)  # each weight is 0 or 2 / 64, each value 1
    assert abs(context.mean().item() - 1.0) < 0.1
    assert context.std() > 0.05


def test_runs_skip_empty_sequences() -> None:
    layout = PackedLayout.from_lengths(LENGTHS)
    assert layout.runs == ((2, 5), (1, 1), (1, 13), (3, 2))
    assert layout.max_length == 13
    assert layout.cu_seqlens.tolist() == [0, 5, 10, 11, 24, 24, 26, 28, 30]
    assert layout.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("causal", [False, True])
def test_varlen_is_called_as_its_signature_asks(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel needs a GPU; a stand-in with its signature shows that the arguments mean what they should."""
    real = attention.load_varlen()
    if real is None:
        pytest.skip("needs a torch with torch.nn.attention.varlen")

    def stand_in(*args: Any, **kwargs: Any) -> Tensor:
        given = inspect.signature(real).bind(*args, **kwargs).arguments
        lengths = tuple(given["cu_seq_q"].diff().tolist())
        assert given["cu_seq_k"] is given["cu_seq_q"]
        assert given["max_q"] == given["max_k"] == max(lengths)
        qkv = torch.stack([given["query"], given["key"], given["value"]], 1)
        return masked_softmax_attention(qkv, lengths, causal={(-1, -1): False, (-1, 0): True}[given["window_size"]])

    monkeypatch.setattr(attention, "load_varlen", lambda: stand_in)
    qkv, layout = random_qkv(torch.float64), PackedLayout.from_lengths(LENGTHS)
    torch.testing.assert_close(varlen_attention(qkv, layout, causal), run_attention(qkv, layout, causal))


def test_varlen_is_not_taken_on_a_cpu() -> None:
    assert not varlen_fits(random_qkv(torch.bfloat16), 0.0)


def test_long_bf16_sequences_do_not_build_their_scores() -> None:
    lengths = (attention.MATMUL_MAX_LENGTH + 1,)
    qkv = random_qkv(torch.bfloat16, lengths[0])
    assert not attention.matmul_fits(qkv, PackedLayout.from_lengths(lengths))
    assert attention.matmul_fits(qkv, PackedLayout.from_lengths(LENGTHS))
    found = run_attention(qkv, PackedLayout.from_lengths(lengths), True)
    expected = masked_softmax_attention(qkv.double(), lengths, True)
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_varlen_equals_masked_softmax_on_a_gpu(causal: bool, dtype: torch.dtype) -> None:
    lengths = (70, 70, 1, 130, 33, 0)
    qkv = random_qkv(dtype, sum(lengths), head_size=64).cuda().requires_grad_()
    assert varlen_fits(qkv, 0.0)
    assert not varlen_fits(qkv, 0.1)
    assert not varlen_fits(qkv.float(), 0.0)
    found = varlen_attention(qkv, PackedLayout.from_lengths(lengths, "cuda"), causal)
    reference = qkv.detach().double().cpu().requires_grad_()
    expected = masked_softmax_attention(reference, lengths, causal)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected.backward(weight)
    found.backward(weight.to("cuda", dtype))
    assert qkv.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(found.double().cpu(), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(qkv.grad.double().cpu(), reference.grad, atol=4e-2, rtol=4e-2)
