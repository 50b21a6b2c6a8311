"""Prefix masking through whole models, and keys and values that are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, pack
from engine.data.filler import filled
from engine.models import attention, attention_libraries
from engine.models.cache import KeyValueCache
from engine.models.layout import PackedLayout
from engine.models.model import Model, build_model
from engine.objectives.base import encode

SIZES = {"vocab_size": 61, "hidden_size": 64, "num_heads": 2, "intermediate_size": 96, "num_layers": 2, "init_std": 0.2}
BERT = ArchConfig(**SIZES, max_positions=40)  # type: ignore[arg-type]
GPT2 = replace(
    BERT, causal=True, norm_position="pre", embedding_norm=False, num_segments=0, norm_eps=1e-5, activation="gelu_tanh"
)
LENGTHS, PREFIXES = (9, 4, 4, 17, 1, 9, 2), (3, 4, 0, 11, 1, 8, 1)


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Attention by our operator, and by torch."""
    monkeypatch.setattr(attention, "is_wanted", lambda *_, **__: request.param == "kernels")
    return str(request.param)


def batch_of(arch: ArchConfig, with_prefixes: bool = True) -> PackedBatch:
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randint(0, 61, (length,), generator=generator).numpy() for length in LENGTHS]
    batch = pack(rows)
    if not with_prefixes:
        return batch
    return replace(batch, layout=replace(batch.layout, prefix_lengths=torch.tensor(PREFIXES, dtype=torch.int32)))


def visible(length: int, prefix: int) -> Tensor:
    """[L, L] bool: whether query i sees key j, written out."""
    return torch.tensor([[j <= i or j < prefix for j in range(length)] for i in range(length)])


def test_transformers_gives_the_same_hidden_states_by_a_mask_of_each_sequence(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from engine.convert.huggingface import to_huggingface
    from engine.convert.model_folder import write_model_folder

    model = build_model(BERT, {}, seed=1).eval()
    config, tensors = to_huggingface(model.state_dict(), BERT, [], {"pad": 0})
    write_model_folder(tmp_path, config, tensors)
    theirs = transformers.BertModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    batch = batch_of(BERT)
    with torch.no_grad():
        ours = encode(model, batch).split(LENGTHS)
        for hidden, tokens, prefix in zip(ours, batch.tokens.split(LENGTHS), PREFIXES, strict=True):
            allowed = visible(len(tokens), prefix)[None, None]
            mask = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
            expected = theirs(tokens[None], attention_mask=mask).last_hidden_state[0]
            torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", [BERT, GPT2], ids=["bert", "gpt2"])
def test_a_prefix_sees_only_itself_and_the_rest_what_is_before(arch: ArchConfig) -> None:
    model, batch = build_model(arch, {}, seed=1).eval(), batch_of(arch)
    before = encode(model, batch).split(LENGTHS)[3]  # of 17 tokens, 11 of them prefix
    changed = batch.tokens.clone()
    start = sum(LENGTHS[:3])
    changed[start + 13] = (changed[start + 13] + 1) % 61
    after = encode(model, replace(batch, tokens=changed)).split(LENGTHS)[3]
    torch.testing.assert_close(before[:13], after[:13], atol=1e-6, rtol=0)
    assert (before[13:] - after[13:]).abs().amax(-1).min() > 1e-3
    changed = batch.tokens.clone()
    changed[start + 10] = (changed[start + 10] + 1) % 61  # the prefix's last token, which the first sees
    after = encode(model, replace(batch, tokens=changed)).split(LENGTHS)[3]
    assert (before[0] - after[0]).abs().max() > 1e-3


def test_gradients_equal_those_of_a_written_out_mask() -> None:
    layout = batch_of(BERT).layout
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn(sum(LENGTHS), 3, 2, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(sum(LENGTHS), 2, 32, generator=generator, dtype=torch.float64)
    found = attention.attend(qkv, layout, causal=False)
    found.backward(weight)
    reference, parts = qkv.detach().clone().requires_grad_(), []
    for part, length, prefix in zip(reference.split(LENGTHS), LENGTHS, PREFIXES, strict=True):
        query, key, value = part.unbind(1)
        scores = torch.einsum("qhk,phk->hqp", query, key) / 32**0.5
        weights = scores.masked_fill(~visible(length, prefix), -torch.inf).softmax(-1)
        parts.append(torch.einsum("hqp,phk->qhk", weights, value))
    torch.cat(parts).backward(weight)
    torch.testing.assert_close(found, torch.cat(parts))
    assert qkv.grad is not None and reference.grad is not None
    torch.testing.assert_close(qkv.grad, reference.grad)


def test_filler_and_empty_sequences_change_nothing() -> None:
    model, batch = build_model(BERT, {}, seed=1).eval(), batch_of(BERT)
    full = filled(batch, most_tokens=60)
    assert full.layout.prefix_lengths is not None
    assert len(full.layout.prefix_lengths) == len(full.layout.cu_seqlens) - 1 > len(PREFIXES)
    torch.testing.assert_close(encode(model, full)[: sum(LENGTHS)], encode(model, batch), atol=1e-6, rtol=0)
    with_empty = PackedLayout.from_lengths((9, 0, 4, 4, 0, 17, 1, 9, 2))
    prefixes = torch.tensor((3, 0, 4, 0, 5, 11, 1, 8, 1), dtype=torch.int32)
    again = replace(batch, layout=replace(with_empty, prefix_lengths=prefixes))
    torch.testing.assert_close(encode(model, again), encode(model, batch), atol=1e-6, rtol=0)


def test_a_batch_takes_its_prefixes_along() -> None:
    moved = batch_of(BERT).each(lambda tensor: tensor + 1)
    assert moved.layout.prefix_lengths is not None
    assert moved.layout.prefix_lengths.tolist() == [prefix + 1 for prefix in PREFIXES]


def test_flash_kernels_are_not_asked_for_prefixes(monkeypatch: pytest.MonkeyPatch, operators: str) -> None:
    def fail(*_: object) -> Tensor:
        raise AssertionError("a kernel without prefix masks")

    monkeypatch.setattr(attention_libraries, "FUNCTIONS", dict.fromkeys(attention_libraries.FUNCTIONS, fail))
    encode(build_model(BERT, {}, seed=1).eval(), batch_of(BERT))
    if operators == "torch":
        with pytest.raises(AssertionError, match="without prefix masks"):
            encode(build_model(BERT, {}, seed=1).eval(), batch_of(BERT, with_prefixes=False))


def token_by_token(model: Model, batch: PackedBatch, starts: list[int]) -> list[Tensor]:
    """Hidden states of each sequence: of its beginning at once, then of one token after another."""
    rows = list(batch.tokens.split(LENGTHS))
    beginning = pack([row[:start].numpy() for row, start in zip(rows, starts, strict=True)])
    layout = beginning.layout
    if batch.layout.prefix_lengths is not None:
        layout = replace(layout, prefix_lengths=torch.tensor(starts, dtype=torch.int32))
    lengths = torch.tensor(starts)
    cache = KeyValueCache(lengths, max(LENGTHS))
    hidden = model(beginning.tokens, beginning.positions, None, cache.fill_layout(layout))
    found = [[part] for part in hidden.split(starts)]
    longest = max(length - start for length, start in zip(LENGTHS, starts, strict=True))
    for step in range(longest):
        places = [min(start + step, len(row) - 1) for row, start in zip(rows, starts, strict=True)]
        tokens = torch.stack([row[place] for row, place in zip(rows, places, strict=True)])
        positions = cache.lengths.clamp(max=39)
        if int(cache.lengths.max()) >= max(LENGTHS):
            break
        hidden = model(tokens, positions, None, cache.step_layout())
        cache.advance()
        for parts, row, start, new in zip(found, rows, starts, hidden, strict=True):
            if start + step < len(row):
                parts.append(new[None])
    return [torch.cat(parts) for parts in found]


@pytest.mark.parametrize("arch", [BERT, GPT2], ids=["bert", "gpt2"])
def test_kept_keys_and_values_give_what_whole_sequences_give(arch: ArchConfig) -> None:
    model = build_model(arch, {}, seed=1).eval()
    starts = [3, 4, 4, 11, 1, 8, 1]
    batch = batch_of(arch)
    prefixes = None if arch.causal else torch.tensor(starts, dtype=torch.int32)
    batch = replace(batch, layout=replace(batch.layout, prefix_lengths=prefixes))
    with torch.no_grad():
        expected = encode(model, batch).split(LENGTHS)
        found = token_by_token(model, batch, starts)
    for ours, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, whole[: len(ours)], atol=1e-5, rtol=1e-5)
    assert sum(map(len, found)) > sum(starts) + 10


def test_sequences_can_be_chosen_and_repeated() -> None:
    model = build_model(GPT2, {}, seed=1).eval()
    first, second = torch.arange(5, 12), torch.arange(20, 24)
    with torch.no_grad():
        beginning = pack([first.numpy(), second.numpy()])
        cache = KeyValueCache(torch.tensor([7, 4]), 9)
        model(beginning.tokens, beginning.positions, None, cache.fill_layout(beginning.layout))
        cache.select(torch.tensor([1, 0, 1]))
        tokens = torch.tensor([1, 2, 3])
        found = model(tokens, cache.lengths, None, cache.step_layout())
        for number, before in enumerate((second, first, second)):
            whole = torch.cat([before, tokens[number : number + 1]])
            expected = encode(model, pack([whole.numpy()]))[-1]
            torch.testing.assert_close(found[number], expected, atol=1e-5, rtol=1e-5)
