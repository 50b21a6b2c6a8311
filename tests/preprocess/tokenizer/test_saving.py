"""Every kind of tokenizer with every template, loaded by AutoTokenizer beside every architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preprocess.tokenizer import BERT, CAUSAL_TEXTS, LANGUAGE_MODEL, Tokenizer, TrainingSettings, load_tokenizer, train
from preprocess.tokenizer.training import TYPES

TEXTS = ["The cat sat on the mat, and the dog ran.", "人山人海, a naïve café", "the end of the mat and the sea"] * 8
CLASSES = {"bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel", "roberta": "RobertaForMaskedLM"}
SIZES = {"bpe": 300, "unigram": 36, "sentencepiece_bpe": 60}


@pytest.fixture(scope="module", params=TYPES)
def trained(request) -> Tokenizer:
    size = SIZES.get(request.param, 100)
    return train(TEXTS, TrainingSettings(type=request.param, vocab_size=size, special_tokens=["<ent>"]))


@pytest.mark.parametrize("architecture", [None, *CLASSES])
@pytest.mark.parametrize("template", [BERT, LANGUAGE_MODEL, CAUSAL_TEXTS])
def test_auto_tokenizer(tmp_path: Path, trained: Tokenizer, template: str, architecture: str | None) -> None:
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path, template)
    if architecture:
        config = {"model_type": architecture, "architectures": [CLASSES[architecture]], "vocab_size": 300}
        (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    first, second = (trained.encode([text])[0].tolist() for text in ("the cat, 人海 x", "the end"))
    ids = trained.special_ids
    single, pair = {
        BERT: ([ids["cls"], *first, ids["sep"]], [ids["cls"], *first, ids["sep"], *second, ids["sep"]]),
        LANGUAGE_MODEL: ([ids["bos"], *first], [ids["bos"], *first, *second]),
        CAUSAL_TEXTS: ([*first, ids["eos"]], [*first, ids["eos"], *second, ids["eos"]]),
    }[template]
    encoded, paired = theirs("the cat, 人海 x"), theirs("the cat, 人海 x", "the end")
    assert (encoded["input_ids"], paired["input_ids"]) == (single, pair)
    names = ["input_ids", "token_type_ids", "attention_mask"] if template == BERT else ["input_ids", "attention_mask"]
    assert list(encoded) == names
    if template == BERT:
        assert paired["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    roles = ("pad", "unk", "cls", "sep", "mask") if template == BERT else tuple(ids)
    assert {role: getattr(theirs, f"{role}_token_id") for role in roles} == {role: ids[role] for role in roles}
    assert len(theirs) == trained.vocab_size
    assert theirs("<ent>", add_special_tokens=False)["input_ids"] == [trained.vocab_size - 1]


def test_same_bytes_and_same_digest(tmp_path: Path, trained: Tokenizer) -> None:
    for name in ("a", "b"):
        trained.save(tmp_path / name, LANGUAGE_MODEL)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(trained.files)
    for name in trained.files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded = load_tokenizer(tmp_path / "a")
    assert (loaded.digest, loaded.special_ids) == (trained.digest, trained.special_ids)
    loaded.save(tmp_path / "c", LANGUAGE_MODEL)
    for name in trained.files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_special_tokens_with_odd_names(tmp_path: Path) -> None:
    """A template that was written as text would take ":1" and spaces for its own marks."""
    transformers = pytest.importorskip("transformers")
    trained = train(TEXTS, TrainingSettings(vocab_size=100))
    odd = Tokenizer(
        [*trained.tokens, "<a:1>", "$B:x"], {"unk": "[UNK]", "cls": "<a:1>", "sep": "$B:x"}, trained.pipeline
    )
    odd.save(tmp_path, LANGUAGE_MODEL)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("the")["input_ids"] == [odd.vocab_size - 2, *odd.encode(["the"])[0].tolist()]


def test_templates_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no template 'gpt'; there are: bert, language_model, causal_texts"):
        tokenizer.save(tmp_path, "gpt")
