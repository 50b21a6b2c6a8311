"""Gradient norm, AdamW and LAMB of every backend against float64: types, sizes, pieces, clipping, determinism."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor

from kernels.optimizer import CHUNK, AdamW, adamw, clip_factor, lamb_moments, lamb_step, squared_norm
from tests.kernels.backends import BACKENDS, CUDA, TYPES, assert_near, device_of

SIZES = [(1,), (7,), (0,), (13, 77), (CHUNK,), (CHUNK + 1,), (3, 5, 4099)]
MANY = [(n % 7,) for n in range(150)]  # more than a launch takes
OPTIONS = {"rate": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "decay": 0.2}
PIECES = [(0, 0, 7), (1, 5, CHUNK + 9), (1, CHUNK + 14, 3), (0, 9, 0), (2, 0, 64), (1, 0, 5)]
PIECE_SIZES = [(11,), (2 * CHUNK + 5,), (8, 8)]

Lists = dict[str, list[Tensor]]


def lists(sizes: list[tuple[int, ...]], backend: str = "cpu", dtype: torch.dtype = torch.float32) -> Lists:
    random = torch.Generator().manual_seed(len(sizes))

    def draw(of: torch.dtype = torch.float32) -> list[Tensor]:
        return [torch.randn(*size, generator=random).to(device_of(backend), of) for size in sizes]

    return {
        "gradients": draw(dtype),
        "weights": draw(),
        "first": draw(),
        "second": [each.square() for each in draw()],
    }


def exact(made: Lists) -> Lists:
    return {name: [tensor.cpu().double() for tensor in tensors] for name, tensors in made.items()}


def named(made: Lists) -> dict[str, Tensor]:
    return {f"{name} {i}": t for name, tensors in made.items() if name != "gradients" for i, t in enumerate(tensors)}


def exact_adam(made: Lists, step: int, factor: float = 1.0) -> list[Tensor]:
    """Moments in place; directions."""
    beta1, beta2 = OPTIONS["betas"]
    directions = []
    for g, m, v in zip(made["gradients"], made["first"], made["second"], strict=True):
        m.copy_(beta1 * m + (1 - beta1) * factor * g)
        v.copy_(beta2 * v + (1 - beta2) * (factor * g) ** 2)
        directions.append((m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + OPTIONS["eps"]))
    return directions


def exact_adamw(made: Lists, step: int, factor: float = 1.0) -> None:
    rate = OPTIONS["rate"]
    for w, direction in zip(made["weights"], exact_adam(made, step, factor), strict=True):
        w.copy_(w - rate * OPTIONS["decay"] * w - rate * direction)


def scalar(value: float, backend: str) -> Tensor:
    return torch.tensor([value], device=device_of(backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [SIZES, MANY, [(5,)], [(0,)]], ids=["sizes", "many", "one", "empty"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_norm(backend, sizes, dtype, use, ran):
    use(backend)
    gradients = lists(sizes, backend, dtype)["gradients"]
    expected = sum(float(gradient.double().square().sum()) for gradient in gradients)
    found = squared_norm(gradients)
    assert found.shape == (1,) and found.dtype == torch.float64 and found.device.type == device_of(backend)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 2])
def test_norm_says_that_something_is_not_finite(backend, value, at, use):
    use(backend)
    gradients = [torch.ones(5, device=device_of(backend)), torch.ones(2 * CHUNK + 3, device=device_of(backend))]
    assert squared_norm(gradients).isfinite()
    gradients[1][at] = value
    assert not squared_norm(gradients).isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_of_large_and_small_values(backend, use):
    use(backend)
    for scale in (1e-15, 1e15):
        assert float(squared_norm([torch.full((70_000,), scale, device=device_of(backend))])) == pytest.approx(
            70_000 * scale**2, rel=1e-6
        )


def test_norm_of_nothing():
    assert squared_norm([]).tolist() == [0.0]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_factor_is_that_of_torch(scale):
    gradients = [torch.randn(7), torch.randn(3, 2)]
    expected = [gradient.clone() / scale for gradient in gradients]
    norm = torch.nn.utils.get_total_norm(expected)
    scaled = squared_norm(gradients).sqrt()
    factor = clip_factor(scaled, float(norm) / 2, scale)
    for parameter in (parameters := [torch.nn.Parameter(each) for each in expected]):
        parameter.grad = parameter.detach().clone()
    torch.nn.utils.clip_grads_with_norm_(parameters, float(norm) / 2, norm)
    assert torch.allclose((scaled / scale).float(), norm) and factor.dtype == torch.float32 and factor.shape == (1,)
    for gradient, parameter in zip(gradients, parameters, strict=True):
        assert torch.allclose(gradient * factor, parameter.grad)
    assert float(clip_factor(scaled, float(norm) * 2, scale)) == 1 / scale
    unclipped = clip_factor(scaled, 0.0, scale)
    assert unclipped is None if scale == 1 else float(unclipped) == 1 / scale


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("sizes", [SIZES, MANY], ids=["sizes", "many"])
def test_adamw(backend, dtype, sizes, use, ran):
    use(backend)
    made = lists(sizes, backend, dtype)
    expected = exact(made)
    for step in (1, 2, 100):
        adamw(**made, **OPTIONS, step=step, factor=scalar(0.37, backend))
        exact_adamw(expected, step, 0.37)
    assert_near(named(made), named(expected), 2e-6)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_adamw_writes_a_copy_of_the_weights(backend, dtype, use, ran):
    use(backend)
    made = lists(SIZES, backend)
    copies = [torch.empty_like(weight, dtype=dtype) for weight in made["weights"]]
    adamw(**made, **OPTIONS, step=3, copies=copies)
    assert all(torch.equal(one, weight.to(dtype)) for one, weight in zip(copies, made["weights"], strict=True))
    assert set(ran) == {backend}


def slices(tensors: list[Tensor], start: int, end: int) -> list[Tensor]:
    return [tensor[start:end] for tensor in tensors]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", [1, 3, 4])
def test_tensors_that_begin_anywhere(backend, start, use, ran):
    use(backend)
    made = lists([(CHUNK + 100,), (50,)], backend, torch.bfloat16)
    before, expected = copy.deepcopy(made), exact(made)
    end = 47 + start
    adamw(**{name: slices(tensors, start, end) for name, tensors in made.items()}, **OPTIONS, step=2)
    exact_adamw({name: slices(tensors, start, end) for name, tensors in expected.items()}, 2)
    assert_near(named(made), named(expected), 2e-6)
    for name in ("weights", "first", "second"):
        for new, old in zip(made[name], before[name], strict=True):
            assert torch.equal(new[:start], old[:start]) and torch.equal(new[end:], old[end:])
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-24, 1e-12, 1e12, 1e25])
def test_adamw_of_large_and_small_gradients(backend, scale, use):
    use(backend)
    made = lists([(1000,)], backend)
    made["gradients"] = [gradient * scale for gradient in made["gradients"]]
    made["first"], made["second"] = ([torch.zeros_like(m) for m in made[name]] for name in ("first", "second"))
    before = made["weights"][0].clone()
    adamw(**made, **{**OPTIONS, "decay": 0.0}, step=1)
    moved = (made["weights"][0] - before).abs().max()
    assert bool(made["weights"][0].isfinite().all()) and float(moved) <= 0.0201  # the square may be 0 or infinite


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_lamb(backend, dtype, use, ran):
    use(backend)
    made = lists(PIECE_SIZES, backend, dtype)
    before, expected = copy.deepcopy(made), exact(made)
    ratio = torch.rand(len(PIECES), generator=torch.Generator().manual_seed(0)) + 0.5
    options = {name: value for name, value in OPTIONS.items() if name != "rate"}
    kept = {name: made[name] for name in ("weights", "first", "second")}
    found = lamb_moments(**made, pieces=PIECES, **options, step=4, factor=scalar(0.37, backend))
    lamb_step(**kept, pieces=PIECES, ratio=ratio.to(device_of(backend)), **OPTIONS, step=4)
    directions = exact_adam(expected, 4, 0.37)
    sums = torch.zeros(len(PIECES), 2, dtype=torch.float64)
    covered = [torch.zeros(tensor.numel(), dtype=torch.bool) for tensor in expected["weights"]]
    for row, (number, begin, size), one in zip(sums, PIECES, ratio, strict=True):
        weight, direction = (t[number].view(-1)[begin : begin + size] for t in (expected["weights"], directions))
        update = direction + OPTIONS["decay"] * weight
        row[0], row[1] = weight.square().sum(), update.square().sum()
        weight -= OPTIONS["rate"] * float(one) * update
        covered[number][begin : begin + size] = True
    torch.testing.assert_close(found.cpu(), sums, rtol=2e-6, atol=0.0)
    for name in ("weights", "first", "second"):
        for new, old, value, mask in zip(made[name], before[name], expected[name], covered, strict=True):
            flat, inside = new.view(-1).cpu(), {"inside": new.view(-1).cpu()[mask]}
            assert_near(inside, {"inside": value.view(-1)[mask]}, 2e-6)
            assert torch.equal(flat[~mask], old.view(-1).cpu()[~mask])
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_run_gives_the_same_bits(backend, use):
    use(backend)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(everything(backend))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def everything(backend: str) -> list[Tensor]:
    made = lists(PIECE_SIZES, backend, torch.bfloat16)
    norm = squared_norm(made["gradients"]).sqrt()
    factor = clip_factor(norm, 1.0)
    adamw(**made, **OPTIONS, step=1, factor=factor)
    options = {name: value for name, value in OPTIONS.items() if name != "rate"}
    sums = lamb_moments(**made, pieces=PIECES, **options, step=2, factor=factor)
    kept = {name: made[name] for name in ("weights", "first", "second")}
    lamb_step(**kept, pieces=PIECES, ratio=sums.sqrt().sum(1), **OPTIONS, step=2)
    return [norm, sums, *named(made).values()]


def test_schedules_of_the_emulator_give_equal_bits(use, monkeypatch):
    use("emulator")
    results = []
    for schedule in ("0", "1", "7", "12345"):
        monkeypatch.setenv("KERNELS_SCHEDULE", schedule)
        results.append(everything("emulator"))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_the_reference_computes_in_float64(use, ran):
    use("reference")
    made = exact(lists(PIECE_SIZES))
    expected = copy.deepcopy(made)
    adamw(**made, **OPTIONS, step=5)
    exact_adamw(expected, 5)
    assert_near(named(made), named(expected), 1e-14)


@pytest.mark.parametrize("backend", ["cpu", "emulator", CUDA])
def test_what_a_backend_does_not_take(backend, use, ran, caplog):
    use(backend, runs=("reference",))
    made = lists([(6, 4)], backend)
    expected = exact(made)
    made["gradients"] = [made["gradients"][0].t().contiguous().t()]
    adamw(**made, **OPTIONS, step=1)
    exact_adamw(expected, 1)
    assert_near(named(made), named(expected), 2e-6)
    mixed = [made["gradients"][0].half(), made["gradients"][0].contiguous()]
    assert squared_norm(mixed).isfinite()
    assert squared_norm([mixed[0].double()]).isfinite()
    adamw(**lists([(3,)], backend), **OPTIONS, step=1, copies=[torch.empty(3, device=device_of(backend))])
    assert set(ran) == {"reference"}
    for reason in (
        "copies are not all bf16",
        "a tensor is not contiguous",
        "gradients are of several types",
        "float64 is for the reference",
    ):
        assert reason in caplog.text


def parameters(backend: str = "cpu") -> list[torch.nn.Parameter]:
    random = torch.Generator().manual_seed(5)
    return [torch.nn.Parameter(torch.randn(*size, generator=random).to(device_of(backend))) for size in SIZES]


def take_steps(optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    """Gradients of a step's number; the second parameter has none in step 1."""
    of = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in steps:
        random = torch.Generator().manual_seed(step)
        for number, parameter in enumerate(of):
            gradient = torch.randn(parameter.shape, generator=random).to(parameter.device)
            parameter.grad = None if (step, number) == (1, 1) else gradient
        optimizer.step()
    return [parameter.detach().clone() for parameter in of]


def grouped(of: list[torch.nn.Parameter]) -> list[dict]:
    return [{"params": of[:3], "weight_decay": 0.3}, {"params": of[3:], "lr": 0.1}]


@pytest.mark.parametrize("backend", BACKENDS)
def test_optimizer_is_torch_s(backend, use, ran):
    use(backend)
    ours = AdamW(grouped(parameters(backend)), lr=0.01, eps=1e-6)
    theirs = torch.optim.AdamW(grouped(parameters(backend)), lr=0.01, eps=1e-6)
    for one, other in zip(take_steps(ours, range(4)), take_steps(theirs, range(4)), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
def test_optimizer_goes_on_to_the_bit(backend, use):
    use(backend)
    whole = AdamW(grouped(parameters(backend)), lr=0.01)
    expected = take_steps(whole, range(5))
    first = AdamW(grouped(parameters(backend)), lr=0.01)
    weights = take_steps(first, range(3))
    second = AdamW(grouped([torch.nn.Parameter(weight) for weight in weights]), lr=0.5)
    second.load_state_dict(first.state_dict())
    assert all(map(torch.equal, take_steps(second, range(3, 5)), expected))


def test_state_is_torch_s_in_both_directions(use):
    use("cpu")
    for one, other in itertools.permutations([AdamW, torch.optim.AdamW]):
        first = one(grouped(parameters()), lr=0.01)
        weights = take_steps(first, range(3))
        second = other(grouped([torch.nn.Parameter(weight.clone()) for weight in weights]))
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        expected = take_steps(first, range(3, 5))
        for a, b in zip(take_steps(second, range(3, 5)), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)


def test_factor_stands_for_scaled_gradients(use):
    use("cpu")
    ours, scaled = (AdamW(parameters(), lr=0.01) for _ in range(2))
    ours.factor = torch.tensor([0.25])
    for a, b in zip(parameters_of(ours), parameters_of(scaled), strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad * 0.25
    ours.step()
    scaled.step()
    assert all(map(torch.equal, parameters_of(ours), parameters_of(scaled)))


def test_a_closure_makes_the_gradients(use):
    use("cpu")
    ours, theirs = (kind(parameters(), lr=0.01) for kind in (AdamW, torch.optim.AdamW))
    for optimizer in (ours, theirs):

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> float:
            loss = sum(parameter.square().sum() for parameter in parameters_of(optimizer))
            loss.backward()
            return float(loss.detach())

        assert optimizer.step(closure) > 0
    for a, b in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", CUDA])
def test_autograd_sees_that_tensors_changed(backend, use):
    use(backend)
    made = lists([(5,)], backend)
    copies = [made["weights"][0].half()]
    before = [tensor._version for name in ("weights", "first", "second") for tensor in made[name]]
    adamw(**made, **OPTIONS, step=1, copies=copies)
    options = {name: value for name, value in OPTIONS.items() if name != "rate"}
    lamb_moments(**made, pieces=[(0, 0, 5)], **options, step=2)
    after = [tensor._version for name in ("weights", "first", "second") for tensor in made[name]]
    assert all(new > old for new, old in zip(after, before, strict=True)) and copies[0]._version > 0


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def test_mistakes():
    made = lists([(3,), (4,)])
    with pytest.raises(ValueError, match=r"gradients must be shaped like the weights, each like its own"):
        adamw(**{**made, "gradients": made["gradients"][::-1]}, **OPTIONS, step=1)
    with pytest.raises(ValueError, match=r"second moments must be shaped like the weights"):
        adamw(**{**made, "second": made["second"][:1]}, **OPTIONS, step=1)
    with pytest.raises(ValueError, match=r"step is 0; steps are counted from 1"):
        adamw(**made, **OPTIONS, step=0)
    with pytest.raises(ValueError, match=r"factor is torch.float32 \[2\]; it must be float32 \[1\]"):
        adamw(**made, **OPTIONS, step=1, factor=torch.ones(2))
    with pytest.raises(ValueError, match=r"copies must be shaped like the weights"):
        adamw(**made, **OPTIONS, step=1, copies=made["weights"][:1])
    options = {name: value for name, value in OPTIONS.items() if name != "rate"}
    with pytest.raises(ValueError, match=r"piece \(1, 2, 3\) \(tensor, first element, size\) is not in its tensor"):
        lamb_moments(**made, pieces=[(1, 2, 3)], **options, step=1)
    kept = {name: made[name] for name in ("weights", "first", "second")}
    with pytest.raises(ValueError, match=r"ratio is torch.float32 \[2\]; it must be float32 \[1\]"):
        lamb_step(**kept, pieces=[(1, 2, 1)], ratio=torch.ones(2), **OPTIONS, step=1)


def test_impossible_rates():
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    for wrong in ({"lr": -1.0}, {"betas": (0.9, 1.5)}, {"eps": -1e-8}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match="none may be negative, and betas must be below 1"):
            AdamW(parameters, **wrong)
