"""Packed attention of every backend against float64: values, gradients, masks, sizes, dropout, determinism."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from kernels import attention
from kernels.attention import packed_attention
from kernels.build import SOURCES
from kernels.philox import keep_mask, keep_scale, seed_tensor, threshold_of
from kernels.reference import attention as reference
from tests.kernels.backends import CUDA, assert_near, check_promises, device_of

HALVES = ["emulator", CUDA]  # tensor cores take 16-bit numbers
BACKENDS = ["reference", "cpu", *HALVES]
MIXED = (37, 0, 1, 128, 64, 9, 65, 0)  # several tiles, whole ones, parts, and none
LONG = (300, 1, 17)  # beyond what a GPU's block has as a whole
FILLER = 11
MASKS = ["full", "causal", "prefix"]


@dataclass
class Case:
    """Inputs of a call, and the gradient of its result."""

    qkv: Tensor
    lengths: tuple[int, ...]
    num_heads: int
    mask: str
    bias: Tensor | None
    dout: Tensor
    max_length: int
    given_prefix: tuple[int, ...] | None = None

    @property
    def boundaries(self) -> Tensor:
        ends = torch.tensor([0, *itertools.accumulate(self.lengths)], dtype=torch.int32)
        return ends.to(self.qkv.device)

    @property
    def prefix(self) -> Tensor | None:
        """What was given, or a third of each sequence."""
        if self.mask != "prefix":
            return None
        lengths = self.given_prefix or tuple(length // 3 for length in self.lengths)
        return torch.tensor(lengths, dtype=torch.int32, device=self.qkv.device)


def case(
    lengths: tuple[int, ...] = MIXED, backend: str = "cpu", dtype: torch.dtype | None = None, heads: int = 2,
    groups: int = 2, size: int = 32, mask: str = "full", biased: bool = False, filler: int = FILLER,
    scale: float = 1.0, slack: int = 0,
) -> Case:  # fmt: skip
    random = torch.Generator().manual_seed(sum(lengths) + size + heads)
    dtype = dtype or (torch.bfloat16 if backend in ("emulator", "cuda") else torch.float32)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    total, longest = sum(lengths) + filler, max([1, *lengths]) + slack
    qkv, dout = draw(total, heads + 2 * groups, size) * scale, draw(total, heads, size)
    bias = draw(heads, 2 * longest - 1) if biased else None
    device = device_of(backend)
    bias = None if bias is None else bias.to(device)
    return Case(qkv.to(device, dtype), lengths, heads, mask, bias, dout.to(device, dtype), longest)


def seed(number: int, backend: str) -> Tensor:
    return seed_tensor(number, device_of(backend))


def run(made: Case, **options) -> dict[str, Tensor]:
    """The result and the gradients."""
    qkv = made.qkv.detach().requires_grad_()
    bias = None if made.bias is None else made.bias.detach().requires_grad_()
    out = packed_attention(
        qkv, made.boundaries, made.num_heads, made.max_length, mask=made.mask, prefix_lengths=made.prefix, bias=bias,
        **options,
    )  # fmt: skip
    out.backward(made.dout)
    found = {"out": out.detach(), "qkv": qkv.grad}
    return found if bias is None else {**found, "bias": bias.grad}


def places(made: Case) -> tuple[Tensor, Tensor]:
    """Sequence and place in it of each token, filler left out."""
    lengths = torch.tensor(made.lengths, dtype=torch.int64)
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)
    return owner, torch.cat([torch.arange(length) for length in made.lengths] + [torch.arange(0)])


def exact(made: Case, dropout=0.0, seed=None, site=0, scale=None) -> dict[str, Tensor]:
    """The same in float64 by autograd: one softmax over the whole batch, with everything else masked."""
    real, heads = sum(made.lengths), made.num_heads
    qkv = made.qkv.detach().cpu().double().requires_grad_()
    bias = None if made.bias is None else made.bias.detach().cpu().double().requires_grad_()
    groups = (qkv.shape[1] - heads) // 2
    query, key, value = qkv[:real].transpose(0, 1).split([heads, groups, groups])  # [heads, R, K]
    key, value = (each.repeat_interleave(heads // groups, 0) for each in (key, value))
    owner, place = places(made)
    allowed = owner[:, None] == owner[None, :]
    if made.mask != "full":
        limit = torch.zeros_like(place) if made.prefix is None else made.prefix.cpu().long()[owner]
        allowed &= (place[None, :] <= place[:, None]) | (place[None, :] < limit[:, None])
    scores = query @ key.transpose(1, 2) * (qkv.shape[2] ** -0.5 if scale is None else scale)
    if bias is not None:
        far = (place[None, :] - place[:, None] + made.max_length - 1).clamp(0, bias.shape[1] - 1)
        scores = scores + bias[:, far]
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    if threshold := threshold_of(dropout):
        width = max([1, *made.lengths])
        kept = keep_mask(seed.cpu(), site, len(made.qkv) * heads, width, threshold).view(-1, heads, width)[:real]
        weights = weights * kept[:, :, place].transpose(0, 1) * keep_scale(threshold)
    out = torch.zeros(made.dout.shape, dtype=torch.float64)
    out[:real] = (weights @ value).transpose(0, 1)
    out.backward(made.dout.cpu().double())
    found = {"out": out.detach(), "qkv": qkv.grad}
    return found if bias is None else {**found, "bias": bias.grad}


def tolerance(made: Case) -> float:
    return {torch.float32: 5e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}[made.qkv.dtype]


def check(made: Case, **options) -> None:
    assert_near(run(made, **options), exact(made, **options), tolerance(made))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("lengths", [MIXED, LONG], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_masks(backend, mask, lengths, dropout, use, ran):
    use(backend)
    check(case(lengths, backend, mask=mask), dropout=dropout, seed=seed(77, backend), site=4)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [32, 64, 96, 128])
@pytest.mark.parametrize("lengths", [(70, 3), (257, 40)], ids=str)
def test_head_sizes(backend, size, lengths, use, ran):
    use(backend)
    check(case(lengths, backend, size=size, mask="causal"), dropout=0.1, seed=seed(5, backend))
    assert set(ran) == {backend}


TYPES = [
    *itertools.product(["reference", "cpu"], [torch.float32, torch.bfloat16, torch.float16]),
    *itertools.product(["emulator"], [torch.bfloat16, torch.float16]),
]


@pytest.mark.parametrize(("backend", "dtype"), TYPES, ids=str)
def test_types(backend, dtype, use, ran):
    use(backend)
    made = case(backend=backend, dtype=dtype, size=64)
    found = run(made)
    assert found["out"].dtype == found["qkv"].dtype == dtype
    assert_near(found, exact(made), tolerance(made))
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", [CUDA])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_types_on_a_gpu(backend, dtype, use):
    use(backend)
    check(case(backend=backend, dtype=dtype, size=64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("heads", "groups"), [(4, 1), (4, 2), (3, 3), (1, 1)])
@pytest.mark.parametrize("lengths", [MIXED, LONG], ids=str)
def test_grouped_heads(backend, heads, groups, lengths, use, ran):
    use(backend)
    check(case(lengths, backend, heads=heads, groups=groups), dropout=0.1, seed=seed(8, backend))
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("lengths", [MIXED, LONG], ids=str)
def test_relative_bias_and_its_gradient(backend, mask, lengths, use, ran):
    use(backend)
    check(case(lengths, backend, mask=mask, biased=True, slack=3), dropout=0.1, seed=seed(9, backend), scale=0.3)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_that_is_not_trained(backend, use, ran):
    use(backend)
    made = case(backend=backend, biased=True)
    qkv = made.qkv.detach().requires_grad_()
    packed_attention(qkv, made.boundaries, made.num_heads, made.max_length, bias=made.bias).backward(made.dout)
    assert torch.equal(qkv.grad, run(made)["qkv"])
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0), (1,), (1,) * 9, (2, 0, 1)], ids=str)
@pytest.mark.parametrize("filler", [0, 5])
def test_few_tokens(backend, lengths, filler, use, ran):
    use(backend)
    check(case(lengths, backend, filler=filler))
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
def test_filler_is_zero_and_has_no_gradient(backend, use, ran):
    use(backend)
    made = case(MIXED, backend, filler=100, biased=True)
    made.qkv[sum(MIXED) :] = torch.nan
    made.dout[sum(MIXED) :] = torch.nan
    found = run(made)
    assert not found["out"][sum(MIXED) :].any() and not found["qkv"][sum(MIXED) :].any()
    assert found["out"].isfinite().all() and found["qkv"].isfinite().all() and found["bias"].isfinite().all()
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [MIXED, LONG], ids=str)
@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_scales_that_turn_the_order_round(backend, lengths, scale, use, ran):
    use(backend)
    check(case(lengths, backend, mask="causal"), scale=scale, dropout=0.1, seed=seed(2, backend))
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [(70, 9, 33), (300, 1, 17)], ids=str)
def test_prefixes_beyond_the_sequence_and_none(backend, lengths, use, ran):
    use(backend)
    made = replace(case(lengths, backend, mask="prefix"), given_prefix=(1 << 30, 0, -5))
    check(made)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_scores(backend, use):
    use(backend)
    made = case(backend=backend, scale=6.0)  # scores of hundreds: exponentials overflow without the maximum
    assert_near(run(made), exact(made), max(tolerance(made), 1e-4))


@pytest.mark.parametrize("backend", ["cpu", *HALVES])
@pytest.mark.parametrize("mask", MASKS)
def test_lengths_to_2048(backend, mask, use, ran):
    use(backend)
    check(
        case((2048, 1, 700, 31, 256, 1025), backend, heads=1, groups=1, mask=mask), dropout=0.1, seed=seed(1, backend)
    )
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [(70, 9), (300, 20)], ids=str)
def test_masks_of_dropout_are_the_reference_s_to_the_bit(backend, lengths, use):
    """With equal scores a weight is the same or 0, and a value that is 1 in one column says which."""
    use(backend)
    made = case(lengths, backend, heads=2, groups=2, size=32, filler=0)
    made.qkv[:, :4] = 0.0
    number, site = 1 << 40, 9
    kept = keep_mask(seed_tensor(number), site, len(made.qkv) * 2, max(lengths), threshold_of(0.3)).view(
        -1, 2, max(lengths)
    )
    owner, place = places(made)
    for first in range(0, max(lengths), 32):  # a column of the value for each of 32 keys
        values = place[:, None] - first == torch.arange(32)
        made.qkv[:, 4:] = values.to(made.qkv)[:, None, :]
        out = packed_attention(
            made.qkv, made.boundaries, 2, made.max_length, dropout=0.3, seed=seed(number, backend), site=site
        )
        there = torch.tensor(lengths)[owner][:, None] > torch.arange(first, first + 32)
        width = min(32, max(lengths) - first)
        expected = kept[:, :, first : first + width] & there[:, None, :width]
        assert torch.equal(out.cpu()[:, :, :width] != 0, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [MIXED, LONG], ids=str)
def test_every_run_gives_the_same_bits(backend, lengths, use):
    use(backend)
    made, options = case(lengths, backend, heads=4, biased=True), {"dropout": 0.1, "seed": seed(5, backend)}
    first = run(made, **options)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = run(made, **options)
            assert all(torch.equal(first[name], again[name]) for name in first)
    finally:
        torch.set_num_threads(threads)


def test_schedules_of_the_emulator_give_equal_bits(use, monkeypatch):
    use("emulator")
    results = []
    for schedule in ("0", "1", "7", "12345"):
        monkeypatch.setenv("KERNELS_SCHEDULE", schedule)
        cases = (case((70, 3, 64), "emulator", biased=True), case((260,), "emulator", heads=1, groups=1))
        results.append([run(made, dropout=0.1, seed=seed_tensor(5)) for made in cases])
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert all(torch.equal(one[name], same[name]) for name in one)


@pytest.mark.parametrize("backend", ["cpu", *HALVES])
def test_a_head_size_that_no_kernel_takes(backend, use, ran, caplog):
    use(backend, runs=("reference",))
    check(case((9, 4), backend, size=192))
    assert set(ran) == {"reference"}
    assert caplog.text.count("head size 192 is none of 32, 64, 96, 128; the reference runs") == 1


@pytest.mark.parametrize("backend", HALVES)
def test_tensor_cores_do_not_take_fp32(backend, use, ran, caplog):
    use(backend, runs=("reference",))
    check(case((9, 4), backend, dtype=torch.float32))
    assert set(ran) == {"reference"} and "torch.float32 is no 16-bit type; the reference runs" in caplog.text


@pytest.mark.parametrize("backend", HALVES)
@pytest.mark.parametrize("longest", [64, 256, 300])
def test_a_sequence_beyond_the_bound_is_nan_on_a_gpu(backend, longest, use):
    use(backend)
    made = replace(case((40, 0, 350, 30), backend, filler=3), max_length=longest)
    arguments = (made.boundaries, None, None, 2, longest, "full", 0.2, 0, None, 0)
    out, lse = torch.ops.kernels.attention(made.qkv, *arguments)
    assert out[40:390].isnan().all() and not out[:40].isnan().any() and not out[390:].isnan().any()
    gradients = (made.dout, made.qkv, out, lse, made.boundaries, None, None, longest, "full", 0.2, 0, None, 0, False)
    dqkv, _ = torch.ops.kernels.attention_gradients(*gradients)
    assert dqkv[40:390].isnan().all() and not dqkv[:40].isnan().any() and not dqkv[390:].isnan().any()


def test_gradients_of_the_reference_in_float64():
    random = torch.Generator().manual_seed(1)
    qkv = torch.randn(8, 4, 3, dtype=torch.float64, generator=random).requires_grad_()
    bias = torch.randn(2, 9, dtype=torch.float64, generator=random).requires_grad_()
    boundaries, prefix = torch.tensor([0, 5, 5, 7], dtype=torch.int32), torch.tensor([2, 0, 1], dtype=torch.int32)

    def call(qkv, bias):
        return packed_attention(
            qkv, boundaries, 2, 5, mask="prefix", prefix_lengths=prefix, bias=bias, dropout=0.2, seed=seed_tensor(1)
        )

    assert torch.autograd.gradcheck(call, (qkv, bias))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_and_checkpointed(backend, use, ran):
    use(backend)
    made, options = case((6, 11), backend, biased=True), {"dropout": 0.1, "seed": seed(3, backend)}
    expected = run(made, **options)
    calls = [
        torch.compile(packed_attention, fullgraph=True),
        lambda *args, **kwargs: torch.utils.checkpoint.checkpoint(
            packed_attention, *args, use_reentrant=False, **kwargs
        ),
    ]
    for call in calls:
        qkv, bias = made.qkv.detach().requires_grad_(), made.bias.detach().requires_grad_()
        call(qkv, made.boundaries, 2, made.max_length, bias=bias, **options).backward(made.dout)
        assert torch.equal(qkv.grad, expected["qkv"]) and torch.equal(bias.grad, expected["bias"])
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wants_bias", [True, False])
def test_results_are_as_a_compiler_was_told(backend, wants_bias, use, ran):
    use(backend)
    made = case((6, 11), backend, biased=True)
    key = (6554, seed(3, backend), 1)
    shape = (made.boundaries, None, made.bias)
    check_promises(torch.ops.kernels.attention, (made.qkv, *shape, 2, 11, "causal", 0.2, *key))
    out, lse = torch.ops.kernels.attention(made.qkv, *shape, 2, 11, "causal", 0.2, *key)
    arguments = (made.dout, made.qkv, out, lse, *shape, 11, "causal", 0.2, *key, wants_bias)
    check_promises(torch.ops.kernels.attention_gradients, arguments)
    assert set(ran) == {backend}


def test_operators_keep_torch_s_rules(use):
    use("cpu")
    made = case((6, 11), biased=True)
    shape = (made.boundaries, None, made.bias)
    arguments = (made.qkv.requires_grad_(), *shape, 2, 11, "causal", 0.2, 6554, seed_tensor(3), 1)
    torch.library.opcheck(torch.ops.kernels.attention, arguments)


@pytest.mark.parametrize("backend", ["cpu", *HALVES])
def test_views_that_are_not_packed(backend, use, ran):
    use(backend)
    made = case((7, 20), backend)
    expected = run(made)
    odd = {
        name: torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)
        for name, value in (("qkv", made.qkv), ("dout", made.dout))
    }
    assert all(value.data_ptr() % 16 for value in odd.values())
    strided = {name: getattr(made, name).transpose(0, 1).contiguous().transpose(0, 1) for name in odd}
    for same in (odd, strided):
        found = run(replace(made, **same))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert set(ran) == {backend}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("longest", [128, 300])
def test_a_captured_graph_takes_other_boundaries_and_masks_and_waits_for_nothing(longest, use):
    use("cuda")
    made = replace(case((100, 28, 60), "cuda", size=64, filler=12), max_length=longest)
    other = replace(made, lengths=(7, 128, 50))
    qkv, boundaries, key = made.qkv.detach().requires_grad_(), made.boundaries, seed(3, "cuda")

    def call() -> Tensor:
        out = packed_attention(qkv, boundaries, 2, longest, dropout=0.1, seed=key)
        (gradient,) = torch.autograd.grad(out, qkv, made.dout)
        return torch.stack([out.detach().float().sum(), gradient.float().abs().sum()])

    torch.cuda.set_sync_debug_mode("error")
    try:
        call()  # compiles, and must not wait
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        found = call()
    for lengths, number in ((made, 3), (other, 4)):
        boundaries.copy_(lengths.boundaries)
        key.fill_(number)
        graph.replay()
        expected = call()
        assert torch.equal(found, expected)


def test_lse_is_the_logarithm_of_the_sum(use):
    use("cpu")
    made = case((5, 70), filler=2)
    arguments = (made.boundaries, None, None, 2, 70, "full", 0.2, 0, None, 0)
    out, lse = torch.ops.kernels.attention(made.qkv, *arguments)
    _, expected = reference.forward(made.qkv.double(), reference.Arguments(*arguments))
    torch.testing.assert_close(lse.double(), expected, atol=1e-5, rtol=0)
    assert out.isfinite().all()


BAD = [
    ({"qkv": torch.zeros(4, 6)}, r"qkv is torch.float32 \[4, 6\]; it must be \[N, H \+ 2 G, K\]"),
    ({"num_heads": 3}, "qkv has 6 heads, 3 of them of queries"),
    ({"num_heads": 5}, "qkv has 6 heads, 5 of them"),
    ({"boundaries": torch.tensor([0, 4])}, r"boundaries are torch.int64 \[2\] on cpu; they must be \[S \+ 1\] int32"),
    ({"boundaries": torch.tensor([1, 4], dtype=torch.int32)}, r"boundaries are \[1, 4\]; they must rise from 0 to 4"),
    ({"boundaries": torch.tensor([0, 3, 2], dtype=torch.int32)}, "must rise from 0 to 4"),
    ({"boundaries": torch.tensor([0, 5], dtype=torch.int32)}, "must rise from 0 to 4"),
    ({"max_length": 3}, "a sequence has 4 tokens, and max_length is 3"),
    ({"max_length": 0}, "max_length is 0; it must be 1 at least"),
    ({"mask": "banded"}, "mask is 'banded'; it must be one of full, causal, prefix"),
    ({"mask": "prefix"}, "mask is prefix without prefix_lengths"),
    ({"prefix_lengths": torch.tensor([1], dtype=torch.int32)}, "mask is full with prefix_lengths"),
    (
        {"mask": "prefix", "prefix_lengths": torch.tensor([1, 2], dtype=torch.int32)},
        "prefix_lengths are .* one of each",
    ),
    ({"bias": torch.zeros(2, 8)}, r"bias is torch.float32 \[2, 8\] on cpu; it must be \[2, 7\]"),
    ({"bias": torch.zeros(2, 7, device="meta")}, r"bias is torch.float32 \[2, 7\] on meta; it must be .* on cpu"),
    ({"dropout": 1.0}, r"the dropout probability is 1.0; it must be in \[0, 1\)"),
    ({"dropout": 0.1}, "the dropout seed is None"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[message for _, message in BAD])
def test_what_does_not_fit_is_refused(changed, message):
    given = {"qkv": torch.zeros(4, 6, 32), "boundaries": torch.tensor([0, 4], dtype=torch.int32), "num_heads": 2}
    with pytest.raises(ValueError, match=message):
        packed_attention(**{**given, "max_length": 4, **changed})


def test_compiled_code_refuses_boundaries_too(use):
    use("cpu")
    call = torch.compile(lambda qkv, boundaries: packed_attention(qkv, boundaries, 2, 16), backend="eager")
    with pytest.raises(ValueError, match=r"boundaries are \[0, 4000000\]; they must rise from 0 to 16"):
        call(torch.zeros(16, 6, 32), torch.tensor([0, 4_000_000], dtype=torch.int32))


def test_second_derivatives_are_refused(use):
    use("cpu")
    made = case((5, 3))
    qkv = made.qkv.requires_grad_()
    out = packed_attention(qkv, made.boundaries, 2, made.max_length)
    (gradient,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match=r"attention_gradients\.default but no autograd formula was registered"):
        gradient.sum().backward()


@pytest.mark.parametrize("longest", range(1, 300, 7))
@pytest.mark.parametrize("biased", [False, True])
def test_workspaces_are_what_the_kernels_ask_for(longest, biased):
    """wants_dq of csrc/common/attention.h, with its numbers."""
    text = (SOURCES / "common" / "attention.h").read_text()
    tile, whole = (int(re.search(rf"{name} = (\d+);", text).group(1)) for name in ("kKeyTile", "kWholeLongest"))
    assert (tile, whole) == (attention.KEY_TILE, attention.SHORT)
    bias = torch.zeros(2, 2 * longest - 1) if biased else None
    qkv, lse = torch.zeros(4, 6, 32), torch.zeros(2, 4)
    delta, dq, partial = attention._workspaces("emulator", qkv, lse, torch.zeros(0), bias, longest)
    assert delta.shape == (2, 4) and partial.numel() == 0
    assert dq.shape == ((2, 4, 32) if tile < longest <= whole and not biased else (0,))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_bias_that_hides_every_key_of_a_query(backend, use, ran):
    """-1e30 for all keys of the first query, and of one head: weights that are equal, not 1 or 0 by rounding."""
    use(backend)
    made = case((70, 5), backend, biased=True)
    made.bias[:, made.max_length - 1 :] = -1e30
    made.bias[0] = -1e30
    out = packed_attention(made.qkv, made.boundaries, made.num_heads, made.max_length, bias=made.bias)
    assert_near({"out": out}, {"out": exact(made)["out"]}, tolerance(made))
    if backend == "reference":
        check(made)
    assert set(ran) == {backend}
