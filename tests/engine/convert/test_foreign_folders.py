"""Folders of transformers that are old, odd or without a class; what is refused, and how."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from engine.convert.huggingface import from_huggingface, huggingface_class, to_huggingface
from tests.engine.convert.sides import (
    BERT,
    GPT2,
    PRE_NORM,
    SPECIAL_IDS,
    build_ours,
)

transformers = pytest.importorskip("transformers")


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
