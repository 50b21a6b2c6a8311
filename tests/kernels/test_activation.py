"""Activations of every backend against float64: values, gradients, types, sizes, tails, determinism."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from kernels import build
from kernels.activation import GatedLinear, LinearGelu, bias_gelu, gated
from tests.kernels.backends import BACKENDS, CUDA, PACKED, TOLERANCE, TYPES, assert_near, device_of

SIZES = [(1, 8), (5, 64), (37, 768), (301, 264), (6, 3072), (0, 64)]
ODD_SIZES = [(3, 7), (11, 101), (2, 1)]  # not for CUDA: a thread loads eight elements
COMPILED = ["cpu", "emulator", CUDA]
PLAIN = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def halves(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The gated form: the first half is the gate."""
    return lambda x: act(x[..., : x.shape[-1] // 2]) * x[..., x.shape[-1] // 2 :]


CALLS = {
    "gelu": (bias_gelu, {}, PLAIN["gelu"], 1),
    "gelu_tanh": (bias_gelu, {"approximate": "tanh"}, PLAIN["gelu_tanh"], 1),
    **{f"gated_{kind}": (gated, {"kind": kind}, halves(act), 2) for kind, act in PLAIN.items()},
}


def inputs(
    call: str, size: tuple[int, int], backend: str = "cpu", dtype: torch.dtype = torch.float32,
    parameters: torch.dtype | None = None, scale: float = 2.0, bias: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """x, bias and dy; the size is that of the result."""
    random = torch.Generator().manual_seed(sum(size))
    (rows, width), parts = size, CALLS[call][3]

    def draw(*shape: int, of: torch.dtype) -> Tensor:
        return (scale * torch.randn(*shape, generator=random)).to(device_of(backend), of)

    made = {"x": draw(rows, parts * width, of=dtype), "dy": draw(rows, width, of=dtype)}
    return {**made, "bias": draw(parts * width, of=parameters or torch.float32)} if bias else made


def run(call: str, made: dict[str, Tensor], compiled: bool = False) -> dict[str, Tensor]:
    """y and the gradients of x and bias."""
    function, options, _, _ = CALLS[call]
    leaves = {name: value.detach().requires_grad_() for name, value in made.items() if name != "dy"}
    y = (torch.compile(function, fullgraph=True) if compiled else function)(**leaves, **options)
    y.backward(made["dy"])
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def exact(call: str, made: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in float64 by autograd, from torch's own functions."""
    leaves = {name: value.detach().cpu().double().requires_grad_() for name, value in made.items() if name != "dy"}
    y = CALLS[call][2](leaves["x"] + leaves["bias"] if "bias" in leaves else leaves["x"])
    y.backward(made["dy"].cpu().double())
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("backend", "size"),
    [*itertools.product(["reference", "cpu"], SIZES + ODD_SIZES), *itertools.product(["emulator"], SIZES)],
    ids=str,
)
def test_sizes(backend, size, call, use, ran):
    check_size(backend, size, call, use, ran)


@pytest.mark.parametrize("backend", [CUDA])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_on_a_gpu(backend, size, call, use, ran):
    check_size(backend, size, call, use, ran)


def check_size(backend, size, call, use, ran):
    use(backend)
    for bias in (True, False):
        made = inputs(call, size, backend, bias=bias)
        assert_near(run(call, made), exact(call, made), 2e-6)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("dtype", "parameters"), list(itertools.product(TYPES, TYPES)), ids=str)
def test_types(backend, dtype, parameters, call, use, ran):
    use(backend)
    made = inputs(call, (24, 264), backend, dtype, parameters)
    found = run(call, made)
    assert found["y"].dtype == found["x"].dtype == dtype and found["bias"].dtype == parameters
    assert_near(found, exact(call, made), max(TOLERANCE[dtype], TOLERANCE[parameters]))
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_of_16_bit_inputs_are_fp32(backend, use):
    use(backend)
    for call in CALLS:
        made = inputs(call, (301, 64), backend, torch.bfloat16)
        assert_near({"bias": run(call, made)["bias"]}, {"bias": exact(call, made)["bias"]}, 2e-6)


def along(points: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The points as fp32 rows of eight, and a gradient of ones."""
    x = points.float().reshape(-1, 8).to(device_of(backend))
    return x, torch.ones_like(x)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("call", ["gelu", "gelu_tanh"])
def test_each_point_of_the_curve(backend, call, use):
    use(backend)
    x, dy = along(torch.linspace(-16, 16, 80_000), backend)
    made = {"x": x, "dy": dy}
    found, expected = run(call, made), exact(call, made)
    for name in ("y", "x"):
        error = (found[name].cpu().double() - expected[name]).abs()
        assert (error / expected[name].abs().clamp(min=1.0)).max() <= 4e-7


@pytest.mark.parametrize("backend", COMPILED)
def test_negative_tails_keep_their_digits(backend, use):
    use(backend)
    x, dy = along(torch.linspace(-12.5, -0.1, 8_000), backend)
    found = run("gelu", {"x": x, "dy": dy})["y"].cpu().double()
    points = x.cpu().double()
    expected = points * torch.erfc(-points / 2**0.5) / 2  # F.gelu ends in 0 below -8.3 in float64
    assert ((found - expected) / expected).abs().max() <= 2e-5  # exp(-x^2 / 2) has that much from the rounding of x^2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("call", CALLS)
def test_large_values_and_infinities(backend, call, use):
    use(backend)
    width, parts = 8, CALLS[call][3]
    values = torch.tensor([1e4, -1e4, 3e38, -3e38, torch.inf, -torch.inf, 100.0, -100.0])
    x = torch.ones(1, parts * width)
    x[0, :width] = values
    made = {"x": x.to(device_of(backend)), "dy": torch.ones(1, width).to(device_of(backend))}
    found = {name: value.cpu()[0, :width] for name, value in run(call, made).items()}
    assert torch.equal(found["y"], values.clamp(min=0))
    assert torch.equal(found["x"], (values > 0).float())
    made["x"][0, 3] = torch.nan
    assert all(value.cpu()[0, 3].isnan() for value in run(call, made).values())


LEVELS = """
import torch, torch.nn.functional as F
from kernels.activation import gated
x, dy = torch.randn(301, 2 * 67), torch.randn(301, 67)
x[0], dy[0] = 1.0, 1.0
x[0, :6] = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 100.0])
for kind, act in (("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")), ("silu", F.silu)):
    ours, plain = x.clone().requires_grad_(), x.double().clamp(-1e9, 1e9).requires_grad_()
    y, expected = gated(ours, None, kind), act(plain[:, :67]) * plain[:, 67:]
    y.backward(dy), expected.backward(dy.double())
    assert (y[1:] - expected[1:]).abs().max() < 2e-6 * expected[1:].abs().max()
    assert (ours.grad[1:] - plain.grad[1:]).abs().max() < 2e-6 * plain.grad[1:].abs().max()
    values = torch.tensor([torch.inf, 0.0, torch.nan, 3e38, 0.0, 100.0])
    assert torch.allclose(y[0, :6], values, rtol=0.0, atol=0.0, equal_nan=True)
    slopes = torch.tensor([1.0, 0.0, torch.nan, 1.0, 0.0, 1.0])
    assert torch.allclose(ours.grad[0, :6], slopes, rtol=0.0, atol=0.0, equal_nan=True)
"""


@pytest.mark.parametrize("level", build.CPU_LEVELS)
def test_each_level_of_instructions(level, use):
    use("cpu", runs=())  # but in a process of its own
    env = {**os.environ, "PYTHONPATH": str(build.SOURCES.parents[1]), "KERNELS_CPU_LEVEL": level}
    done = subprocess.run([sys.executable, "-c", LEVELS], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("call", CALLS)
def test_every_run_gives_the_same_bits(backend, call, use):
    use(backend)
    made = inputs(call, (301, 768), backend, torch.bfloat16)
    first = run(call, made)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = run(call, made)
            assert all(torch.equal(first[name], again[name]) for name in first)
    finally:
        torch.set_num_threads(threads)


def test_schedules_of_the_emulator_give_equal_bits(use, monkeypatch):
    use("emulator")
    results = []
    for schedule in ("0", "1", "7", "12345"):
        monkeypatch.setenv("KERNELS_SCHEDULE", schedule)
        results.append([run(call, inputs(call, size)) for call in CALLS for size in ((37, 768), (9, 264))])
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert all(torch.equal(one[name], same[name]) for name in one)


@pytest.mark.parametrize("backend", PACKED)
def test_sizes_that_a_backend_does_not_take(backend, use, ran, caplog):
    use(backend, runs=("reference",))
    made = inputs("gated_silu", (4, 100), backend)
    for _ in range(2):
        assert_near(run("gated_silu", made), exact("gated_silu", made), 2e-6)
    assert set(ran) == {"reference"}
    assert caplog.text.count("width 100 is no multiple of 8; the reference runs") == 1


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("call", ["gelu", "gated_silu"])
def test_views_that_are_not_packed(backend, call, use, ran):
    use(backend)
    made = inputs(call, (7, 64), backend)
    expected = run(call, made)
    odd = {name: torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape) for name, value in made.items()}
    assert all(value.data_ptr() % 16 for value in odd.values())
    strided = {name: value.T.contiguous().T for name, value in made.items() if value.dim() == 2}
    for same in (odd, {**made, **strided}):
        found = run(call, same)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert set(ran) == {backend}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_tensors_of_a_device_that_is_not_the_current_one(use, ran):
    use("cuda")
    made = {name: value.to("cuda:1") for name, value in inputs("gelu", (7, 64)).items()}
    with torch.cuda.device(0):
        assert_near(run("gelu", made), exact("gelu", made), 2e-6)
    assert set(ran) == {"cuda"}


@pytest.mark.parametrize("call", CALLS)
def test_gradients_of_the_reference_in_float64(call, ran):
    function, options, _, parts = CALLS[call]
    x, bias = torch.randn(5, 6 * parts, dtype=torch.float64), torch.randn(6 * parts, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, bias: function(x, bias, **options), (x.requires_grad_(), bias.requires_grad_())
    )
    assert set(ran) == {"reference"}


@pytest.mark.parametrize("backend", ["reference", "cpu", "emulator"])
@pytest.mark.parametrize("call", ["gelu_tanh", "gated_silu"])
def test_compiled_and_checkpointed(backend, call, use, ran):
    use(backend)
    made = inputs(call, (6, 64))
    expected = run(call, made)
    for x in (made["x"], made["x"].t().contiguous().t()):  # any strides
        compiled, eager = (run(call, {**made, "x": x}, compiled=each) for each in (True, False))
        assert all(torch.equal(compiled[name], eager[name]) for name in expected)
    function, options, _, _ = CALLS[call]
    again = {name: value.detach().requires_grad_() for name, value in made.items() if name != "dy"}
    torch.utils.checkpoint.checkpoint(function, use_reentrant=False, **again, **options).backward(made["dy"])
    assert all(torch.equal(leaf.grad, expected[name]) for name, leaf in again.items())
    assert set(ran) == {backend}


@pytest.mark.parametrize(("kind", "halved"), [("gelu", False), ("silu", True)])
def test_operators_keep_torch_s_rules(kind, halved, use):
    use("cpu")
    x, bias = torch.randn(6, 64, requires_grad=True), torch.randn(64, requires_grad=True)
    torch.library.opcheck(torch.ops.kernels.activation, (x, bias, kind, halved))
    torch.library.opcheck(torch.ops.kernels.activation, (x, None, kind, halved))
    dy = torch.randn(6, 64 // (1 + halved))
    torch.library.opcheck(torch.ops.kernels.activation_gradients, (dy, x.detach(), bias.detach(), kind, halved))


def test_input_and_bias_alone_are_kept_for_the_backward_pass(use):
    use("cpu")
    made = inputs("gated_gelu", (64, 256))
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x, bias = made["x"].requires_grad_(), made["bias"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gated(x, bias)
    assert {tensor.data_ptr() for tensor in saved} == {x.data_ptr(), bias.data_ptr()}


def test_modules_have_the_names_of_linear(use):
    use("cpu")
    x, plain, wide = torch.randn(3, 4, 24), torch.nn.Linear(24, 32), torch.nn.Linear(24, 64)
    for approximate in ("none", "tanh"):
        ours = LinearGelu(24, 32, approximate=approximate)
        ours.load_state_dict(plain.state_dict())
        assert torch.allclose(ours(x), F.gelu(plain(x), approximate=approximate), atol=1e-6)
    for kind, act in PLAIN.items():
        module = GatedLinear(24, 32, kind=kind)
        module.load_state_dict(wide.state_dict())
        assert torch.allclose(module(x), halves(act)(wide(x)), atol=1e-6)
    assert GatedLinear(24, 32, bias=False)(x).shape == (3, 4, 32)


def test_mistakes():
    x = torch.randn(3, 8)
    with pytest.raises(ValueError, match="approximate is 'erf'; it must be none or tanh"):
        bias_gelu(x, approximate="erf")
    with pytest.raises(ValueError, match=r"bias is \[7\]; it must be \[8\], the last dimension of x"):
        bias_gelu(x, torch.ones(7))
    with pytest.raises(ValueError, match=r"bias is \[4\]; it must be \[8\]"):
        gated(x, torch.ones(4))
    with pytest.raises(ValueError, match="kind is 'relu'; it must be one of gelu, gelu_tanh, silu"):
        gated(x, kind="relu")
    for call in (bias_gelu, gated):
        with pytest.raises(ValueError, match=r"x is torch.int64 \[3\]; it must be \[\.\.\., W\] of a floating type"):
            call(torch.arange(3))
    with pytest.raises(ValueError, match="the last dimension of x is 7; it must be even"):
        gated(x[:, :7])
