"""Folders that pretraining writes, in transformers' natural call: AutoModel(**AutoTokenizer(text))."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config.arch import ArchOverrides
from engine.config.pretrain import DataConfig, PretrainConfig
from engine.config.train import TrainConfig
from engine.data.batch import pack
from engine.train.pretraining import export, initial_model
from engine.train.resolve import resolve
from preprocess.tokenizer import load_tokenizer
from tests import commands

TEXTS = ("the", "She had a very good opinion of the house", "中文, and words that nobody knows: zxq")


KINDS = {"wordpiece": 1000, "bpe": 500, "unigram": 4000, "sentencepiece_bpe": 4000, "char": 1000, "word": 2000}


@pytest.fixture(scope="module", params=KINDS)
def shards_of_a_kind(
    request: pytest.FixtureRequest, corpus: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Shards of the sample text by a tokenizer of each kind."""
    folder = tmp_path_factory.mktemp(request.param)
    options = ["--type", request.param, "--vocab_size", KINDS[request.param], "--output", folder / "tokenizer"]
    for command, more in (
        ("tokenizer", options),
        ("shards", ["--tokenizer", folder / "tokenizer", "--output", folder / "shards"]),
    ):
        done = commands.preprocess(command, "--corpus", *corpus, *more)
        assert done.returncode == 0, done.stdout
    return folder / "shards"


@pytest.mark.parametrize("preset", ["bert-tiny", "gpt2-tiny"])
def test_transformers_computes_our_logits(preset: str, shards_of_a_kind: Path, tmp_path: Path) -> None:
    """BERT and GPT-2 with every kind of tokenizer."""
    shards = shards_of_a_kind
    transformers = pytest.importorskip("transformers")
    config = PretrainConfig(
        ds_config=str(commands.DS_CONFIGS / "fp32.json"),
        model=preset,
        arch=ArchOverrides(hidden_size=48, num_heads=3, intermediate_size=100),
        data=DataConfig(shards=str(shards), seq_length=64),
        train=TrainConfig(output=str(tmp_path / "run"), batch_size=4, micro_batch_size=4),
    )
    resolved = resolve(config)
    model = initial_model(resolved, fresh=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        export(resolved, tmp_path / "model", model.state_dict())
    causal = resolved.arch.causal
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    theirs = auto.from_pretrained(tmp_path / "model").eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert their_tokenizer.model_max_length == resolved.arch.max_positions
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer.digest == resolved.tokenizer.digest  # what --init_from compares
    ids = tokenizer.special_ids
    for text in TEXTS:
        inputs = their_tokenizer(text, return_tensors="pt")
        inside = tokenizer.encode([text])[0].astype(np.int64)
        tokens = np.array([ids["bos"], *inside] if causal else [ids["cls"], *inside, ids["sep"]])
        assert inputs["input_ids"][0].tolist() == tokens.tolist()
        assert ("token_type_ids" in inputs) is not causal
        batch = pack([tokens])
        with torch.no_grad():
            hidden = model.encoder(batch.tokens, batch.positions, batch.segments, batch.layout)
            head = model.heads[resolved.objective.name]
            ours = head(hidden, model.encoder.embeddings.word.weight)[:, : tokenizer.vocab_size]
            torch.testing.assert_close(ours, theirs(**inputs).logits[0], atol=1e-5, rtol=1e-5)
