"""Folders as transformers itself writes them for the models of the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.tokenizer import TrainingSettings, load_tokenizer, train
from tests.preprocess.tokenizer.odd_texts import SAMPLES, differing, real_lines

CLASSES = {
    "AlbertTokenizer": "unigram",
    "T5Tokenizer": "unigram",
    "LlamaTokenizer": "sentencepiece_bpe",
    "XLMRobertaTokenizer": "unigram",
    "RobertaTokenizer": "bpe",
    "GPT2Tokenizer": "bpe",
}


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_equals_transformers_and_is_saved_alike(shared_data: Path, tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    lines = real_lines(shared_data, 30_000)
    trained = train(lines, TrainingSettings(type=CLASSES[name], vocab_size=3500))
    trained.save(tmp_path / "trained")
    if name == "XLMRobertaTokenizer":
        pieces = [(piece.piece, piece.score) for piece in trained.pipeline.proto.pieces]
        made = transformers.XLMRobertaTokenizer(vocab=pieces)
    else:
        made = getattr(transformers, name).from_pretrained(tmp_path / "trained")
    made.save_pretrained(tmp_path / "theirs")
    tokenizer = load_tokenizer(tmp_path / "theirs")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    texts = lines[:600] + [sample for sample in SAMPLES if "<" not in sample and "[" not in sample]
    assert differing(tokenizer, theirs, texts) == []
    assert len(theirs) == tokenizer.vocab_size
    tokenizer.save(tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours").digest == tokenizer.digest
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    expected = theirs(lines, add_special_tokens=False)["input_ids"]
    assert ours(lines, add_special_tokens=False)["input_ids"] == expected
