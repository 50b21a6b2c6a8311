"""Models of sentence pairs against transformers' BertForPreTraining, in both directions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.convert.huggingface import from_huggingface, to_huggingface
from engine.convert.model_folder import read_model_folder, write_model_folder
from engine.models.heads import MaskedLMHead, SentencePairHead
from engine.models.model import Model, build_model
from tests.engine.convert.sides import (
    BERT,
    SPECIAL_IDS,
    build_ours,
    build_theirs,
    packed_batch,
    padded_batch,
    randomise,
)

transformers = pytest.importorskip("transformers")


def pair_outputs(model: Model, pair: str, batch: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Logits of tokens [N, V] and of pairs [S, 2]."""
    hidden = model(*batch)
    tokens = model.heads["mlm"](hidden, model.word_embedding)[:, : BERT.vocab_size]
    return tokens, model.heads[pair](hidden[batch[3].cu_seqlens[:-1]])


def build_pair_model(pair: str) -> Model:
    return build_model(BERT, {"mlm": MaskedLMHead(BERT), pair: SentencePairHead(BERT)}, seed=0).eval()


@pytest.mark.parametrize("pair", ["nsp", "sop"])
def test_bert_for_pretraining_is_read(pair: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = transformers.BertForPreTraining(build_theirs(BERT, "mlm").config).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        weights = from_huggingface(read_model_folder(tmp_path)[1], BERT)
    assert not caplog.text
    assert torch.equal(weights["heads.classification.pooler.weight"], theirs.bert.pooler.dense.weight)
    ours = build_pair_model(pair)
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})
    batch = packed_batch(BERT)
    padded = padded_batch(batch[0], batch[2], batch[3])
    expected = theirs(**padded)
    tokens, pairs = pair_outputs(ours, pair, batch)
    torch.testing.assert_close(
        tokens, expected.prediction_logits[padded["attention_mask"].bool()], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(pairs, expected.seq_relationship_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pair", ["nsp", "sop"])
def test_pairs_of_ours_load_in_bert_for_pretraining(pair: str, tmp_path: Path) -> None:
    ours = build_pair_model(pair)
    randomise(ours)
    weights = ours.state_dict()
    weights["encoder.embeddings.word.weight"][BERT.vocab_size :] = 0
    weights["heads.mlm.bias"][BERT.vocab_size :] = 0
    config, tensors = to_huggingface(weights, BERT, ["mlm", pair], SPECIAL_IDS)
    write_model_folder(tmp_path, config, tensors)
    theirs, report = transformers.AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert config["architectures"] == ["BertForPreTraining"] == [type(theirs).__name__]
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = packed_batch(BERT)
    padded = padded_batch(batch[0], batch[2], batch[3])
    expected = theirs.eval()(**padded)
    tokens, pairs = pair_outputs(ours, pair, batch)
    torch.testing.assert_close(
        tokens, expected.prediction_logits[padded["attention_mask"].bool()], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(pairs, expected.seq_relationship_logits, atol=1e-5, rtol=1e-5)
    back = from_huggingface(tensors, BERT)
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    pooler = back["heads.classification.pooler.weight"]  # what fine-tuning begins with
    assert torch.equal(pooler, weights[f"heads.{pair}.pooler.weight"])
    # AutoModel takes the pooler along.
    report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)[1]
    assert not report["missing_keys"]


def test_pooler_without_pairs_is_a_classifiers() -> None:
    tensors = to_huggingface(build_ours(BERT, "classification").state_dict(), BERT, ["classification"], SPECIAL_IDS)[1]
    assert not any(name.startswith(("heads.nsp", "heads.sop")) for name in from_huggingface(tensors, BERT))
