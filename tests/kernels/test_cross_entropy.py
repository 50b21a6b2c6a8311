"""Cross-entropy of every backend against float64: losses, gradients, types, sizes, chunks, determinism."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from kernels import cross_entropy
from kernels.cross_entropy import (
    IGNORE_INDEX,
    LinearCrossEntropy,
    SoftmaxCrossEntropy,
    default_chunk_rows,
    linear_cross_entropy,
    softmax_cross_entropy,
    workspace_bytes,
)
from tests.kernels.backends import BACKENDS, CUDA, PACKED, TOLERANCE, TYPES, assert_near, device_of

SIZES = [(1, 8), (5, 64), (37, 2048), (3, 21128), (11, 5000), (0, 64)]
ODD_SIZES = [(3, 7), (13, 1009), (2, 1)]  # not for CUDA: a thread loads eight elements
PADDING = 3  # columns of -inf at the end of a row


@dataclass
class Case:
    """Hidden states [M, D], a weight [V, D] and a bias [V]; their logits stand for any."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor

    def leaves(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("hidden", "weight", "bias")}


def labels_for(rows: int, columns: int, backend: str, ignored: bool = True) -> Tensor:
    labels = torch.randint(0, max(1, columns), (rows,), generator=torch.Generator().manual_seed(rows + columns))
    if ignored:
        labels[1::4] = IGNORE_INDEX
    return labels.to(device_of(backend))


def logits_for(
    size: tuple[int, int], backend: str = "cpu", dtype: torch.dtype = torch.float32, scale: float = 3.0
) -> Tensor:
    random = torch.Generator().manual_seed(sum(size))
    logits = scale * torch.randn(*size, generator=random)
    if size[1] > PADDING:
        logits[:, -PADDING:] = -torch.inf
    return logits.to(device_of(backend), dtype)


def columns_of(width: int) -> int:
    return width - PADDING if width > PADDING else width


def case(size: tuple[int, int, int], backend: str = "cpu", dtype: torch.dtype = torch.float32) -> Case:
    rows, hidden_size, width = size
    random = torch.Generator().manual_seed(sum(size))
    shapes = ((rows, hidden_size), (width, hidden_size), (width,))
    hidden, weight, bias = (0.5 * torch.randn(*shape, generator=random) for shape in shapes)
    bias[columns_of(width) :] = -torch.inf
    placed = (tensor.to(device_of(backend), dtype) for tensor in (hidden, weight, bias))
    return Case(*placed, labels_for(rows, columns_of(width), backend))


def gradients(leaves: dict[str, Tensor], loss_of: Callable[..., Tensor], upstream: float) -> dict[str, Tensor]:
    """The loss, and upstream times its gradients."""
    own = {name: value.detach().requires_grad_() for name, value in leaves.items()}
    loss = loss_of(**own)
    (loss * upstream).backward()
    return {"loss": loss.detach(), **{name: leaf.grad for name, leaf in own.items()}}


def exact(leaves: dict[str, Tensor], loss_of: Callable[..., Tensor], upstream: float) -> dict[str, Tensor]:
    """The same in float64."""
    return gradients({name: value.detach().cpu().double() for name, value in leaves.items()}, loss_of, upstream)


def check_softmax(logits: Tensor, labels: Tensor, tolerance: float, upstream: float = 0.37) -> dict[str, Tensor]:
    found = gradients({"logits": logits}, lambda logits: softmax_cross_entropy(logits, labels)[0], upstream)
    plain = exact({"logits": logits}, lambda logits: F.cross_entropy(logits, labels.cpu(), reduction="sum"), upstream)
    assert found["loss"].dtype == torch.float32 and found["logits"].dtype == logits.dtype
    assert_near({"loss": found["loss"]}, {"loss": plain["loss"]}, 2e-6)
    assert_near({"logits": found["logits"]}, {"logits": plain["logits"]}, tolerance)
    return found


def check_linear(made: Case, tolerance: float, upstream: float = 0.37, **options) -> dict[str, Tensor]:
    def plain(hidden, weight, bias):
        return F.cross_entropy(F.linear(hidden, weight, bias), made.labels.cpu(), reduction="sum")

    found = gradients(
        made.leaves(), lambda **leaves: linear_cross_entropy(**leaves, labels=made.labels, **options)[0], upstream
    )
    assert found["loss"].dtype == torch.float32
    assert all(found[name].dtype == leaf.dtype for name, leaf in made.leaves().items())
    assert_near(found, exact(made.leaves(), plain, upstream), tolerance)
    return found


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
    check_softmax(logits_for(size, backend), labels_for(size[0], columns_of(size[1]), backend), 2e-6)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_types(backend, dtype, use, ran):
    use(backend)
    check_softmax(logits_for((19, 1016), backend, dtype), labels_for(19, 1013, backend), TOLERANCE[dtype])
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("size", "chunk_rows"), [((29, 24, 264), 8), ((9, 64, 4104), 9), ((1, 8, 64), 5)], ids=str)
def test_projection(backend, dtype, size, chunk_rows, use, ran):
    use(backend)
    check_linear(case(size, backend, dtype), max(2 * TOLERANCE[dtype], 4e-6), chunk_rows=chunk_rows)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("size", [(7, 5, 13), (0, 8, 16), (3, 1, 1)], ids=str)
def test_projections_of_odd_sizes(backend, size, use, ran):
    use(backend)
    check_linear(case(size, backend), 4e-6, chunk_rows=2)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_large_magnitudes(backend, dtype, use):
    use(backend)
    labels = labels_for(7, 509, backend)
    check_softmax(logits_for((7, 512), backend, dtype, scale=1e4), labels, TOLERANCE[dtype])
    for shift in (1e4, -1e4):  # the loss is 10, and must not be 10,010 - 10,000
        check_softmax(logits_for((7, 512), backend, dtype) + shift, labels, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_columns_have_no_gradient(backend, use):
    use(backend)
    found = check_softmax(logits_for((5, 64), backend), labels_for(5, 61, backend), 2e-6)
    assert not found["logits"][:, -PADDING:].any() and found["logits"][0, :-PADDING].all()
    made = check_linear(case((5, 8, 64), backend), 4e-6)
    assert not made["weight"][-PADDING:].any() and not made["bias"][-PADDING:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_rows_count_for_nothing(backend, use):
    use(backend)
    logits, labels = logits_for((6, 64), backend), labels_for(6, 61, backend)
    found = check_softmax(logits, labels, 2e-6)
    assert (labels == IGNORE_INDEX).sum() == 2 and not found["logits"][labels == IGNORE_INDEX].any()
    none = torch.full_like(labels, IGNORE_INDEX)
    assert [float(each) for each in softmax_cross_entropy(logits, none, count_right=True)] == [0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_ignored_rows_have_no_gradient_whatever_their_logits(value, backend, use, ran):
    use(backend)
    logits, labels = logits_for((6, 64), backend), labels_for(6, 61, backend)
    expected = check_softmax(logits, labels, 2e-6)
    logits[labels == IGNORE_INDEX] = value
    found = gradients({"logits": logits}, lambda logits: softmax_cross_entropy(logits, labels)[0], 0.37)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    made = case((6, 8, 64), backend)
    made.labels[:] = IGNORE_INDEX
    made.bias[:] = value
    assert not any(each.any() for each in found_of_linear(made).values())
    assert set(ran) == {backend}


def found_of_linear(made: Case) -> dict[str, Tensor]:
    """The loss and gradients by chunks of 4 rows."""
    return gradients(
        made.leaves(), lambda **leaves: linear_cross_entropy(**leaves, labels=made.labels, chunk_rows=4)[0], 1.0
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("label", [-1, 64, -101])
def test_labels_that_nobody_looked_at_give_nan(label, dtype, backend, use, ran, monkeypatch):
    """As on a GPU: of such a row the loss, and the whole gradient, so that nothing learns from it."""
    use(backend)
    monkeypatch.setattr(cross_entropy, "_check_columns", lambda *_: None)
    logits, labels = logits_for((6, 64), backend, dtype), labels_for(6, 61, backend)
    expected = check_softmax(logits, labels, TOLERANCE[dtype])
    labels[2] = label
    loss, right = softmax_cross_entropy(logits, labels, count_right=True)
    assert loss.isnan() and int(right) <= 5
    found = gradients({"logits": logits}, lambda logits: softmax_cross_entropy(logits, labels)[0], 0.37)["logits"]
    rest = torch.arange(6, device=labels.device) != 2
    assert found[2].isnan().all() and torch.equal(found[rest], expected["logits"][rest])
    made = case((6, 8, 64), backend, dtype)
    made.labels.copy_(labels)
    linear = found_of_linear(made)
    assert linear["loss"].isnan() and linear["hidden"][2].isnan().all() and linear["hidden"][rest].isfinite().all()
    assert linear["weight"].isnan().all() and linear["bias"].isnan().all()
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
def test_right_labels_are_counted(backend, use):
    use(backend)
    logits = logits_for((64, 512), backend, torch.bfloat16).round()  # so that columns are equally large
    best = logits.cpu().float().argmax(-1)  # the first of them on a CPU
    last = 511 - logits.cpu().float().flip(-1).argmax(-1)
    assert (best != last).sum() > 10
    labels = torch.where(torch.arange(64) % 3 > 0, best, last)
    labels[7] = IGNORE_INDEX
    expected = int((labels == best).sum())
    assert 40 < expected < 64
    _, right = softmax_cross_entropy(logits, labels.to(logits.device), count_right=True)
    assert right.dtype == torch.int64 and int(right) == expected
    assert softmax_cross_entropy(logits, labels.to(logits.device))[1] is None
    identity = torch.eye(512, device=logits.device, dtype=torch.bfloat16)
    assert (
        int(linear_cross_entropy(logits.clamp(min=-100), identity, None, labels.to(logits.device), True, 10)[1])
        == expected
    )
    logits[5, 3] = torch.nan
    assert int(softmax_cross_entropy(logits[5:6], best[5:6].to(logits.device), count_right=True)[1]) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_numbers_give_a_loss_that_is_none(backend, use):
    use(backend)
    for value in (torch.nan, torch.inf):
        logits = logits_for((1, 64), backend)
        logits[0, 9] = value
        assert softmax_cross_entropy(logits, labels_for(1, 8, backend))[0].isnan()
    assert softmax_cross_entropy(torch.full_like(logits, -torch.inf), labels_for(1, 8, backend))[0].isnan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_run_gives_the_same_bits(backend, use):
    use(backend)
    logits, labels = logits_for((301, 1024), backend, torch.bfloat16), labels_for(301, 1021, backend)
    first = check_softmax(logits, labels, TOLERANCE[torch.bfloat16])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = check_softmax(logits, labels, TOLERANCE[torch.bfloat16])
            assert all(torch.equal(first[name], again[name]) for name in first)
    finally:
        torch.set_num_threads(threads)


def test_schedules_of_the_emulator_give_equal_bits(use, monkeypatch):
    use("emulator")
    results = []
    for schedule in ("0", "1", "7", "12345"):
        monkeypatch.setenv("KERNELS_SCHEDULE", schedule)
        results.append(check_softmax(logits_for((9, 5000)), labels_for(9, 4997, "cpu"), 2e-6))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.parametrize("backend", PACKED)
def test_sizes_that_a_backend_does_not_take(backend, use, ran, caplog):
    use(backend, runs=("reference",))
    for _ in range(2):
        check_softmax(logits_for((4, 1009), backend), labels_for(4, 1006, backend), 2e-6)
        check_linear(case((4, 8, 1009), backend), 4e-6, chunk_rows=2)
    assert set(ran) == {"reference"}
    assert caplog.text.count("cross_entropy on") == 2  # each operation says it once
    assert "width 1009 is no multiple of 8; the reference runs" in caplog.text


@pytest.mark.parametrize("backend", PACKED)
def test_rows_that_begin_anywhere(backend, use, ran):
    use(backend)
    memory = logits_for((1, 5 * 64 + 1), backend, torch.bfloat16).nan_to_num(neginf=-1.0).flatten()
    check_softmax(memory[1:].view(5, 64), labels_for(5, 64, backend), TOLERANCE[torch.bfloat16])
    check_softmax(memory[:-1].view(64, 5).t(), labels_for(5, 64, backend), TOLERANCE[torch.bfloat16])
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", ["reference", "cpu", CUDA])
def test_small_fp16_gradients_are_kept(backend, use):
    """Over many columns nearly all of softmax is below the normal numbers of fp16, where digits are lost."""
    use(backend)
    made = case((16, 32, 21128), backend, torch.float16)
    made.hidden.mul_(0.01)
    check_linear(made, 1.5e-3, upstream=64.0, chunk_rows=8)
    found = gradients(
        {"weight": made.weight, "hidden": made.hidden},
        lambda weight, hidden: linear_cross_entropy(hidden, weight, made.bias, made.labels, chunk_rows=8)[0],
        2.0**16,
    )
    plain = exact(
        {"weight": made.weight, "hidden": made.hidden},
        lambda weight, hidden: F.cross_entropy(
            F.linear(hidden, weight, made.bias.cpu().double()), made.labels.cpu(), reduction="sum"
        ),
        2.0**16,
    )
    far = torch.ones(21128, dtype=torch.bool)
    far[made.labels.cpu().clamp(min=0)] = False
    assert_near({"weight": found["weight"][far]}, {"weight": plain["weight"][far]}, 5e-3)


def test_a_frequent_label_does_not_overflow_in_fp16(use):
    use("cpu")
    made = case((600, 8, 64), dtype=torch.float16)
    made.hidden.fill_(4.0), made.labels.fill_(7)  # 600 rows x 4 x the scale of gradients in fp16 is 614,400
    check_linear(made, 2e-3, upstream=1 / 600, chunk_rows=600)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_only_what_is_wanted_is_made(backend, use, monkeypatch):
    use(backend)
    made, kept = case((9, 8, 64)), []
    makes = cross_entropy._linear_cross_entropy

    def noting(*args):
        kept.append(args[-1])
        return makes(*args)

    monkeypatch.setattr(cross_entropy, "_linear_cross_entropy", noting)
    full = check_linear(made, 4e-6, chunk_rows=4)
    made.hidden.requires_grad_()
    loss, _ = linear_cross_entropy(made.hidden, made.weight, None, made.labels, chunk_rows=4)
    loss.backward()
    plain = F.cross_entropy(F.linear(made.hidden.detach(), made.weight), made.labels, reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    with torch.no_grad():
        assert linear_cross_entropy(made.hidden, made.weight, made.bias, made.labels, chunk_rows=4)[
            0
        ].item() == pytest.approx(full["loss"].item(), rel=1e-6)
    assert kept == [[True, True, True], [True, False, False], [False, False, False]]


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_gradients_of_the_reference_in_float64(chunk_rows):
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((7, 5), (11, 5), (11,)))
    labels = torch.tensor([0, 3, IGNORE_INDEX, 10, 3, 5, 0])
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda *leaves: linear_cross_entropy(*leaves, labels, chunk_rows=chunk_rows)[0], inputs
    )
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: softmax_cross_entropy(logits, labels)[0], [logits])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_second_derivatives_are_refused(backend, use):
    use(backend)
    made = case((9, 8, 64))
    hidden, weight, bias = (leaf.requires_grad_() for leaf in made.leaves().values())
    losses = {
        "linear_cross_entropy_gradients": linear_cross_entropy(hidden, weight, bias, made.labels, chunk_rows=4)[0],
        "cross_entropy_gradient": softmax_cross_entropy(F.linear(hidden, weight), made.labels)[0],
    }
    for operator, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss**2, hidden, create_graph=True)
        with pytest.raises(RuntimeError, match=rf"through kernels.{operator}\b.* no autograd formula"):
            gradient.square().sum().backward()


def test_gradients_of_16_bit_weights_can_be_fp32(use):
    use("cpu")
    made = case((40, 16, 264), dtype=torch.bfloat16)
    weight = made.weight.clone().requires_grad_()
    weight.grad_dtype = torch.float32
    loss, _ = linear_cross_entropy(made.hidden, weight, made.bias, made.labels, chunk_rows=16)
    loss.backward()
    assert weight.grad.dtype == torch.float32
    assert (weight.grad != weight.grad.bfloat16()).any()


@pytest.mark.parametrize("backend", ["reference", "cpu", "emulator"])
def test_compiled_and_checkpointed(backend, use):
    use(backend)
    made = case((9, 16, 64), backend)
    made.hidden, made.weight = (each.t().contiguous().t() for each in (made.hidden, made.weight))  # any strides

    def loss_of(hidden, weight, bias):
        logits = F.linear(hidden, weight, bias)
        return (
            linear_cross_entropy(hidden, weight, bias, made.labels, chunk_rows=4)[0]
            + softmax_cross_entropy(logits, made.labels)[0]
            + softmax_cross_entropy(F.linear(weight, hidden).t(), made.labels)[0]
        )

    expected = gradients(made.leaves(), loss_of, 0.5)
    assert_near(gradients(made.leaves(), torch.compile(loss_of, fullgraph=True), 0.5), doubled(expected), 2e-6)

    def checkpointed(**leaves):
        return torch.utils.checkpoint.checkpoint(loss_of, use_reentrant=False, **leaves)

    assert_near(gradients(made.leaves(), checkpointed, 0.5), doubled(expected), 1e-7)


def doubled(results: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in results.items()}


def test_operators_keep_torch_s_rules(use):
    use("cpu")
    made = case((6, 8, 64))
    leaves = [leaf.requires_grad_() for leaf in made.leaves().values()]
    torch.library.opcheck(torch.ops.kernels.linear_cross_entropy, (*leaves, made.labels, True, 4, [True, True, True]))
    torch.library.opcheck(torch.ops.kernels.cross_entropy, (logits_for((6, 64)).requires_grad_(), made.labels, True))


def test_probabilities_are_not_stored(use):
    use("cpu")
    saved: list[Tensor] = []
    made = case((64, 16, 2048))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        logits = logits_for((64, 2048), "cpu", torch.bfloat16).requires_grad_()
        softmax_cross_entropy(logits, made.labels)
        assert sum(tensor.nbytes for tensor in saved) == logits.nbytes + 64 * (8 + 2 * 4)
        saved.clear()
        linear_cross_entropy(
            made.hidden.requires_grad_(), made.weight.requires_grad_(), None, made.labels, chunk_rows=16
        )
        assert sum(tensor.nbytes for tensor in saved) == made.hidden.nbytes + made.weight.nbytes


@pytest.mark.parametrize(
    ("rows", "width", "expected"), [(1000, 50304, 500), (100, 50304, 100), (0, 8, 1), (4096, 4, 4096)]
)
def test_chunks_are_about_as_large(rows, width, expected):
    assert default_chunk_rows(torch.empty(rows, 8), torch.empty(width, 8, device="meta")) == expected


@pytest.mark.parametrize("label", [-1, 8, -101])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_labels_that_are_no_columns(label, backend, use):
    use(backend, runs=())
    labels = torch.tensor([3, label, 2])
    message = rf"a label is {label}; labels must be columns of the logits, 0 to 7, or -100"
    with pytest.raises(ValueError, match=message):
        softmax_cross_entropy(torch.randn(3, 8), labels)
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(torch.randn(3, 4), torch.randn(8, 4), None, labels)


@pytest.mark.parametrize("backend", [CUDA])
def test_labels_that_are_no_columns_on_a_gpu(backend, use):
    for each in ("reference", backend):
        use(each)
        labels = torch.tensor([3, 8, -1], device="cuda")
        assert softmax_cross_entropy(torch.randn(3, 8, device="cuda"), labels)[0].isnan()


def test_mistakes():
    x, weight, labels = torch.randn(3, 4), torch.randn(8, 4), torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match=r"logits are \[4\] torch.float32; they must be \[M, V\] of a floating type"):
        softmax_cross_entropy(x[0], labels)
    with pytest.raises(ValueError, match=r"labels are \[2\] torch.int64; they must be \[3\] torch.int64, one for each"):
        softmax_cross_entropy(x, labels[:2])
    with pytest.raises(ValueError, match=r"labels are \[3\] torch.int32; they must be \[3\] torch.int64"):
        linear_cross_entropy(x, weight, None, labels.int())
    with pytest.raises(ValueError, match=r"hidden is \[4\] torch.float32; it must be \[M, D\]"):
        linear_cross_entropy(x[0], weight, None, labels)
    with pytest.raises(ValueError, match=r"weight is \[4, 8\] torch.float32; it must be \[V, 4\] torch.float32"):
        linear_cross_entropy(x, weight.t(), None, labels)
    with pytest.raises(ValueError, match=r"bias is \[8\] torch.float64; it must be \[8\] torch.float32, as weight"):
        linear_cross_entropy(x, weight, torch.zeros(8, dtype=torch.float64), labels)
    with pytest.raises(ValueError, match="chunk_rows is 0; it must be at least 1"):
        linear_cross_entropy(x, weight, None, labels, chunk_rows=0)


def test_rows_of_one_chunk_keep_their_logits(use, monkeypatch):
    use("cpu")
    made, calls = case((9, 8, 64)), []
    softmax = cross_entropy.softmax_cross_entropy
    monkeypatch.setattr(cross_entropy, "softmax_cross_entropy", lambda *args: calls.append(args) or softmax(*args))
    one = check_linear(made, 4e-6)
    assert len(calls) == 1
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(cross_entropy, "MIN_CHUNK_ROWS", 4)
    several = check_linear(made, 4e-6)
    assert len(calls) == 1 and several["loss"].item() == pytest.approx(one["loss"].item(), rel=1e-6)


@pytest.fixture
def one_thread():
    """oneDNN's matrix products take scratch memory for each thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_workspace_is_what_is_allocated(dtype, use, one_thread):
    use("cpu")
    made = case((512, 32, 8192), dtype=dtype)
    wanted = [True, True, False]

    def call() -> tuple[Tensor, ...]:
        return torch.ops.kernels.linear_cross_entropy(made.hidden, made.weight, None, made.labels, False, 64, wanted)

    results = sum(tensor.nbytes for tensor in call())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = sorted(
        (e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"
    )
    peak = max(itertools.accumulate(change for _, change in events))
    expected = results + workspace_bytes(made.hidden, made.weight, 64, wanted)
    assert expected <= peak <= 1.05 * expected


def test_modules_have_the_names_of_the_plain_ones(use):
    use("cpu")
    hidden, labels = torch.randn(9, 16), torch.randint(0, 33, (9,))
    plain, ours = torch.nn.Linear(16, 33), LinearCrossEntropy(16, 33)
    ours.load_state_dict(plain.state_dict())
    expected = torch.nn.CrossEntropyLoss(reduction="sum")(plain(hidden), labels)
    torch.testing.assert_close(ours(hidden, labels), expected)
    torch.testing.assert_close(SoftmaxCrossEntropy()(plain(hidden), labels), expected)
