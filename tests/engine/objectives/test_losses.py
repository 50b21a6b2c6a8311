"""Both objectives through the model: they learn, packing does not change a loss, and sequences are apart."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.config.masking import MaskingConfig
from engine.config.optimizer import OptimizerConfig
from engine.config.pretrain import PretrainConfig
from engine.data.batch import PackedBatch, Targets
from engine.data.rows import Piece, PieceSentences, Row, Sentences, TokenRange
from engine.models.layout import PackedLayout
from engine.models.model import Model, build_model
from engine.objectives.base import LossTerm, PretrainingObjective, Vocabulary
from engine.objectives.lm import CausalLM
from engine.objectives.mlm import MaskedLM
from engine.objectives.pairs import PairedMaskedLM
from engine.objectives.registry import CAUSAL, OBJECTIVES, build_objective
from engine.optim.build import build_optimizer
from kernels import build, dispatch

SIZE = 61
IDS = {"unk": 0, "cls": 1, "sep": 2, "mask": 3, "bos": 1, "eos": 2}
VOCABULARY = Vocabulary(SIZE, IDS, np.arange(SIZE) < 4, np.arange(SIZE) > 40)
SIZES = {"vocab_size": SIZE, "hidden_size": 48, "num_heads": 3, "intermediate_size": 96, "num_layers": 2}
BERT = ArchConfig(**SIZES, max_positions=40, hidden_dropout=0.0)
GPT2 = replace(BERT, causal=True, norm_position="pre", embedding_norm=False, num_segments=0, norm_eps=1e-5)
NAMES = ["mlm", "lm"]


def objective_of(name: str) -> PretrainingObjective:
    return MaskedLM(MaskingConfig(rate=0.3), VOCABULARY, seed=1) if name == "mlm" else CausalLM(VOCABULARY)


def parts(name: str, std: float = 0.02) -> tuple[PretrainingObjective, Model]:
    arch = replace(BERT if name == "mlm" else GPT2, init_std=std)
    objective = objective_of(name)
    return objective, build_model(arch, objective.make_heads(arch), seed=1)


def rows(lengths: tuple[tuple[int, ...], ...]) -> list[Row]:
    generator = np.random.default_rng(1)
    return [
        Row(tuple(Piece(generator.integers(4, SIZE, n).astype(np.uint16), bool(n % 3)) for n in row), 0, index)
        for index, row in enumerate(lengths)
    ]


UNEVEN = ((11, 5), (17,), (1, 2, 7), (17, 11))


@pytest.mark.parametrize("name", NAMES)
def test_overfits_one_batch(name):
    torch.manual_seed(0)
    objective, model = parts(name)
    batch = objective.collate(rows(((29,), (19, 13), (23,), (27, 30), (31,))))
    optimizer = build_optimizer(model, OptimizerConfig(lr=5e-3))
    first = None
    for _ in range(50):
        (term,) = objective.losses(model, batch).values()
        loss = term.loss_sum / term.num_targets
        first = first or loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (term,) = objective.losses(model, batch, with_accuracy=True).values()
    assert first == pytest.approx(math.log(SIZE), rel=0.05)
    assert float(term.correct) / term.num_targets >= 0.9
    assert term.loss_sum.item() / term.num_targets < 0.5


def one_by_one(batch: PackedBatch) -> list[PackedBatch]:
    """Each sequence of a batch as a batch of its own."""
    result = []
    (name, target), *_ = batch.targets.items()
    begin = 0
    for length in batch.layout.lengths:
        end = begin + length
        here = (target.index >= begin) & (target.index < end)
        result.append(
            PackedBatch(
                tokens=batch.tokens[begin:end],
                positions=torch.arange(length),
                segments=None,
                layout=PackedLayout.from_lengths([length]),
                targets={name: Targets(target.index[here] - begin, target.labels[here])},
                counts={name: int(here.sum())},
            )
        )
        begin = end
    return result


@pytest.mark.parametrize("name", NAMES)
def test_packed_loss_and_gradients_are_those_of_the_sequences_one_by_one(name):
    objective, model = parts(name, std=0.2)
    model.double()
    batch = objective.collate(rows(UNEVEN))
    (term,) = objective.losses(model, batch, with_accuracy=True).values()
    term.loss_sum.backward()
    packed = {k: p.grad.clone() for k, p in model.named_parameters()}
    model.zero_grad()
    singles = [objective.losses(model, single, with_accuracy=True)[name] for single in one_by_one(batch)]
    total = sum(single.loss_sum for single in singles)
    total.backward()
    assert sum(single.num_targets for single in singles) == term.num_targets == batch.counts[name]
    assert sum(int(single.correct) for single in singles) == int(term.correct)
    assert term.loss_sum.item() == pytest.approx(total.item(), rel=1e-6)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(packed[key], parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_negative_log_likelihood_of_the_labels(name):
    objective, model = parts(name, std=0.2)
    batch = objective.collate(rows(UNEVEN))
    (term,) = objective.losses(model, batch, with_accuracy=True).values()
    target = batch.targets[name]
    logits = logits_of(objective, model, batch).double()
    likelihood = logits[:, :SIZE].softmax(-1)[torch.arange(len(target.labels)), target.labels]
    assert term.loss_sum.item() == pytest.approx(float(-likelihood.log().sum()), rel=1e-5)
    assert int(term.correct) == int((logits.argmax(-1) == target.labels).sum())
    assert term.num_targets == len(target.labels) and term.weight == 1.0
    assert term.loss_sum.dtype == torch.float32
    assert objective.losses(model, batch)[name].correct is None


def logits_of(objective: PretrainingObjective, model: Model, batch: PackedBatch) -> Tensor:
    """The logits of what the objective's head predicts in a batch."""
    kept: list[Tensor] = []
    head: nn.Module = model.heads[objective.name]
    hook = head.register_forward_pre_hook(lambda module, given: kept.extend(given[:2]))
    objective.losses(model, batch)
    hook.remove()
    with torch.no_grad():
        return head(*kept)


@pytest.mark.parametrize("name", NAMES)
def test_changing_one_sequence_leaves_the_others_bit_equal(name):
    objective, model = parts(name, std=0.2)
    batch = objective.collate(rows(UNEVEN))
    before = logits_of(objective, model, batch)
    boundaries = batch.layout.cu_seqlens.tolist()
    index = batch.targets[name].index
    for begin, end in itertools.pairwise(boundaries):
        tokens = batch.tokens.clone()
        tokens[begin:end] = (tokens[begin:end] + 7) % SIZE
        after = logits_of(objective, model, replace(batch, tokens=tokens))
        inside = (index >= begin) & (index < end)
        assert torch.equal(after[~inside], before[~inside])
        assert not inside.any() or not torch.equal(after[inside], before[inside])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_losses_without_whole_logits_are_those_of_torch(name, backend, monkeypatch):
    if backend == "cpu" and (reason := build.missing("cpu")):
        pytest.skip(reason)
    objective, model = parts(name, std=0.2)
    batch = objective.collate(rows(UNEVEN))
    monkeypatch.setattr(dispatch, "measured", dict)
    monkeypatch.delenv("KERNELS_BACKEND", raising=False)
    plain, expected = loss_and_gradients(objective, model, batch)
    monkeypatch.setenv("KERNELS_BACKEND", backend)
    calls = heads_calls(model.heads[name])
    ours, found = loss_and_gradients(objective, model, batch)
    assert [len(given) for given in calls] == [4]  # with labels
    assert ours.loss_sum.item() == pytest.approx(plain.loss_sum.item(), rel=1e-6)
    assert int(ours.correct) == int(plain.correct) and ours.num_targets == plain.num_targets
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert objective.losses(model, batch)[name].loss_sum.item() == pytest.approx(plain.loss_sum.item(), rel=1e-6)


def heads_calls(head: nn.Module) -> list[tuple]:
    """What a head is called with from now on."""
    calls: list[tuple] = []
    head.register_forward_pre_hook(lambda module, given: calls.append(given))
    return calls


def loss_and_gradients(
    objective: PretrainingObjective, model: Model, batch: PackedBatch
) -> tuple[LossTerm, dict[str, Tensor]]:
    term = objective.losses(model, batch, with_accuracy=True)[objective.name]
    model.zero_grad()
    (term.loss_sum * 0.1).backward()
    return term, {key: p.grad.clone() for key, p in model.named_parameters()}


def test_batch_without_targets_costs_nothing():
    objective, model = parts("mlm")
    (term,) = objective.losses(model, objective.collate([Row((Piece(np.array([0], np.uint16), True),), 0, 0)])).values()
    assert term.loss_sum.item() == 0.0 and term.num_targets == 0
    term.loss_sum.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_registry():
    assert set(OBJECTIVES) == set(CAUSAL) == {*NAMES, "mlm,nsp", "mlm,sop"}
    for name, arch in (("mlm", BERT), ("lm", GPT2), ("mlm,nsp", BERT), ("mlm,sop", BERT)):
        assert build_objective(name, PretrainConfig(ds_config="x"), arch, VOCABULARY).name == name
    with pytest.raises(ValueError, match=r"objective lm needs a causal model, and arch.causal is False; .* mlm"):
        build_objective("lm", PretrainConfig(ds_config="x"), BERT, VOCABULARY)
    with pytest.raises(ValueError, match=r"objective mlm needs a bidirectional model, and arch.causal is True; .* lm"):
        build_objective("mlm", PretrainConfig(ds_config="x"), GPT2, VOCABULARY)
    with pytest.raises(ValueError, match=r"objective mlm,nsp needs segments 0 and 1, and arch.num_segments is 1; set"):
        build_objective("mlm,nsp", PretrainConfig(ds_config="x"), replace(BERT, num_segments=1), VOCABULARY)


@pytest.mark.parametrize("pair", ["nsp", "sop"])
def test_pairs_are_learnt_beside_masks(pair):
    """One batch is learnt by heart, both its masks and its pairs."""
    torch.manual_seed(0)
    arch = replace(BERT, init_std=0.05)
    objective = PairedMaskedLM(pair, MaskingConfig(rate=0.3), VOCABULARY, 1, 0.1)
    model = build_model(arch, objective.make_heads(arch), seed=1)
    assert {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("heads.")} == {"mlm", pair}
    batch = objective.collate(pair_rows())
    assert set(batch.counts) == {"mlm", pair} and batch.counts[pair] == 12
    optimizer = build_optimizer(model, OptimizerConfig(lr=5e-3))
    for _ in range(45):
        terms = objective.losses(model, batch)
        sum(term.loss_sum / term.num_targets for term in terms.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    terms = objective.losses(model, batch, with_accuracy=True)
    assert [term.weight for term in terms.values()] == [1.0, 1.0]
    assert int(terms[pair].correct) == 12
    assert int(terms["mlm"].correct) / terms["mlm"].num_targets > 0.8


@pytest.mark.parametrize("pair", ["nsp", "sop"])
def test_pair_loss_is_that_of_each_pair_alone(pair):
    objective = PairedMaskedLM(pair, MaskingConfig(rate=0.3), VOCABULARY, 1, 0.1)
    model = build_model(replace(BERT, init_std=0.2), objective.make_heads(BERT), seed=1)
    batch = objective.collate(pair_rows())
    term = objective.losses(model, batch)[pair]
    loss, right = 0.0, 0
    for begin, end, label in zip(
        batch.layout.cu_seqlens[:-1], batch.layout.cu_seqlens[1:], batch.targets[pair].labels, strict=True
    ):
        layout = PackedLayout.from_lengths([int(end - begin)])
        hidden = model.encoder(batch.tokens[begin:end], torch.arange(end - begin), batch.segments[begin:end], layout)
        head = model.heads[pair]
        pooled = torch.tanh(hidden[0] @ head.pooler.weight.T + head.pooler.bias)
        chances = (pooled @ head.classifier.weight.T + head.classifier.bias).double().softmax(-1)
        loss -= float(chances.detach()[label].log())
        right += int(chances.argmax() == label)
    assert term.loss_sum.item() == pytest.approx(loss, rel=1e-5)
    assert int(term.correct) == right  # counted in training too
    assert term.num_targets == 12


def pair_rows() -> list[Row]:
    """Four rows of three windows, each of two sentences or more, with text of another document."""
    generator = np.random.default_rng(1)
    starts = np.array([0, 6, 13, 20, 30], np.int64)
    other = TokenRange(
        generator.integers(4, SIZE, 30).astype(np.uint16), None, Sentences(starts, np.array([0, 30], np.int64), 6)
    )
    result = []
    for index in range(4):
        pieces = [
            Piece(
                generator.integers(4, SIZE, size).astype(np.uint16),
                True,
                None,
                PieceSentences(np.array([5, 7], np.int64), True, number),
            )
            for number, size in enumerate((11, 9, 12))
        ]
        result.append(Row(tuple(pieces), 0, index, other))
    return result
