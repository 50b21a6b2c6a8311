"""Norms of every backend against float64: values, gradients, types, sizes, masks, determinism."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from kernels.norm import AddNorm, AddRMSNorm, DropoutAdd, dropout_add, norm
from kernels.philox import keep_mask, keep_scale, seed_tensor, threshold_of
from tests.kernels.backends import BACKENDS, CUDA, PACKED, TOLERANCE, TYPES, assert_near, check_promises, device_of

SIZES = [(1, 8), (5, 64), (37, 768), (13, 1024), (6, 1600), (3, 3000), (3, 8192), (0, 64)]
ODD_SIZES = [(3, 7), (11, 101), (2, 1)]  # not for CUDA: a thread loads eight elements


@dataclass
class Case:
    """Inputs of a call; gradients flow into y and z."""

    x: Tensor
    weight: Tensor
    shift: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    dy: Tensor
    dz: Tensor

    def leaves(self) -> dict[str, Tensor]:
        names = ("x", "weight", "shift", "bias", "residual")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def case(
    size: tuple[int, int], backend: str = "cpu", dtype: torch.dtype = torch.float32,
    parameters: torch.dtype | None = None, output: torch.dtype | None = None, scale: float = 1.0,
    without: tuple[str, ...] = (),
) -> Case:  # fmt: skip
    random = torch.Generator().manual_seed(sum(size))
    rows, width = size

    def draw(*shape: int, of: torch.dtype) -> Tensor:
        return (scale * torch.randn(*shape, generator=random)).to(device_of(backend), of)

    made = Case(
        draw(rows, width, of=dtype), *(draw(width, of=parameters or torch.float32) for _ in range(3)),
        draw(rows, width, of=dtype), draw(rows, width, of=output or dtype), draw(rows, width, of=dtype),
    )  # fmt: skip
    for name in without:
        setattr(made, name, None)
    return made


def seed(number: int, backend: str) -> Tensor:
    return seed_tensor(number, device_of(backend))


def run(made: Case, **options) -> dict[str, Tensor]:
    """y, z and the gradients of all inputs."""
    leaves = {name: value.detach().requires_grad_() for name, value in made.leaves().items()}
    y, z = norm(**leaves, **options)
    adds = z.data_ptr() != leaves["x"].data_ptr() or z.numel() == 0
    torch.autograd.backward([y, z] if adds else [y], [made.dy, made.dz] if adds else [made.dy])
    return {"y": y.detach(), "z": z.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def exact(made: Case, dropout=0.0, seed=None, site=0, eps=1e-5, centre=True, output=None) -> dict[str, Tensor]:
    """The same in float64 by autograd, from torch's own functions."""
    leaves = {name: value.detach().cpu().double().requires_grad_() for name, value in made.leaves().items()}
    x, threshold = leaves["x"], threshold_of(dropout)
    z = x + leaves["bias"] if "bias" in leaves else x
    if threshold:
        z = z * keep_mask(seed.cpu(), site, *x.shape, threshold) * keep_scale(threshold)
    z = z + leaves["residual"] if "residual" in leaves else z
    width = x.shape[-1]
    if centre:
        y = F.layer_norm(z, (width,), leaves["weight"], leaves.get("shift"), eps)
    else:
        y = F.rms_norm(z, (width,), leaves["weight"], eps)
    adds = z is not x
    torch.autograd.backward(
        [y, z] if adds else [y], [g.cpu().double() for g in ([made.dy, made.dz] if adds else [made.dy])]
    )
    return {"y": y.detach(), "z": z.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


@pytest.mark.parametrize(
    ("backend", "size"),
    [*itertools.product(["reference", "cpu"], SIZES + ODD_SIZES), *itertools.product(["emulator"], SIZES)],
    ids=str,
)
def test_sizes(backend, size, use, ran):
    check_size(backend, size, use, ran)


@pytest.mark.parametrize("backend", [CUDA])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_on_a_gpu(backend, size, use, ran):
    check_size(backend, size, use, ran)


def check_size(backend, size, use, ran):
    use(backend)
    made, options = case(size, backend), {"dropout": 0.1, "seed": seed(77, backend), "site": 4}
    assert_near(run(made, **options), exact(made, **options), 4e-6)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "output"), list(itertools.product(TYPES, TYPES)), ids=str)
def test_types(backend, dtype, output, use, ran):
    use(backend)
    made = case((24, 264), backend, dtype, parameters=dtype, output=output)
    found = run(made, output=output)
    assert found["y"].dtype == output and found["z"].dtype == found["x"].dtype == dtype
    assert found["weight"].dtype == dtype
    assert_near(found, exact(made), max(TOLERANCE[dtype], TOLERANCE[output]))
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("without", [(), ("bias",), ("residual",), ("shift",), ("bias", "residual", "shift")], ids=str)
def test_parts(backend, centre, without, use, ran):
    use(backend)
    without = tuple({*without, "shift"}) if not centre else without
    made = case((9, 1536), backend, without=without)
    for dropout in (0.0, 0.1):
        options = {"dropout": dropout, "seed": seed((1 << 64) - 3, backend), "site": 1 << 31, "centre": centre}
        assert_near(run(made, **options), exact(made, **options), 4e-6)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_values_and_constant_rows(backend, use):
    use(backend)
    large = case((4, 512), backend, scale=1e4)
    assert_near(run(large), exact(large), 4e-6)
    shifted = case((4, 512), backend, without=("residual", "bias", "shift"))
    shifted.x += 1e4  # the mean is 10,000 times the deviation: E[x^2] - m^2 would lose all digits
    assert_near({"y": run(shifted)["y"]}, {"y": exact(shifted)["y"]}, 2e-3)
    flat = case((4, 512), backend, without=("residual", "bias", "shift"))
    flat.x.fill_(3.0)
    assert run(flat)["y"].abs().max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(33, 768), (5, 2048)], ids=str)
def test_masks_are_the_reference_s_to_the_bit(backend, size, use):
    use(backend)
    made = case(size, backend, without=("bias", "residual", "shift"))
    made.x.fill_(1.0)
    _, z = norm(made.x, made.weight, dropout=0.3, seed=seed(1 << 40, backend), site=9)
    expected = keep_mask(seed_tensor(1 << 40), 9, *size, threshold_of(0.3))
    assert torch.equal(z.cpu() != 0, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_run_gives_the_same_bits(backend, use):
    use(backend)
    made = case((301, 768), backend, torch.bfloat16)
    first = run(made, dropout=0.1, seed=seed(5, backend))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = run(made, dropout=0.1, seed=seed(5, backend))
            assert all(torch.equal(first[name], again[name]) for name in first)
    finally:
        torch.set_num_threads(threads)


def test_schedules_of_the_emulator_give_equal_bits(use, monkeypatch):
    use("emulator")
    results = []
    for schedule in ("0", "1", "7", "12345"):
        monkeypatch.setenv("KERNELS_SCHEDULE", schedule)
        results.append([run(case(size), dropout=0.1, seed=seed_tensor(5)) for size in ((37, 768), (9, 2048))])
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert all(torch.equal(one[name], same[name]) for name in one)


@pytest.mark.parametrize("backend", PACKED)
@pytest.mark.parametrize("width", [100, 8200])
def test_sizes_that_a_backend_does_not_take(backend, width, use, ran, caplog):
    use(backend, runs=("reference",))
    made = case((4, width), backend)
    assert_near(run(made), exact(made), 4e-6)
    assert set(ran) == {"reference"}
    run(made)
    assert caplog.text.count(f"width {width} is no multiple of 8 up to 8192; the reference runs") == 1


@pytest.mark.parametrize("backend", ["cpu", "emulator", CUDA])
@pytest.mark.parametrize("without", [(), ("bias", "residual", "shift")], ids=str)
def test_views_that_are_not_packed(backend, without, use, ran):
    use(backend)
    made = case((7, 64), backend, without=without)
    expected = run(made)
    leaves = {**made.leaves(), "dy": made.dy, "dz": made.dz}
    odd = {
        name: torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape) for name, value in leaves.items()
    }
    assert all(value.data_ptr() % 16 for value in odd.values())
    strided = {name: value.T.contiguous().T for name, value in leaves.items() if value.dim() == 2}
    for same in (odd, strided):
        found = run(replace(made, **same))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert set(ran) == {backend}


def test_gradients_of_the_reference_in_float64():
    x, residual = torch.randn(2, 5, 12, dtype=torch.float64).unbind()
    vectors = torch.randn(3, 12, dtype=torch.float64).unbind()
    inputs = [tensor.clone().requires_grad_() for tensor in (x, *vectors, residual)]

    def call(x, weight, shift, bias, residual):
        return norm(x, weight, shift, bias=bias, residual=residual, dropout=0.2, seed=seed_tensor(1))

    assert torch.autograd.gradcheck(call, inputs)


def test_torch_s_own_bf16_gradients_are_off_on_a_cpu_and_ours_are_not(use):
    use("cpu")
    made = case((4096, 768), dtype=torch.bfloat16, without=("bias", "residual"))
    expected = exact(made)
    x, weight, shift = (t.detach().requires_grad_() for t in (made.x, made.weight.bfloat16(), made.shift.bfloat16()))
    F.layer_norm(x, (768,), weight, shift).backward(made.dy)
    largest = expected["weight"].abs().max()
    assert (weight.grad.double() - expected["weight"]).abs().max() / largest > 0.02  # else this test may go
    assert (run(made)["weight"].double() - expected["weight"]).abs().max() / largest < 1e-3


def transposed(made: Case) -> Case:
    """The same, whose matrices are not contiguous."""
    matrices = {
        name: value.T.contiguous().T for name, value in vars(made).items() if value is not None and value.dim() == 2
    }
    return replace(made, **matrices)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", [replace, transposed])
def test_compiled_and_checkpointed(backend, change, use, ran):
    use(backend)
    made, options = change(case((6, 64), backend)), {"dropout": 0.1, "seed": seed(3, backend)}
    expected = run(made, **options)
    leaves = {name: value.detach().requires_grad_() for name, value in made.leaves().items()}
    y, z = torch.compile(norm, fullgraph=True)(**leaves, **options)
    torch.autograd.backward([y, z], [made.dy, made.dz])
    assert_near({name: leaf.grad for name, leaf in leaves.items()}, {n: expected[n].double() for n in leaves}, 2e-6)
    again = {name: value.detach().requires_grad_() for name, value in made.leaves().items()}
    y, z = torch.utils.checkpoint.checkpoint(norm, use_reentrant=False, **again, **options)
    torch.autograd.backward([y, z], [made.dy, made.dz])
    assert all(torch.equal(leaf.grad, expected[name]) for name, leaf in again.items())
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_results_are_as_a_compiler_was_told(backend, dtype, use, ran):
    use(backend)
    made = transposed(case((6, 64), backend, dtype))
    x, residual, bias = made.x, made.residual, made.bias
    for adds in ((None, None), (bias, residual)):
        for threshold in (0, 6554):
            arguments = (x, *adds, made.weight, made.shift, dtype, True, 1e-5, threshold, seed(3, backend), 1)
            check_promises(torch.ops.kernels.add_norm, arguments)
    mean, rstd = (value.new_ones(6, dtype=torch.float32) for value in (x, x))
    for wanted in itertools.product([True, False], repeat=3):
        for threshold in (0, 6554):
            arguments = (made.dy, made.dz, x, made.weight, mean, rstd, threshold, seed(3, backend), 1, wanted)
            check_promises(torch.ops.kernels.add_norm_gradients, arguments)
    check_promises(torch.ops.kernels.dropout_add, (x, residual, 6554, seed(3, backend), 1))
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", ["cpu", "emulator", CUDA])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradients_that_are_not_wanted(backend, dropout, use, ran):
    use(backend)
    made, options = case((9, 1536), backend), {"dropout": dropout, "seed": seed(3, backend)}
    expected = exact(made, **options)
    for frozen in ("shift", "bias", "residual"):
        leaves = {name: value.detach().requires_grad_(name != frozen) for name, value in made.leaves().items()}
        torch.autograd.backward(norm(**leaves, **options), [made.dy, made.dz])
        assert leaves.pop(frozen).grad is None
        assert_near({name: leaf.grad for name, leaf in leaves.items()}, {name: expected[name] for name in leaves}, 4e-6)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradients_share_no_memory(backend, dropout, use):
    use(backend)
    made, options = case((4, 64), backend), {"dropout": dropout, "seed": seed(3, backend)}
    for call in (lambda x, residual: norm(x, made.weight, residual=residual, **options)[1],
                 lambda x, residual: dropout_add(x, residual, **options)):  # fmt: skip
        x, residual = (value.view(2, 2, 64).detach().requires_grad_() for value in (made.x, made.residual))
        given = made.dz.view(2, 2, 64)
        call(x, residual).backward(given)
        assert len({value.data_ptr() for value in (given, x.grad, residual.grad)}) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_launches_are_on_the_current_stream(use, ran):
    use("cuda")
    made, options = case((301, 768), "cuda"), {"dropout": 0.1, "seed": seed(3, "cuda")}
    expected, late = run(made, **options), replace(made, x=torch.zeros_like(made.x))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # x comes late: a kernel on another stream would read zeros
        late.x.copy_(made.x)
        found = run(late, **options)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert set(ran) == {"cuda"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size", [(301, 768), (9, 1600)], ids=str)
def test_a_captured_graph_draws_new_masks(size, use, ran):
    use("cuda")
    made, key = case(size, "cuda"), seed(3, "cuda")
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        run(made, dropout=0.1, seed=key)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(made, dropout=0.1, seed=key)
    masks = []
    for number in (3, 4):
        key.copy_(seed(number, "cuda"))
        graph.replay()
        expected = run(made, dropout=0.1, seed=seed(number, "cuda"))
        assert all(torch.equal(captured[name], expected[name]) for name in expected)
        masks.append(captured["x"] != 0)
    assert not torch.equal(*masks)
    assert set(ran) == {"cuda"}


def test_operators_keep_torch_s_rules(use):
    use("cpu")
    made = case((6, 64))
    arguments = (
        made.x,
        made.bias,
        made.residual,
        made.weight,
        made.shift,
        torch.float32,
        True,
        1e-5,
        6554,
        seed_tensor(3),
        1,
    )
    torch.library.opcheck(torch.ops.kernels.add_norm, arguments)


def test_module_has_the_names_of_layer_norm(use):
    use("cpu")
    plain, ours = torch.nn.LayerNorm(64), AddNorm(64)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(3, 4, 64)
    assert torch.allclose(ours(x), plain(x), atol=1e-6)


def test_module_has_the_name_of_rms_norm(use):
    use("cpu")
    plain, ours = torch.nn.RMSNorm(64, eps=1e-5), AddRMSNorm(64)
    torch.nn.init.normal_(plain.weight)
    ours.load_state_dict(plain.state_dict())
    x, residual = torch.randn(2, 3, 4, 64).unbind()
    assert torch.allclose(ours(x, residual), plain(x + residual), atol=1e-6)


def test_module_drops_in_training_alone(use):
    use("cpu")
    x, residual, seed = torch.ones(64, 64), torch.zeros(64, 64), seed_tensor(7)
    module = DropoutAdd(0.5, site=3)
    kept = keep_mask(seed, 3, 64, 64, threshold_of(0.5))
    assert not list(module.parameters()) and torch.equal(module(x, residual, seed) != 0, kept)
    assert torch.equal(module.eval()(x, residual), x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [(5, 64), (301, 768), (0, 8)], ids=str)
def test_dropout_and_sum(backend, dtype, size, use, ran):
    use(backend)
    made = case(size, backend, dtype)
    x, residual = (tensor.detach().requires_grad_() for tensor in (made.x, made.residual))
    out = dropout_add(x, residual, dropout=0.3, seed=seed(3, backend), site=5)
    out.backward(made.dz)
    kept = keep_mask(seed_tensor(3), 5, *size, threshold_of(0.3)) * keep_scale(threshold_of(0.3))
    found = {"out": out.detach(), "x": x.grad, "residual": residual.grad}
    expected = {
        "out": made.x.cpu().double() * kept + made.residual.cpu().double(),
        "x": made.dz.cpu().double() * kept,
        "residual": made.dz.cpu().double(),
    }
    assert_near(found, expected, TOLERANCE[dtype])
    assert torch.equal(
        dropout_add(made.x, dropout=0.3, seed=seed(3, backend), site=5).cpu() != 0, kept * made.x.cpu() != 0
    )
    assert set(ran) == {backend}


def test_sum_without_dropout_is_a_sum():
    x = torch.randn(3, 5)
    assert dropout_add(x, dropout=0.0) is x and torch.equal(dropout_add(x, x, dropout=0.0), x + x)


def test_mistakes():
    x, weight = torch.randn(3, 8), torch.ones(8)
    with pytest.raises(ValueError, match=r"weight is \[7\]; it must be \[8\], the last dimension of x"):
        norm(x, weight[:7])
    with pytest.raises(
        ValueError, match=r"bias is torch\.float64 and weight torch\.float32; parameters must be of one"
    ):
        norm(x, weight, bias=weight.double())
    with pytest.raises(ValueError, match=r"residual is torch.float32 \[2, 8\]; it must be like x"):
        norm(x, weight, residual=x[:2])
    with pytest.raises(ValueError, match=r"RMSNorm \(centre False\) has no shift"):
        norm(x, weight, weight, centre=False)
    for wrong in (torch.tensor(1.0), torch.ones(3, 8, dtype=torch.int32), torch.ones(3, 0)):
        with pytest.raises(ValueError, match=r"it must be \[\.\.\., W\] of a floating type, W at least 1"):
            norm(wrong, weight)
    with pytest.raises(ValueError, match=r"output is torch.int32; it must be a floating type"):
        norm(x, weight, output=torch.int32)
    with pytest.raises(ValueError, match=r"the dropout seed is 3; it must be"):
        norm(x, weight, dropout=0.1, seed=3)
    with pytest.raises(ValueError, match=r"the dropout seed is None; it must be \[1\] int64 on cpu"):
        norm(x, weight, dropout=0.1)
    with pytest.raises(
        ValueError, match=r"the dropout seed is torch.int32 \[1\] on cpu; it must be \[1\] int64 on cpu"
    ):
        dropout_add(x, dropout=0.1, seed=torch.zeros(1, dtype=torch.int32))


def test_mask_is_not_stored(use):
    use("cpu")
    made = case((256, 768))
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x = made.x.requires_grad_()
        norm(x, made.weight, made.shift, bias=made.bias, residual=made.residual, dropout=0.1, seed=seed_tensor(3))
    assert sum(saved) <= 256 * 768 * 4 + 4 * (256 * 2 + 768) + 8  # z, statistics, weight, seed
