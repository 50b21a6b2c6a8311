"""Our BERT and GPT-2 against transformers' own: values, gradients, folders in both directions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.convert.configs import pad_id_of
from engine.convert.huggingface import arch_from_huggingface, from_huggingface, huggingface_class, to_huggingface
from engine.convert.model_folder import read_model_folder, write_model_folder
from engine.models import dropout, embeddings, heads, layers, transformer
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


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_their_folder_becomes_our_model(arch: ArchConfig, head: str, tmp_path: Path) -> None:
    theirs = build_theirs(arch, head)
    theirs.save_pretrained(tmp_path)
    config, tensors = read_model_folder(tmp_path)
    assert arch_from_huggingface(config) == arch
    ours = build_model(arch, {head: HEADS[head](arch)}, seed=0).eval()
    ours.load_state_dict(from_huggingface(tensors, arch, pad_id_of(config)))
    assert_same(ours, theirs, arch, head)


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_our_folder_loads_in_their_classes(arch: ArchConfig, head: str, tmp_path: Path) -> None:
    ours = build_ours(arch, head)
    labels = LABELS if head in OF_CLASSES else None
    config, tensors = to_huggingface(ours.state_dict(), arch, [head], SPECIAL_IDS, labels)
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors.values())
    write_model_folder(tmp_path / "model", config, tensors)
    auto = getattr(transformers, AUTO_CLASSES[head])
    theirs, report = auto.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(theirs).__name__ == config["architectures"][0]
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.float32
    assert (theirs.config.pad_token_id, theirs.config.bos_token_id, theirs.config.eos_token_id) == (0, 2, 3)
    if head in OF_CLASSES:
        assert theirs.config.num_labels == len(LABELS)
        assert theirs.config.id2label == dict(enumerate(LABELS))
    elif head != "question_answering":
        assert theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    assert_same(ours, theirs.eval(), arch, head)


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_weights_come_back_bit_equal(arch: ArchConfig, head: str) -> None:
    weights = build_ours(arch, head).state_dict()
    config, tensors = to_huggingface(weights, arch, [head], SPECIAL_IDS)
    assert arch_from_huggingface(config) == arch
    labels = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"} if head in OF_CLASSES else None
    assert config.get("id2label") == labels
    back = from_huggingface(tensors, arch, pad_id_of(config))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("arch", "head"), CASES)
def test_training_drops_where_theirs_does(arch: ArchConfig, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dropout, embeddings, heads, layers):  # torch's own draws, so that the masks can be compared
        monkeypatch.setattr(module, "dropout", torch.nn.functional.dropout)
    monkeypatch.setattr(dropout, "is_wanted", lambda *_, **__: False)
    monkeypatch.setattr(transformer, "draw_seed", lambda _: None)
    theirs = build_theirs(arch, head).train()
    ours = build_model(arch, {head: HEADS[head](arch)}, seed=0).train()
    ours.load_state_dict(from_huggingface(theirs.state_dict(), arch, PAD))
    batch = packed_batch(arch, (13,))  # one sequence: both draw masks of the same size in the same order
    torch.manual_seed(3)
    hidden, logits = our_outputs(ours, head, batch)
    torch.manual_seed(3)
    hidden_theirs, logits_theirs = their_outputs(theirs, head, padded_batch(batch[0], batch[2], batch[3]))
    torch.testing.assert_close(hidden, hidden_theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, logits_theirs, atol=1e-5, rtol=1e-5)
    torch.manual_seed(4)
    assert not torch.allclose(our_outputs(ours, head, batch)[0], hidden, atol=1e-2)


@pytest.mark.parametrize("arch", [BERT, PRE_NORM, GPT2], ids=["bert", "pre-norm", "gpt2"])
def test_bare_encoder_of_theirs_has_no_prefix(arch: ArchConfig, tmp_path: Path) -> None:
    theirs = build_theirs(arch, None)
    theirs.save_pretrained(tmp_path)
    config, tensors = read_model_folder(tmp_path)
    pre_norm = "RobertaPreLayerNormModel" if arch.norm_position == "pre" else "BertModel"
    assert config["architectures"] == ["GPT2Model" if arch.causal else pre_norm]
    assert not any(name.startswith(("bert.", "roberta", "transformer.")) for name in tensors)
    weights = from_huggingface(tensors, arch, pad_id_of(config))
    pooler = {name for name in weights if name.startswith("heads.")}
    assert pooler == (set() if arch.causal else {f"heads.classification.pooler.{p}" for p in ("weight", "bias")})
    ours = build_model(arch, {}, seed=0).eval()
    ours.load_state_dict({name: tensor for name, tensor in weights.items() if name not in pooler})
    batch = packed_batch(arch)
    expected, _ = their_outputs(theirs, None, padded_batch(batch[0], batch[2], batch[3]))
    torch.testing.assert_close(ours(*batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", [BERT, PRE_NORM, GPT2], ids=["bert", "pre-norm", "gpt2"])
def test_bare_encoder_of_ours_loads_in_auto_model(arch: ArchConfig, tmp_path: Path) -> None:
    ours = build_ours(arch, "classification")
    write_model_folder(tmp_path, *to_huggingface(ours.state_dict(), arch, [], SPECIAL_IDS))
    theirs, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = packed_batch(arch)
    expected, _ = their_outputs(theirs.eval(), None, padded_batch(batch[0], batch[2], batch[3]))
    torch.testing.assert_close(ours(*batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arch", "head"), [(BERT, "mlm"), (PRE_NORM, "mlm"), (GPT2, "lm")], ids=["bert", "pre", "gpt2"]
)
def test_language_model_of_ours_loads_in_auto_model(arch: ArchConfig, head: str, tmp_path: Path) -> None:
    ours = build_ours(arch, head)
    write_model_folder(tmp_path, *to_huggingface(ours.state_dict(), arch, [head], SPECIAL_IDS))
    theirs, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    # BertForMaskedLM has no pooler, so BertModel makes a new one, as from any folder of that class.
    assert set(report["missing_keys"]) == (set() if arch.causal else {"pooler.dense.weight", "pooler.dense.bias"})
    assert all(name.startswith(("cls.", "lm_head.")) for name in report["unexpected_keys"])
    batch = packed_batch(arch)
    expected, _ = their_outputs(theirs.eval(), None, padded_batch(batch[0], batch[2], batch[3]))
    torch.testing.assert_close(ours(*batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pad", [0, 1, 6])
def test_positions_of_a_pre_norm_bert_begin_behind_the_padding_token(pad: int, tmp_path: Path) -> None:
    ours = build_ours(PRE_NORM, "mlm")
    config, tensors = to_huggingface(ours.state_dict(), PRE_NORM, ["mlm"], SPECIAL_IDS | {"pad": pad})
    assert config["max_position_embeddings"] == 31 + pad + 1
    assert not tensors["roberta_prelayernorm.embeddings.position_embeddings.weight"][: pad + 1].any()
    assert arch_from_huggingface(config) == PRE_NORM
    assert torch.equal(
        from_huggingface(tensors, PRE_NORM, pad)["encoder.embeddings.position.weight"],
        ours.encoder.embeddings.position.weight,
    )
    write_model_folder(tmp_path, config, tensors)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    tokens = torch.arange(100, 100 + PRE_NORM.max_positions)  # the longest sequence: the last row of the table is used
    batch = (tokens, torch.arange(len(tokens)), None, PackedLayout.from_lengths((len(tokens),)))
    expected = theirs(input_ids=tokens[None]).logits[0]
    torch.testing.assert_close(our_outputs(ours, "mlm", batch)[1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pad", [0, 2, 30])
def test_positions_of_a_pre_norm_bert_are_not_shifted_to_fit(pad: int) -> None:
    tensors = to_huggingface(build_ours(PRE_NORM, "mlm").state_dict(), PRE_NORM, ["mlm"], SPECIAL_IDS | {"pad": 1})[1]
    found = 31 + 2 - (pad + 1)  # a table of 33 rows, of which config.json says that pad + 1 are not used
    with pytest.raises(
        ValueError,
        match=rf"embeddings.position.weight has the shape \[{found}, 36\], but config.json asks for \[31, 36\]",
    ):
        from_huggingface(tensors, PRE_NORM, pad)
    with pytest.raises(ValueError, match="counts positions from the id of the padding token, and there is none"):
        from_huggingface(tensors, PRE_NORM)


def test_pre_norm_bert_without_a_padding_token_or_with_pairs_is_refused() -> None:
    weights = build_ours(PRE_NORM, "mlm").state_dict()
    with pytest.raises(ValueError, match="counts positions from the id of the padding token, and there is none"):
        to_huggingface(weights, PRE_NORM, ["mlm"], {"cls": 2})
    with pytest.raises(
        ValueError, match=r"no transformers class: a roberta-prelayernorm with the head mlm \+ nsp; it may have none or"
    ):
        to_huggingface(weights, PRE_NORM, ["mlm", "nsp"], SPECIAL_IDS)


def test_old_files_are_read() -> None:
    """Names of TensorFlow days, buffers among the weights, second names of tied tensors, fp16."""
    weights = build_ours(BERT, "mlm").half().state_dict()
    tensors = to_huggingface(weights, BERT, ["mlm"], SPECIAL_IDS)[1]
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.half()
        for name, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(31)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"].clone()
    back = from_huggingface(old, BERT)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name].float()) for name in weights)

    weights = build_ours(GPT2, "lm").state_dict()
    tensors = to_huggingface(weights, GPT2, [], SPECIAL_IDS)[1]
    buffers = {"h.0.attn.bias": torch.ones(1, 1, 31, 31).tril(), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    back = from_huggingface(tensors | buffers | {"lm_head.weight": tensors["wte.weight"].clone()}, GPT2)
    assert back.keys() == weights.keys()


def test_vocabulary_padding() -> None:
    weights = build_ours(BERT, "mlm").state_dict()
    tensors = to_huggingface(weights, BERT, ["mlm"], SPECIAL_IDS)[1]
    assert tensors["bert.embeddings.word_embeddings.weight"].shape == (1003, 36)
    assert tensors["cls.predictions.bias"].shape == (1003,)
    back = from_huggingface(tensors, BERT)
    assert back["encoder.embeddings.word.weight"].shape == (1024, 36)
    assert back["heads.mlm.bias"].shape == (1024,)
    assert not back["encoder.embeddings.word.weight"][1003:].any()


def test_import_errors() -> None:
    tensors = to_huggingface(build_ours(BERT, "mlm").state_dict(), BERT, ["mlm"], SPECIAL_IDS)[1]
    query = "bert.encoder.layer.1.attention.self.query.weight"
    with pytest.raises(ValueError, match=rf"1 tensors of the bert are missing: {query}"):
        from_huggingface({name: tensor for name, tensor in tensors.items() if name != query}, BERT)
    with pytest.raises(ValueError, match=r"vocab_size is 1004 in config\.json, but the weights have 1003"):
        from_huggingface(tensors, dataclasses.replace(BERT, vocab_size=1004))
    with pytest.raises(
        ValueError, match=r"layers.0.mlp.up.weight has the shape \[50, 36\], but .* asks for \[51, 36\]"
    ):
        from_huggingface(tensors, dataclasses.replace(BERT, intermediate_size=51))
    with pytest.raises(ValueError, match=r"16 tensors have no place in this bert: bert\.encoder\.layer\.1\..*, \.\.\."):
        from_huggingface(tensors, dataclasses.replace(BERT, num_layers=1))
    untied = tensors | {"cls.predictions.decoder.weight": torch.zeros(1003, 36)}
    with pytest.raises(ValueError, match=r"cls\.predictions\.decoder\.weight differs from bert\.embeddings\.word_emb"):
        from_huggingface(untied, BERT)


def test_export_errors() -> None:
    weights = build_ours(BERT, "classification").state_dict()
    with pytest.raises(ValueError, match="2 labels are given, but the classifier has 3"):
        to_huggingface(weights, BERT, ["classification"], SPECIAL_IDS, ["a", "b"])
    with pytest.raises(ValueError, match="labels must differ from each other, found a, b, a"):
        to_huggingface(weights, BERT, ["classification"], SPECIAL_IDS, ["a", "b", "a"])
    with pytest.raises(ValueError, match=r"weights lack 5 tensors of BertForMaskedLM: heads\.mlm\.dense\.weight"):
        to_huggingface(weights, BERT, ["mlm"], SPECIAL_IDS)
    with pytest.raises(ValueError, match="no transformers class: a bert with the head lm; it may have none or class"):
        to_huggingface(weights, BERT, ["lm"], SPECIAL_IDS)
    with pytest.raises(ValueError, match=r"weights lack 4 tensors of BertForPreTraining: heads\.nsp\.pooler\.weight"):
        to_huggingface(build_ours(BERT, "mlm").state_dict(), BERT, ["mlm", "nsp"], SPECIAL_IDS)
    with pytest.raises(ValueError, match=r"no transformers class: a bert with the head mlm \+ classification"):
        to_huggingface(weights, BERT, ["mlm", "classification"], SPECIAL_IDS)


def test_architectures_without_a_class_are_refused() -> None:
    assert huggingface_class(BERT) == "bert"
    assert huggingface_class(GPT2) == "gpt2"
    assert huggingface_class(PRE_NORM) == "roberta-prelayernorm"
    for change, message in [
        ({"causal": True}, "no transformers class: arch.norm_position is 'post', gpt2 has 'pre'"),
        ({"embedding_norm": False}, "no transformers class: arch.embedding_norm is False, bert has True"),
        ({"num_segments": 0}, "no transformers class: arch.num_segments is 0, bert has at least 1"),
        (
            {"norm_position": "pre", "embedding_norm": False},
            "no transformers class: arch.embedding_norm is False, roberta-prelayernorm has True",
        ),
        (
            {"norm_position": "pre", "activation": "gelu_tanh"},
            "no transformers class: arch.activation is 'gelu_tanh', roberta-prelayernorm has 'gelu'",
        ),
        (
            {"norm_position": "pre", "num_segments": 0},
            "no transformers class: arch.num_segments is 0, roberta-prelayernorm has at least 1",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            huggingface_class(dataclasses.replace(BERT, **change))
    with pytest.raises(ValueError, match=r"arch\.num_segments is 2, gpt2 has 0"):
        huggingface_class(dataclasses.replace(GPT2, num_segments=2))
