"""Filler gives batches few shapes and changes no loss, no gradient and no count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.config.masking import MaskingConfig
from engine.config.train import TrainConfig
from engine.data.batch import PackedBatch, Targets, pack
from engine.data.filler import coarse, filled, power_of_two
from engine.data.rows import Piece, PieceSentences, Row
from engine.data.source import step_batches
from engine.models.model import Model, build_model
from engine.objectives.base import Objective, Vocabulary
from engine.objectives.lm import CausalLM
from engine.objectives.mlm import MaskedLM
from engine.objectives.pairs import PairedMaskedLM
from engine.train.flops import batch_flops
from engine.train.timeline import StepSettings, Timeline
from finetune.tasks.base import Example
from finetune.tasks.classification import Classification
from kernels import build, dispatch
from kernels.cross_entropy import IGNORE_INDEX

SIZE = 61
IDS = {"unk": 0, "cls": 1, "sep": 2, "mask": 3, "bos": 1, "eos": 2}
VOCABULARY = Vocabulary(SIZE, IDS, np.arange(SIZE) < 4, np.arange(SIZE) > 40)
SIZES = {"vocab_size": SIZE, "hidden_size": 48, "num_heads": 3, "intermediate_size": 96, "num_layers": 2}
BERT = ArchConfig(**SIZES, max_positions=40, hidden_dropout=0.0, init_std=0.2)
GPT2 = replace(BERT, causal=True, norm_position="pre", embedding_norm=False, num_segments=0, norm_eps=1e-5)
LENGTHS = (9, 4, 17, 2, 17, 9)


def test_sizes():
    assert [coarse(size) for size in (0, 1, 8, 9, 128, 129, 144, 145, 4075, 4096, 4097)] == [
        8, 8, 8, 16, 128, 144, 144, 160, 4096, 4096, 4608,
    ]  # fmt: skip
    sizes = range(1, 1 << 15)
    assert all(size <= coarse(size) <= max(size * 1.125, size + 7) for size in sizes)
    assert len({coarse(size) for size in range((1 << 13) + 1, (1 << 14) + 1)}) == 8
    assert [power_of_two(size) for size in (0, 1, 8, 9, 64, 65)] == [8, 8, 8, 16, 64, 128]


def unfilled() -> PackedBatch:
    tokens = [np.arange(length) + 5 for length in LENGTHS]
    batch = pack(tokens, [np.arange(length) % 2 for length in LENGTHS])
    targets = {
        "mlm": Targets(torch.tensor([3, 11, 40]), torch.tensor([7, 8, 9])),
        "none": Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)),
    }
    return replace(batch, targets=targets, counts={"mlm": 3, "none": 0})


def test_what_filler_is():
    plain = unfilled()
    batch = filled(plain, 64, 20)
    num = sum(LENGTHS)
    assert len(batch.tokens) == len(batch.positions) == len(batch.segments) == 64 and batch.num_tokens == num
    for name in ("tokens", "positions", "segments"):
        given, found = getattr(plain, name), getattr(batch, name)
        assert torch.equal(found[:num], given) and not found[num:].any()
    layout = batch.layout
    assert layout.cu_seqlens.tolist() == [*plain.layout.cu_seqlens.tolist(), num, num]
    assert layout.cu_seqlens.dtype == torch.int32 and layout.lengths == LENGTHS and layout.runs == plain.layout.runs
    assert (layout.num_filler, layout.max_length, layout.is_fixed) == (64 - num, 20, True)
    assert (plain.layout.num_filler, plain.layout.max_length, plain.layout.is_fixed) == (0, 17, False)
    assert batch.targets["mlm"].index.tolist() == [3, 11, 40, 3, 11, 40, 3, 11]
    assert batch.targets["mlm"].labels.tolist() == [7, 8, 9] + [IGNORE_INDEX] * 5
    assert batch.targets["none"].index.tolist() == [0] * 8
    assert batch.targets["none"].labels.tolist() == [IGNORE_INDEX] * 8
    assert batch.counts == {"mlm": 3, "none": 0}
    moved = batch.each(torch.clone)
    assert moved.num_tokens == num and moved.layout.lengths == LENGTHS and moved.layout.max_length == 20


@pytest.mark.parametrize(("most", "expected"), [(None, 64), (60, 60), (58, 58), (100, 100)])
def test_tokens_are_filled_up_to_the_budget_of_the_rows_where_it_is_known(most, expected):
    batch = filled(unfilled(), most)
    assert len(batch.tokens) == expected
    assert batch.layout.max_length == 32  # of sequences whose bound is not known, a power of two


class Sequences:
    """A source of rows of 32 tokens, of which one in forty is a token short, cut in two at different places."""

    def batch(self, positions: range, step: StepSettings) -> PackedBatch:
        lengths = [length for at in positions for length in (5 + at % 9, 27 - at % 9 - (at % 40 == 0))]
        batch = pack([np.full(length, 7) for length in lengths])
        index = torch.arange(0, batch.num_tokens, 2)
        return replace(batch, targets={"mlm": Targets(index, batch.tokens[index])}, counts={"mlm": len(index)})

    def describe(self, positions: range, step: StepSettings) -> str:
        raise NotImplementedError


def test_batches_of_a_stage_have_one_shape():
    config = TrainConfig(batch_size=16, micro_batch_size=8, steps=50)
    timeline = Timeline([config.stage(seq_length=32, length_ramp={})])
    shapes, real = set(), set()
    for step in timeline:
        work = step_batches(Sequences(), step, 0, 1, fixed_shapes=True)
        plain = step_batches(Sequences(), step, 0, 1)
        for batch, own in zip(work.batches, plain.batches, strict=True):
            shapes.add(tuple(map(len, (batch.tokens, batch.layout.cu_seqlens, batch.targets["mlm"].index))))
            real.add(len(own.tokens))
            assert batch.num_tokens == own.num_tokens and batch.layout.max_length == 32
            assert batch_flops(BERT, batch) == batch_flops(BERT, own)
    assert shapes == {(256, 17, 128)} and len(real) == 2


def piece(size: int, number: int) -> Piece:
    tokens = np.random.default_rng(number).integers(4, SIZE, size).astype(np.uint16)
    return Piece(tokens, number % 2 == 0, None, PieceSentences(np.array([2], np.int64), True, number))


def rows() -> list[Row]:
    sizes = ((11, 5), (17,), (1, 2, 7), (17, 11))
    return [Row(tuple(piece(size, size + row) for size in of_row), 0, row) for row, of_row in enumerate(sizes)]


def examples(labels: list[int]) -> list[Example]:
    return [Example((), np.int64(label)) for label in labels]


def classified() -> tuple[Objective, Model, PackedBatch]:
    task = Classification(["a", "b", "c"], pair=False)
    batch = task.with_targets(
        pack([np.arange(length) + 5 for length in LENGTHS]),
        examples([0, 2, 1, 1, 0, 2]),
    )
    return task, build_model(BERT, {task.name: task.make_head(BERT)}, 1), batch


def last_classified() -> tuple[Objective, Model, PackedBatch]:
    task = Classification(["a", "b"], pair=False)
    batch = task.with_targets(
        pack([np.arange(length) + 5 for length in LENGTHS]),
        examples([0, 1, 1, 0, 0, 1]),
    )
    return task, build_model(GPT2, {task.name: task.make_head(GPT2)}, 1), batch


def pretrained(name: str) -> tuple[Objective, Model, PackedBatch]:
    arch, masking = (GPT2 if name == "lm" else BERT), MaskingConfig(rate=0.3)
    if name == "lm":
        objective = CausalLM(VOCABULARY)
    elif name == "mlm":
        objective = MaskedLM(masking, VOCABULARY, 1)
    else:
        objective = PairedMaskedLM(name, masking, VOCABULARY, 1, 0.1)
    return objective, build_model(arch, objective.make_heads(arch), 1), objective.collate(rows())


CASES = {
    "mlm": partial(pretrained, "mlm"),
    "sop": partial(pretrained, "sop"),
    "lm": partial(pretrained, "lm"),
    "first token": classified,
    "last token": last_classified,
}


@pytest.fixture
def without_measurements(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is preferred to torch unless it is asked for; and no choice outlives the test."""
    monkeypatch.delenv("KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "measured", dict)
    dispatch._candidates.cache_clear()
    yield
    dispatch._candidates.cache_clear()


@pytest.mark.parametrize("spare", [0, 23])  # without a token of filler too, where sequences of filler begin at N
@pytest.mark.parametrize("backend", ["torch", "reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_without_filler(case, backend, spare, without_measurements, monkeypatch):
    if backend == "cpu" and (reason := build.missing("cpu")):
        pytest.skip(reason)
    if backend != "torch":
        monkeypatch.setenv("KERNELS_BACKEND", backend)
    objective, model, batch = CASES[case]()
    plain, gradients = losses(objective, model, batch)
    found, with_filler = losses(objective, model, filled(batch, batch.num_tokens + spare, 40))
    for name, (loss, correct, count) in plain.items():
        assert found[name] == (pytest.approx(loss, rel=1e-6), correct, count), name
    for name, gradient in gradients.items():
        torch.testing.assert_close(with_filler[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def losses(objective: Objective, model: Model, batch: PackedBatch):
    terms = objective.losses(model, batch, with_accuracy=True)
    model.zero_grad()
    sum(term.loss_sum / term.num_targets for term in terms.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return {k: (term.loss_sum.item(), int(term.correct), term.num_targets) for k, term in terms.items()}, gradients
