"""Embeddings of every backend against float64: values, gradients, types, sizes, masks, runs of ids, determinism."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from kernels.embedding import Embeddings, embed
from kernels.philox import keep_mask, keep_scale, seed_tensor, threshold_of
from tests.kernels.backends import BACKENDS, CUDA, PACKED, TOLERANCE, TYPES, assert_near, check_promises, device_of

SIZES = [(1, 8), (5, 64), (97, 768), (13, 1024), (6, 1600), (3, 3000), (3, 8192), (0, 64)]  # tokens, width
ODD_SIZES = [(3, 7), (71, 101), (2, 1)]  # not for CUDA: a thread loads eight elements
LEAVES = ("word", "position", "segment", "weight", "shift")
ROWS = {"word": 61, "position": 17, "segment": 2}


@dataclass
class Case:
    """Inputs of a call and the gradient that flows into its result."""

    tokens: Tensor
    positions: Tensor
    segments: Tensor | None
    word: Tensor
    position: Tensor
    segment: Tensor | None
    weight: Tensor | None
    shift: Tensor | None
    dy: Tensor

    def ids(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.tokens, self.positions, self.segments

    def leaves(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in LEAVES if getattr(self, name) is not None}


def case(
    size: tuple[int, int], backend: str = "cpu", dtype: torch.dtype = torch.float32,
    parameters: torch.dtype | None = None, scale: float = 1.0, without: tuple[str, ...] = (),
) -> Case:  # fmt: skip
    random = torch.Generator().manual_seed(sum(size))
    count, width = size

    def draw(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return (scale * torch.randn(*shape, generator=random)).to(device_of(backend), of)

    def ids(table: str) -> Tensor:
        return torch.randint(ROWS[table], (count,), generator=random).to(device_of(backend))

    made = Case(
        *(ids(table) for table in ROWS), *(draw(rows, width) for rows in ROWS.values()),
        *(draw(width, of=parameters or torch.float32) for _ in range(2)), draw(count, width),
    )  # fmt: skip
    for name in without:
        setattr(made, name, None)
    return made


def seed(number: int, backend: str) -> Tensor:
    return seed_tensor(number, device_of(backend))


def run(made: Case, **options) -> dict[str, Tensor]:
    """y and the gradients of all tables and parameters."""
    leaves = {name: value.detach().requires_grad_() for name, value in made.leaves().items()}
    y = embed(*made.ids(), **leaves, **options)
    y.backward(made.dy)
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def exact(made: Case, dropout=0.0, seed=None, site=0, eps=1e-5) -> dict[str, Tensor]:
    """The same in float64 by autograd, from torch's own functions."""
    leaves = {name: value.detach().cpu().double().requires_grad_() for name, value in made.leaves().items()}
    tokens, positions, segments = (None if ids is None else ids.cpu() for ids in made.ids())
    z = F.embedding(tokens, leaves["word"]) + F.embedding(positions, leaves["position"])
    if "segment" in leaves:
        z = z + F.embedding(torch.zeros_like(tokens) if segments is None else segments, leaves["segment"])
    if "weight" in leaves:
        z = F.layer_norm(z, z.shape[1:], leaves["weight"], leaves.get("shift"), eps)
    if threshold := threshold_of(dropout):
        z = z * keep_mask(seed.cpu(), site, *z.shape, threshold) * keep_scale(threshold)
    z.backward(made.dy.cpu().double())
    return {"y": z.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("backend", "size"),
    [*itertools.product(["reference", "cpu"], SIZES + ODD_SIZES), *itertools.product(["emulator"], SIZES)],
    ids=str,
)
def test_sizes(backend, size, use, ran):
    check_size(backend, size, use, ran)


@pytest.mark.parametrize("backend", ["cpu", "emulator", CUDA])
def test_views_that_are_not_packed(backend, use, ran):
    use(backend)
    made = case((37, 64), backend)
    tensors = {**made.leaves(), "dy": made.dy}
    odd = {
        name: torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape) for name, value in tensors.items()
    }
    assert all(value.data_ptr() % 16 for value in odd.values())
    strided = {name: value.T.contiguous().T for name, value in tensors.items() if value.dim() == 2}
    expected = run(made)
    assert all(same_bits(run(replace(made, **same)), expected) for same in (odd, strided))
    assert set(ran) == {backend}


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
@pytest.mark.parametrize(("dtype", "parameters"), list(itertools.product(TYPES, TYPES)), ids=str)
def test_types(backend, dtype, parameters, use, ran):
    use(backend)
    made = case((40, 264), backend, dtype, parameters)
    found = run(made)
    assert found["y"].dtype == found["word"].dtype == found["position"].dtype == found["segment"].dtype == dtype
    assert found["weight"].dtype == found["shift"].dtype == parameters
    assert_near(found, exact(made), max(TOLERANCE[dtype], TOLERANCE[parameters]))
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "without",
    [(), ("segments",), ("segments", "segment"), ("shift",), ("weight", "shift"),
     ("weight", "shift", "segments", "segment")],
    ids=str,
)  # fmt: skip
def test_parts(backend, without, use, ran):
    use(backend)
    made = case((45, 1536), backend, without=without)
    for dropout in (0.0, 0.1):
        options = {"dropout": dropout, "seed": seed((1 << 64) - 3, backend), "site": 1 << 31}
        assert_near(run(made, **options), exact(made, **options), 4e-6)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_values_and_constant_rows(backend, use):
    use(backend)
    large = case((40, 512), backend, scale=1e4)
    assert_near(run(large), exact(large), 4e-6)
    flat = case((4, 512), backend, without=("shift",))
    for name in ROWS:
        getattr(flat, name).fill_(1.0)
    assert run(flat)["y"].abs().max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_are_the_reference_s_to_the_bit(backend, use):
    use(backend)
    made = case((33, 768), backend, without=("weight", "shift"))
    for name in ROWS:
        getattr(made, name).fill_(1.0)
    y = embed(*made.ids(), **made.leaves(), dropout=0.3, seed=seed(1 << 40, backend), site=9)
    expected = keep_mask(seed_tensor(1 << 40), 9, 33, 768, threshold_of(0.3))
    assert torch.equal(y.cpu() != 0, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [31, 32, 33, 700])
def test_runs_of_equal_ids_end_anywhere(backend, count, use, ran):
    use(backend)
    made = case((count, 264), backend)
    made.tokens.fill_(60)  # one run over all pieces, and the last row of the table
    made.positions.copy_(torch.arange(count) // 32 % 17)  # runs as long as a piece
    made.segments[count // 2 :] = 1
    assert_near(run(made), exact(made), 4e-6)
    made.tokens.copy_(torch.arange(count) % 61)
    found = run(made)
    assert_near(found, exact(made), 4e-6)
    assert found["word"][made.tokens.max() + 1 :].abs().sum() == 0
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", ["cpu", "emulator", CUDA])
def test_more_tokens_than_pieces_of_the_shortest_length(backend, use, ran):
    use(backend)
    made = case((17_000, 16), backend)
    assert_near(run(made), exact(made), 2e-5)
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_run_gives_the_same_bits(backend, use):
    use(backend)
    made = case((301, 768), backend, torch.bfloat16)
    first = run(made, dropout=0.1, seed=seed(5, backend))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert same_bits(first, run(made, dropout=0.1, seed=seed(5, backend)))
    finally:
        torch.set_num_threads(threads)


def test_schedules_of_the_emulator_give_equal_bits(use, monkeypatch):
    use("emulator")
    results = []
    for schedule in ("0", "1", "7", "12345"):
        monkeypatch.setenv("KERNELS_SCHEDULE", schedule)
        results.append([run(case(size), dropout=0.1, seed=seed_tensor(5)) for size in ((67, 768), (9, 2048))])
    assert all(same_bits(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_torch_s_own_bits_change_on_a_gpu_and_ours_do_not(use):
    use("cuda")
    made = case((65_536, 768), "cuda", without=("weight", "shift"))
    ours = [run(made)["word"] for _ in range(5)]
    assert all(torch.equal(ours[0], other) for other in ours)
    assert_near({"word": ours[0]}, {"word": exact(made)["word"]}, 1e-5)


@pytest.mark.parametrize("backend", PACKED)
@pytest.mark.parametrize("width", [100, 8200])
def test_sizes_that_a_backend_does_not_take(backend, width, use, ran, caplog):
    use(backend, runs=("reference",))
    made = case((4, width), backend)
    assert_near(run(made), exact(made), 4e-6)
    assert set(ran) == {"reference"}
    run(made)
    said = f"embedding on {backend}: width {width} is no multiple of 8 up to 8192; the reference runs"
    assert caplog.text.count(said) == 1


@pytest.mark.parametrize("without", [(), ("segments",), ("weight", "shift")], ids=str)
def test_gradients_of_the_reference_in_float64(without):
    made = case((9, 12), dtype=torch.float64, parameters=torch.float64, without=without)
    leaves = {name: value.clone().requires_grad_() for name, value in made.leaves().items()}

    def call(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        return embed(*made.ids(), **named, dropout=0.2, seed=seed_tensor(1))

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))


def transposed(made: Case) -> Case:
    """The same, whose tables are not contiguous."""
    matrices = {name: value.T.contiguous().T for name, value in made.leaves().items() if value.dim() == 2}
    return replace(made, dy=made.dy.T.contiguous().T, **matrices)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", [replace, transposed])
@pytest.mark.parametrize("without", [(), ("weight", "shift", "segments")], ids=str)
def test_compiled_and_checkpointed(backend, change, without, use, ran):
    use(backend)
    made, options = change(case((70, 64), backend, without=without)), {"dropout": 0.1, "seed": seed(3, backend)}
    expected = run(made, **options)
    leaves = {name: value.detach().requires_grad_() for name, value in made.leaves().items()}
    torch.compile(embed, fullgraph=True)(*made.ids(), **leaves, **options).backward(made.dy)
    assert_near({name: leaf.grad for name, leaf in leaves.items()}, {n: expected[n].double() for n in leaves}, 2e-6)
    again = {name: value.detach().requires_grad_() for name, value in made.leaves().items()}
    y = torch.utils.checkpoint.checkpoint(embed, *made.ids(), use_reentrant=False, **again, **options)
    y.backward(made.dy)
    assert all(torch.equal(leaf.grad, expected[name]) for name, leaf in again.items())
    assert set(ran) == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_results_are_as_a_compiler_was_told(backend, dtype, use, ran):
    use(backend)
    made, key = transposed(case((40, 64), backend, dtype)), seed(3, backend)
    tables = [made.word, made.position, made.segment]
    statistics = [made.weight.new_ones(40) for _ in range(2)]
    for threshold in (0, 6554):
        for vectors in ((made.weight, made.shift), (None, None)):
            check_promises(torch.ops.kernels.embedding, (*made.ids(), *tables, *vectors, 1e-5, threshold, key, 1))
        gradients = (made.dy, *made.ids(), *tables, made.weight, *statistics, threshold, key, 1)
        check_promises(torch.ops.kernels.embedding_gradients, gradients)
    for rows in ([61, 17, 2], [0, 17, 0]):
        check_promises(torch.ops.kernels.embedding_tables, (made.dy, *made.ids(), rows))
    assert set(ran) == {backend}


@pytest.mark.parametrize("without", [(), ("weight", "shift", "segments")], ids=str)
def test_operators_keep_torch_s_rules(without, use):
    use("cpu")
    made = case((6, 64), without=without)
    leaves = [None if each is None else each.requires_grad_() for each in (getattr(made, name) for name in LEAVES)]
    torch.library.opcheck(torch.ops.kernels.embedding, (*made.ids(), *leaves, 1e-5, 6554, seed_tensor(3), 1))


@pytest.mark.parametrize("frozen", ["word", "position", "segment"])
@pytest.mark.parametrize("without", [(), ("weight", "shift")], ids=str)
def test_a_frozen_table_gets_no_gradient(frozen, without, use):
    use("cpu")
    made = case((40, 64), without=without)
    leaves = {name: value.detach().requires_grad_(name != frozen) for name, value in made.leaves().items()}
    embed(*made.ids(), **leaves).backward(made.dy)
    assert leaves.pop(frozen).grad is None
    expected = exact(made)
    assert_near({name: leaf.grad for name, leaf in leaves.items()}, {name: expected[name] for name in leaves}, 4e-6)


def test_a_table_in_fresh_pages_is_zero_where_no_id_points(use):
    use("cpu")
    made = case((40, 1024))
    made.word = torch.zeros(9001, 1024)  # 35 MiB, which are asked for in huge pages
    for _ in range(2):
        gradient = run(made)["word"]
        assert gradient[61:].count_nonzero() == 0 and gradient[:61].count_nonzero() > 0


def test_module_has_the_names_of_the_plain_modules(use):
    use("cpu")
    ours = Embeddings(61, 17, 2, 64)
    assert list(ours.state_dict()) == [
        "word.weight", "position.weight", "segment.weight", "norm.weight", "norm.bias",
    ]  # fmt: skip
    made = case((6, 64))
    expected = ours.norm(
        ours.word(made.tokens) + ours.position(made.positions) + ours.segment(made.segments)
    )  # by the plain modules that it holds
    assert torch.allclose(ours(*made.ids()), expected, atol=1e-6)
    bare = Embeddings(61, 17, 0, 64, norm=False)
    assert list(bare.state_dict()) == ["word.weight", "position.weight"]
    assert torch.equal(bare(*made.ids()[:2]), bare.word(made.tokens) + bare.position(made.positions))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("table", ["word", "position", "segment"])
@pytest.mark.parametrize("wrong", [-1, 61, 1 << 60])
def test_an_id_that_is_not_in_a_table(backend, table, wrong, use):
    use(backend)
    made = case((40, 64))
    ids = {"word": made.tokens, "position": made.positions, "segment": made.segments}
    ids[table][7] = wrong
    message = f"{table} id {wrong} is not in the {table} table, which has {ROWS[table]} rows"
    with pytest.raises(ValueError, match=message):
        embed(*made.ids(), **made.leaves())


@pytest.mark.parametrize("backend", PACKED)
@pytest.mark.parametrize("without", [(), ("weight", "shift")], ids=str)
@pytest.mark.parametrize("wrong", [-1, 61, 1 << 60])
def test_an_id_beyond_a_table_shows_on_a_gpu(backend, without, wrong, use):
    use(backend)
    made = case((40, 64), backend, without=without)
    made.tokens[7] = wrong
    found = run(made)
    assert found["y"][7].isnan().all() and not found["y"][:7].isnan().any() and not found["y"][8:].isnan().any()
    made.tokens[7] = 0
    right = exact(made)
    others = [row for row in range(61) if row not in made.tokens[7:8]]
    assert_near({"word": found["word"][others]}, {"word": right["word"][others]}, 4e-6)


def test_mistakes():
    made = case((6, 8))
    ids, tables = made.ids(), {name: getattr(made, name) for name in ROWS}
    with pytest.raises(ValueError, match=r"the position table is torch.float64 \[17, 8\]; it must be torch.float32"):
        embed(*ids, made.word, made.position.double())
    with pytest.raises(ValueError, match=r"the segment table is torch.float32 \[2, 7\]; it must be torch.float32"):
        embed(*ids, made.word, made.position, made.segment[:, :7])
    with pytest.raises(ValueError, match=r"weight is \[7\]; it must be \[8\], the width of the tables"):
        embed(*ids, **tables, weight=made.weight[:7])
    with pytest.raises(ValueError, match=r"shift was given without weight; both belong to the norm"):
        embed(*ids, **tables, shift=made.shift)
    with pytest.raises(ValueError, match=r"shift is torch.float64 and weight torch.float32; parameters must be of"):
        embed(*ids, **tables, weight=made.weight, shift=made.shift.double())
    with pytest.raises(ValueError, match=r"positions are torch.int64 \[5\]; they must be int64 \[N\], one for each"):
        embed(made.tokens, made.positions[:5], None, **tables)
    with pytest.raises(ValueError, match=r"tokens are torch.int32 \[6\]; they must be int64 \[N\]"):
        embed(made.tokens.int(), made.positions, None, **tables)
    with pytest.raises(ValueError, match=r"segments were given without a segment table"):
        embed(*ids, made.word, made.position)
    with pytest.raises(ValueError, match=r"segment id 0 is not in the segment table, which has 0 rows"):
        embed(made.tokens, made.positions, None, made.word, made.position, made.segment[:0])
    with pytest.raises(ValueError, match=r"the dropout seed is None; it must be \[1\] int64 on cpu"):
        embed(*ids, **tables, dropout=0.1)


def test_neither_mask_nor_sum_is_stored(use):
    use("cpu")
    made = case((256, 768))
    leaves = {name: value.requires_grad_() for name, value in made.leaves().items()}
    own = {value.data_ptr() for value in (*made.ids(), *leaves.values())}
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(0 if tensor.data_ptr() in own else tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        embed(*made.ids(), **leaves, dropout=0.1, seed=seed_tensor(3))
    assert sum(saved) <= 4 * (256 * 2) + 8  # statistics, seed
