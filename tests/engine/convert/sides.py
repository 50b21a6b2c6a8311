"""A model of ours and one of transformers with the same weights, and the same input for both."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.convert.huggingface import from_huggingface
from engine.models.heads import (
    CausalLMHead,
    MaskedLMHead,
    SequenceClassificationHead,
    SpanHead,
    TokenClassificationHead,
)
from engine.models.layout import PackedLayout
from engine.models.model import Model, build_model

transformers = pytest.importorskip("transformers")

BERT = ArchConfig(
    vocab_size=1003,
    hidden_size=36,
    num_layers=2,
    num_heads=3,
    intermediate_size=50,
    max_positions=31,
    norm_eps=1e-6,
    hidden_dropout=0.2,
)
GPT2 = dataclasses.replace(
    BERT,
    norm_position="pre",
    causal=True,
    num_segments=0,
    embedding_norm=False,
    activation="gelu_tanh",
)
PRE_NORM = dataclasses.replace(BERT, norm_position="pre")
LENGTHS = (5, 5, 1, 13, 2)
PAD = 0
LABELS = ("负面", "neutral", "positive")
SPECIAL_IDS = {"pad": PAD, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": 2, "eos": 3}

HEADS: dict[str, Any] = {
    "mlm": MaskedLMHead,
    "lm": CausalLMHead,
    "classification": lambda arch: SequenceClassificationHead(arch, len(LABELS)),
    "token_classification": lambda arch: TokenClassificationHead(arch, len(LABELS)),
    "question_answering": SpanHead,
}
OF_CLASSES = ("classification", "token_classification")
CASES = [
    pytest.param(BERT, "mlm", id="bert-mlm"),
    pytest.param(BERT, "classification", id="bert-classification"),
    pytest.param(BERT, "token_classification", id="bert-tokens"),
    pytest.param(BERT, "question_answering", id="bert-spans"),
    pytest.param(dataclasses.replace(BERT, activation="gelu_tanh", num_segments=1), "mlm", id="bert-tanh-one-segment"),
    pytest.param(PRE_NORM, "mlm", id="pre-norm-mlm"),
    pytest.param(PRE_NORM, "classification", id="pre-norm-classification"),
    pytest.param(PRE_NORM, "token_classification", id="pre-norm-tokens"),
    pytest.param(PRE_NORM, "question_answering", id="pre-norm-spans"),
    pytest.param(GPT2, "lm", id="gpt2-lm"),
    pytest.param(GPT2, "classification", id="gpt2-classification"),
    pytest.param(GPT2, "token_classification", id="gpt2-tokens"),
    pytest.param(GPT2, "question_answering", id="gpt2-spans"),
    pytest.param(dataclasses.replace(GPT2, activation="gelu", intermediate_size=144), "lm", id="gpt2-erf"),
]
AUTO_CLASSES = {
    "mlm": "AutoModelForMaskedLM",
    "lm": "AutoModelForCausalLM",
    "classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
}


def randomise(module: nn.Module) -> None:
    """Give every parameter a value that matters, biases and norms too."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(1 + noise if "orm.weight" in name or ".ln_" in name else noise)


def build_ours(arch: ArchConfig, head: str | None) -> Model:
    model = build_model(arch, {head: HEADS[head](arch)} if head else {}, seed=0)
    randomise(model)
    with torch.no_grad():
        model.word_embedding[arch.vocab_size :] = 0
        if head == "mlm":
            model.heads["mlm"].bias[arch.vocab_size :] = 0
    return model.eval()


def build_theirs(arch: ArchConfig, head: str | None) -> Any:
    """A transformers model from transformers' own arguments, not from our config.json."""
    activation = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[arch.activation]
    num_labels = 2 if head == "question_answering" else len(LABELS)
    common = {"vocab_size": arch.vocab_size, "pad_token_id": PAD, "num_labels": num_labels}
    if arch.causal:
        config = transformers.GPT2Config(
            **common,
            n_embd=arch.hidden_size,
            n_layer=arch.num_layers,
            n_head=arch.num_heads,
            n_inner=arch.intermediate_size,
            n_positions=arch.max_positions,
            activation_function=activation,
            layer_norm_epsilon=arch.norm_eps,
            resid_pdrop=arch.hidden_dropout,
            embd_pdrop=arch.hidden_dropout,
            attn_pdrop=0.0,
            classifier_dropout=arch.hidden_dropout,
            bos_token_id=2,
            eos_token_id=3,
        )
    else:
        pre_norm = arch.norm_position == "pre"
        config = (transformers.RobertaPreLayerNormConfig if pre_norm else transformers.BertConfig)(
            **common,
            hidden_size=arch.hidden_size,
            num_hidden_layers=arch.num_layers,
            num_attention_heads=arch.num_heads,
            intermediate_size=arch.intermediate_size,
            max_position_embeddings=arch.max_positions + (PAD + 1 if pre_norm else 0),
            type_vocab_size=arch.num_segments,
            hidden_act=activation,
            layer_norm_eps=arch.norm_eps,
            hidden_dropout_prob=arch.hidden_dropout,
            attention_probs_dropout_prob=0.0,
        )
    auto = AUTO_CLASSES[head] if head else "AutoModel"
    model = getattr(transformers, auto).from_config(config)
    randomise(model)
    return model.eval()


def packed_batch(
    arch: ArchConfig, lengths: tuple[int, ...] = LENGTHS
) -> tuple[Tensor, Tensor, Tensor | None, PackedLayout]:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, arch.vocab_size, (sum(lengths),), generator=generator)  # 0 is padding
    positions = torch.cat([torch.arange(length) for length in lengths])
    segments = torch.randint(arch.num_segments, tokens.shape, generator=generator) if arch.num_segments else None
    return tokens, positions, segments, PackedLayout.from_lengths(lengths)


def padded_batch(tokens: Tensor, segments: Tensor | None, layout: PackedLayout) -> dict[str, Tensor]:
    """The same sequences as transformers wants them: [S, max_length] with an attention mask."""

    def pad(packed: Tensor) -> Tensor:
        return nn.utils.rnn.pad_sequence(list(packed.split(layout.lengths)), batch_first=True, padding_value=PAD)

    batch = {"input_ids": pad(tokens), "attention_mask": pad(torch.ones_like(tokens))}
    return batch if segments is None else batch | {"token_type_ids": pad(segments)}


def our_outputs(model: Model, head: str | None, batch: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
    """Hidden states [N, D], and logits [N, V] or [S, labels]."""
    hidden = model(*batch)
    if head is None:
        return hidden, None
    if head == "classification":
        return hidden, model.heads[head](hidden, batch[3])
    if head in ("token_classification", "question_answering"):
        return hidden, model.heads[head](hidden)
    return hidden, model.heads[head](hidden, model.word_embedding)[:, : BERT.vocab_size]


def their_outputs(model: Any, head: str | None, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    outputs = model(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    hidden = outputs.hidden_states[-1][real]
    if head is None:
        return hidden, None
    if head == "question_answering":
        return hidden, torch.stack([outputs.start_logits, outputs.end_logits], -1)[real]
    return hidden, outputs.logits if head == "classification" else outputs.logits[real]


def loss_of(hidden: Tensor, logits: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(17)
    weights = [torch.randn(tensor.shape, generator=generator) / 10 for tensor in (hidden, logits)]
    return (hidden * weights[0]).sum() + (logits * weights[1]).sum()


def assert_same(ours: Model, theirs: Any, arch: ArchConfig, head: str) -> None:
    """Hidden states, logits and the gradient of every parameter are equal, packed against padded."""
    batch = packed_batch(arch)
    hidden, logits = our_outputs(ours, head, batch)
    hidden_theirs, logits_theirs = their_outputs(theirs, head, padded_batch(batch[0], batch[2], batch[3]))
    torch.testing.assert_close(hidden, hidden_theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, logits_theirs, atol=1e-5, rtol=1e-5)
    assert logits is not None
    assert logits_theirs is not None
    loss_of(hidden, logits).backward()
    loss_of(hidden_theirs, logits_theirs).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(theirs.named_parameters()))
    expected = from_huggingface(gradients, arch, PAD)
    assert expected.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5 * max(scale, 1), rtol=1e-5, msg=name)
