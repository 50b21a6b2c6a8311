"""Attention by other libraries against a masked softmax over the whole batch, in float64."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.models import attention_libraries as libraries
from engine.models.attention_libraries import flash_attention, flash_fits, run_attention, varlen_attention
from engine.models.layout import PackedLayout
from kernels import dispatch

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
    real = libraries.load_varlen()
    if real is None:
        pytest.skip("needs a torch with torch.nn.attention.varlen")

    def stand_in(*args: Any, **kwargs: Any) -> Tensor:
        given = inspect.signature(real).bind(*args, **kwargs).arguments
        lengths = tuple(given["cu_seq_q"].diff().tolist())
        assert given["cu_seq_k"] is given["cu_seq_q"]
        assert given["max_q"] == given["max_k"] == max(lengths)
        qkv = torch.stack([given["query"], given["key"], given["value"]], 1)
        return masked_softmax_attention(qkv, lengths, causal={(-1, -1): False, (-1, 0): True}[given["window_size"]])

    monkeypatch.setattr(libraries, "load_varlen", lambda: stand_in)
    qkv, layout = random_qkv(torch.float64), PackedLayout.from_lengths(LENGTHS)
    torch.testing.assert_close(varlen_attention(qkv, layout, causal), run_attention(qkv, layout, causal))


def flash_stand_in(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
    deterministic: bool = False, return_attn_probs: bool = False,
) -> Tensor:  # fmt: skip
    """With the signature of flash_attn_varlen_qkvpacked_func in flash-attn 2.8."""
    lengths = tuple(cu_seqlens.diff().tolist())
    assert deterministic and max_seqlen == max(lengths)
    return masked_softmax_attention(qkv, lengths, causal)


@pytest.mark.parametrize("causal", [False, True])
def test_flash_attn_is_called_as_its_signature_asks(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "load_flash_attn", lambda: flash_stand_in)
    qkv, layout = random_qkv(torch.float64), PackedLayout.from_lengths(LENGTHS)
    torch.testing.assert_close(flash_attention(qkv, layout, causal), run_attention(qkv, layout, causal))


def test_flash_kernels_are_not_taken_on_a_cpu() -> None:
    assert not flash_fits(torch.device("cpu"), torch.bfloat16, 64)


@pytest.mark.parametrize(
    ("varlen", "flash_attn", "measured", "dropout", "chosen"),
    [
        (True, False, 0.0, 0.0, varlen_attention),
        (True, False, 0.0, 0.1, run_attention),  # torch's flash kernel has no dropout
        (True, True, 0.0, 0.0, varlen_attention),
        (True, True, 0.9, 0.0, varlen_attention),
        (True, True, 1.1, 0.0, flash_attention),
        (True, True, 0.0, 0.1, flash_attention),
        (False, True, 0.0, 0.0, flash_attention),
        (False, False, 0.0, 0.0, run_attention),
    ],
)
def test_the_library_is_chosen_by_what_it_has_and_by_measurement(
    varlen: bool, flash_attn: bool, measured: float, dropout: float, chosen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "flash_fits", lambda *_: True)
    monkeypatch.setattr(libraries, "load_varlen", lambda: object() if varlen else None)
    monkeypatch.setattr(libraries, "load_flash_attn", lambda: object() if flash_attn else None)
    name = "attention_dropout" if dropout else "attention_short"
    monkeypatch.setattr(dispatch, "measured", lambda: {"cpu": {name: {"flash_attn": measured}}})
    qkv, layout = random_qkv(torch.bfloat16), PackedLayout.from_lengths(LENGTHS)
    assert libraries._choose(qkv, layout, dropout) is chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [LENGTHS, (0,), ()], ids=str)
def test_filler_is_zero_and_has_no_gradient(dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    real = sum(lengths)
    qkv = random_qkv(dtype, real + 7).requires_grad_()
    context = libraries.attend(qkv, PackedLayout.from_lengths(lengths), False, 0.0)
    (context * context.detach().add(1.0)).sum().backward()
    assert qkv.grad is not None and context.shape == (real + 7, HEADS, HEAD_SIZE)
    assert not context[real:].any() and not qkv.grad[real:].any()
    if real:
        expected = run_attention(qkv[:real], PackedLayout.from_lengths(lengths), False)
        assert torch.equal(context[:real], expected) and qkv.grad[:real].any()


def test_long_bf16_sequences_do_not_build_their_scores() -> None:
    lengths = (libraries.MATMUL_MAX_LENGTH + 1,)
    qkv = random_qkv(torch.bfloat16, lengths[0])
    assert not libraries.matmul_fits(qkv, PackedLayout.from_lengths(lengths))
    assert libraries.matmul_fits(qkv, PackedLayout.from_lengths(LENGTHS))
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
    assert flash_fits(qkv.device, dtype, 64) and not flash_fits(qkv.device, torch.float32, 64)
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
