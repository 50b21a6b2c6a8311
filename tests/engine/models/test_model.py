"""The model as a whole: first weights, boundaries, padding of the vocabulary, heads."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.config.arch import ArchConfig, padded_vocab_size
from engine.models.heads import CausalLMHead, MaskedLMHead, SequenceClassificationHead
from engine.models.layout import PackedLayout
from engine.models.model import Model, build_model

BERT = ArchConfig(
    vocab_size=1003, hidden_size=36, num_layers=2, num_heads=3, intermediate_size=50, max_positions=31, init_std=0.1
)
GPT2 = dataclasses.replace(
    BERT,
    norm_position="pre",
    causal=True,
    num_segments=0,
    embedding_norm=False,
    activation="gelu_tanh",
    norm_eps=1e-5,
)
ARCHS = {
    "bert": BERT,
    "gpt2": GPT2,
    "prefix-free": dataclasses.replace(BERT, norm_position="pre", num_segments=3, embedding_norm=False),
    "post-norm causal": dataclasses.replace(BERT, causal=True),
}
LENGTHS = (5, 5, 1, 13, 2)


def build(arch: ArchConfig, seed: int = 0) -> Model:
    head = CausalLMHead(arch) if arch.causal else MaskedLMHead(arch)
    heads = {"lm" if arch.causal else "mlm": head, "classification": SequenceClassificationHead(arch, 3)}
    return build_model(arch, heads, seed)


def batch(arch: ArchConfig, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor, Tensor | None, PackedLayout]:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(arch.vocab_size, (sum(lengths),), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])
    segments = torch.randint(arch.num_segments, tokens.shape, generator=generator) if arch.num_segments else None
    return tokens, positions, segments, PackedLayout.from_lengths(lengths)


@pytest.mark.parametrize("name", ARCHS)
def test_sequences_do_not_see_each_other(name: str) -> None:
    arch = ARCHS[name]
    model = build(arch).eval()
    tokens, positions, segments, layout = batch(arch)
    before = model(tokens, positions, segments, layout)
    changed = tokens.clone()
    changed[11:24] = (changed[11:24] + 1) % arch.vocab_size
    after = model(changed, positions, segments, layout)
    assert torch.equal(before[:11], after[:11])
    assert torch.equal(before[24:], after[24:])
    assert (before[11:24] != after[11:24]).any(1).all()


@pytest.mark.parametrize("name", ARCHS)
def test_only_a_causal_model_is_blind_to_later_tokens(name: str) -> None:
    arch = ARCHS[name]
    model = build(arch).eval()
    tokens, positions, segments, layout = batch(arch)
    before = model(tokens, positions, segments, layout)
    changed = tokens.clone()
    changed[16] = (changed[16] + 1) % arch.vocab_size
    after = model(changed, positions, segments, layout)
    assert torch.equal(before[11:16], after[11:16]) == arch.causal
    assert (before[16:24] != after[16:24]).any(1).all()


@pytest.mark.parametrize("arch", [BERT, GPT2], ids=["bert", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_of_the_vocabulary_gets_no_probability_and_no_gradient(arch: ArchConfig, dtype: torch.dtype) -> None:
    model = build(arch)
    model = model.half() if dtype == torch.float16 else model.to(dtype)
    assert not model.word_embedding[arch.vocab_size :].any()
    tokens, positions, segments, layout = batch(arch)
    head = model.heads["lm" if arch.causal else "mlm"]
    logits = head(model(tokens, positions, segments, layout), model.word_embedding)
    assert logits.shape == (sum(LENGTHS), padded_vocab_size(arch.vocab_size)) == (26, 1024)
    assert logits.dtype == dtype
    assert (logits[:, arch.vocab_size :] == -torch.inf).all()
    F.cross_entropy(logits.float(), tokens).backward()
    assert not logits.softmax(-1)[:, arch.vocab_size :].any()
    assert model.word_embedding.grad is not None
    assert not model.word_embedding.grad[arch.vocab_size :].any()
    assert model.word_embedding.grad[: arch.vocab_size].any()
    if not arch.causal:
        assert not head.bias.grad[arch.vocab_size :].any()
    for parameter in head.parameters():
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("arch", [BERT, GPT2], ids=["bert", "gpt2"])
def test_padding_bias_may_stay_in_fp32(arch: ArchConfig) -> None:
    """DeepSpeed moves the parameters to bf16 and leaves the buffers."""
    model = build(arch)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    head = model.heads["lm" if arch.causal else "mlm"]
    assert head.padding_bias.dtype == torch.float32
    logits = head(torch.randn(3, 36, dtype=torch.bfloat16), model.word_embedding)
    assert logits.dtype == torch.bfloat16
    assert (logits[:, arch.vocab_size :] == -torch.inf).all()


def test_padding_bias_is_not_saved_and_moves_with_the_model() -> None:
    head = CausalLMHead(BERT)
    assert not head.state_dict()
    assert head.to(torch.bfloat16).float().padding_bias.tolist() == [0.0] * 1003 + [-math.inf] * 21


@pytest.mark.parametrize("arch", [BERT, GPT2], ids=["bert", "gpt2"])
def test_bf16_follows_fp32(arch: ArchConfig) -> None:
    model = build(arch).eval()
    tokens, positions, segments, layout = batch(arch)
    expected = model(tokens, positions, segments, layout)
    found = model.to(torch.bfloat16)(tokens, positions, segments, layout)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.02 * expected.norm()


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = build(GPT2, seed=7).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = build(GPT2, seed=7).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    three = build(GPT2, seed=8).state_dict()
    assert not torch.equal(one["heads.classification.score.weight"], three["heads.classification.score.weight"])
    assert not torch.equal(one["encoder.embeddings.word.weight"], three["encoder.embeddings.word.weight"])


@pytest.mark.parametrize("arch", [BERT, GPT2], ids=["bert", "gpt2"])
def test_first_weights_have_the_papers_deviations(arch: ArchConfig) -> None:
    wide = dataclasses.replace(arch, hidden_size=96, intermediate_size=384, num_layers=8, init_std=0.02)
    for name, parameter in build(wide).named_parameters():
        if parameter.dim() == 1:
            expected = torch.ones if name.endswith("norm.weight") else torch.zeros
            assert torch.equal(parameter, expected(parameter.shape)), name
            continue
        residual = name.endswith(("attention.output.weight", "mlp.down.weight")) and arch.norm_position == "pre"
        std = 0.02 / 4 if residual else 0.02
        rows = parameter[: arch.vocab_size]
        assert abs(rows.std().item() / std - 1) < 4 / math.sqrt(2 * rows.numel()) + 1e-3, name
        assert abs(rows.mean().item()) < 4 * std / math.sqrt(rows.numel()), name


def test_parameter_names() -> None:
    names = [name for name, _ in build(BERT).named_parameters() if ".layers.1." not in name]
    assert names == [
        "encoder.embeddings.word.weight",
        "encoder.embeddings.position.weight",
        "encoder.embeddings.segment.weight",
        "encoder.embeddings.norm.weight",
        "encoder.embeddings.norm.bias",
        "encoder.layers.0.attention.qkv.weight",
        "encoder.layers.0.attention.qkv.bias",
        "encoder.layers.0.attention.output.weight",
        "encoder.layers.0.attention.output.bias",
        "encoder.layers.0.attention_norm.weight",
        "encoder.layers.0.attention_norm.bias",
        "encoder.layers.0.mlp.up.weight",
        "encoder.layers.0.mlp.up.bias",
        "encoder.layers.0.mlp.down.weight",
        "encoder.layers.0.mlp.down.bias",
        "encoder.layers.0.mlp_norm.weight",
        "encoder.layers.0.mlp_norm.bias",
        "heads.mlm.bias",
        "heads.mlm.dense.weight",
        "heads.mlm.dense.bias",
        "heads.mlm.norm.weight",
        "heads.mlm.norm.bias",
        "heads.classification.pooler.weight",
        "heads.classification.pooler.bias",
        "heads.classification.classifier.weight",
        "heads.classification.classifier.bias",
    ]
    gpt2 = [name for name, _ in build(GPT2).named_parameters() if ".layers." not in name]
    assert gpt2 == [
        "encoder.embeddings.word.weight",
        "encoder.embeddings.position.weight",
        "encoder.final_norm.weight",
        "encoder.final_norm.bias",
        "heads.classification.score.weight",
    ]


@pytest.mark.parametrize("arch", [BERT, GPT2], ids=["bert", "gpt2"])
def test_classification_of_filler_is_harmless(arch: ArchConfig) -> None:
    model = build(arch).eval()
    tokens, positions, segments, layout = batch(arch, (4, 3))
    hidden = model(tokens, positions, segments, layout)
    expected = model.heads["classification"](hidden, layout)
    filled = model.heads["classification"](hidden, PackedLayout.from_lengths((4, 3, 0, 0)))
    assert filled.shape == (4, 3)
    torch.testing.assert_close(filled[:2], expected)


def test_segments_default_to_the_first() -> None:
    model = build(BERT).eval()
    tokens, positions, _, layout = batch(BERT)
    assert torch.equal(model(tokens, positions, None, layout), model(tokens, positions, tokens * 0, layout))


def test_errors() -> None:
    tokens, positions, segments, layout = batch(BERT)
    with pytest.raises(ValueError, match=r"segments were given to a model without them: arch\.num_segments is 0"):
        build(GPT2)(tokens, positions, segments, layout)
    with pytest.raises(ValueError, match=r"arch\.hidden_size \(36\) must be a multiple of arch\.num_heads \(5\)"):
        build_model(dataclasses.replace(BERT, num_heads=5), {}, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "arch.num_layers is 0: it must be at least 1"),
        ({"num_heads": 0}, "arch.num_heads is 0: it must be at least 1"),
        ({"num_segments": -1}, "arch.num_segments is -1: it must be 0 (no segment embedding) or more"),
        ({"activation": "relu"}, "arch.activation is 'relu': it must be one of gelu, gelu_tanh"),
        ({"norm_position": "mid"}, "arch.norm_position is 'mid': it must be one of post, pre"),
        ({"hidden_dropout": 1.0}, "arch.hidden_dropout is 1.0: it must be at least 0 and below 1"),
        ({"norm_eps": 0.0}, "arch.norm_eps is 0.0: it must be above 0"),
        ({"init_std": math.nan}, "arch.init_std is nan: it must be above 0"),
    ],
)
def test_problems(change: dict[str, Any], message: str) -> None:
    assert dataclasses.replace(BERT, **change).problems() == [message]
    assert not BERT.problems()
