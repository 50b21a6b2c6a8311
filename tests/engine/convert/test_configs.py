"""config.json of others: defaults, and what is refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from engine.config.arch import ArchConfig
from engine.convert.configs import PRE_NORM, arch_from_huggingface, config_to_huggingface

BERT_BASE = ArchConfig(vocab_size=30522, attention_dropout=0.1)


def test_left_out_keys_have_their_defaults() -> None:
    assert arch_from_huggingface({"model_type": "bert"}) == BERT_BASE
    gpt2 = arch_from_huggingface({"model_type": "gpt2", "n_embd": 96, "n_inner": None})
    assert (gpt2.intermediate_size, gpt2.max_positions, gpt2.num_segments) == (384, 1024, 0)
    assert (gpt2.norm_eps, gpt2.activation, gpt2.norm_position) == (1e-5, "gelu_tanh", "pre")
    assert gpt2.causal
    assert not gpt2.embedding_norm


def test_defaults_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    for config in (transformers.BertConfig(), transformers.GPT2Config(), transformers.RobertaPreLayerNormConfig()):
        expected = arch_from_huggingface(config.to_dict())
        assert arch_from_huggingface({"model_type": config.model_type}) == expected


def test_missing_special_tokens_are_null() -> None:
    config = config_to_huggingface(BERT_BASE, [], {"pad": 7})
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (7, None, None)
    assert "id2label" not in config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config.json: model_type is None: it must be one of bert, gpt2, roberta-prelayernorm"),
        ({"model_type": "t5"}, "config.json: model_type is 't5': it must be one of bert, gpt2, roberta-prelayernorm"),
        (
            {"model_type": "bert", "position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key': only 'absolute' is supported",
        ),
        ({"model_type": "bert", "is_decoder": True}, "is_decoder is True: only False is supported"),
        ({"model_type": "gpt2", "tie_word_embeddings": False}, "tie_word_embeddings is False: only True is supported"),
        ({"model_type": "gpt2", "scale_attn_weights": False}, "scale_attn_weights is False: only True is supported"),
        ({"model_type": "bert", "hidden_act": "relu"}, "the activation is 'relu': it must be one of gelu, gelu_python"),
        (
            {"model_type": PRE_NORM, "hidden_act": "gelu_new"},
            "hidden_act is 'gelu_new': a roberta-prelayernorm must have",
        ),
        ({"model_type": PRE_NORM, "pad_token_id": None}, "counts positions from the id of the padding token"),
        ({"model_type": "bert", "hidden_size": "768"}, r"hidden_size is '768' \(str\): it must be of type int"),
        (
            {"model_type": "bert", "hidden_size": 769},
            r"hidden_size \(769\) must be a multiple of arch.num_heads \(12\)",
        ),
    ],
)
def test_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arch_from_huggingface(config)


def test_a_dropout_set_apart_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        arch_from_huggingface({"model_type": "gpt2", "embd_pdrop": 0.1, "resid_pdrop": 0.1})
        assert not caplog.text
        arch_from_huggingface({"model_type": "gpt2", "embd_pdrop": 0.3})
    assert "embd_pdrop 0.3 is not kept; resid_pdrop is used there too" in caplog.text
