"""Loading, saving and training tokenizers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from preprocess.tokenizer import CAUSAL_TEXTS, LANGUAGE_MODEL, Tokenizer, load_tokenizer
from preprocess.tokenizer.bert_pipeline import Normalization, WordPiece
from preprocess.tokenizer.roles import ROLES

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_vocabulary(path: Path, tokens: list[str]) -> Path:
    """Write a vocabulary file."""
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


def test_attributes(tokenizer: Tokenizer) -> None:
    assert tokenizer.type == "wordpiece"
    assert tokenizer.vocab_size == len(tokenizer.tokens)
    assert tokenizer.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": 2, "eos": 3}
    assert np.flatnonzero(tokenizer.all_special).tolist() == [0, 1, 2, 3, 4]
    continued = [token for token, flag in zip(tokenizer.tokens, tokenizer.continuation, strict=True) if flag]
    assert continued == [token for token in tokenizer.tokens if token.startswith("##")]
    ids, _ = tokenizer.encode(["The masking, token!"])
    assert tokenizer.decode(ids) == "the masking, token!"


def test_roles_of_a_vocabulary_that_lacks_some(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "vocab.txt", ["[UNK]", "[BOS]", "[EOS]", "[CLS]", "a"])
    assert load_tokenizer(path).special_ids == {"unk": 0, "cls": 3, "sep": 2, "bos": 1, "eos": 2}


@pytest.mark.parametrize("architecture", [None, "bert", "gpt2"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_saved_tokenizer_in_transformers(
    tmp_path: Path, vocabulary_file: Path, architecture: str | None, lowercase: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(vocabulary_file, lowercase)
    tokenizer.save(tmp_path)
    if architecture is not None:
        names = {"bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel"}
        config = {
            "model_type": architecture,
            "architectures": [names[architecture]],
            "vocab_size": tokenizer.vocab_size,
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "The masking of Café 中文, tokens"
    ids = tokenizer.encode([text])[0].tolist()
    encoded = theirs(text, "the token")
    pair = tokenizer.encode(["the token"])[0].tolist()
    assert encoded["input_ids"] == [2, *ids, 3, *pair, 3]
    assert encoded["token_type_ids"] == [0] * (len(ids) + 2) + [1] * (len(pair) + 1)
    assert theirs(text)["input_ids"] == [2, *ids, 3]
    roles = [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id]
    assert roles == [0, 1, 2, 3, 4]
    assert theirs("the [MASK]")["input_ids"][-2] == 4
    assert len(theirs) == tokenizer.vocab_size


def test_save_and_load_keep_the_digest(tmp_path: Path, vocabulary_file: Path) -> None:
    for lowercase in (True, False):
        tokenizer = load_tokenizer(vocabulary_file, lowercase)
        for folder in ("a", "b"):
            tokenizer.save(tmp_path / folder)
        assert load_tokenizer(tmp_path / "a").digest == tokenizer.digest
        for path in (tmp_path / "a").iterdir():
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        (tmp_path / "a" / "tokenizer.json").unlink()
        assert load_tokenizer(tmp_path / "a").digest == tokenizer.digest  # from vocab.txt and the settings
        assert load_tokenizer(tmp_path / "b" / "vocab.txt", lowercase).digest == tokenizer.digest
        with pytest.raises(ValueError, match=r"--lowercase (true|false) contradicts .* which says"):
            load_tokenizer(tmp_path / "b", not lowercase)
    other = load_tokenizer(vocabulary_file, True)
    assert other.digest != tokenizer.digest


def test_folders_that_transformers_wrote(tmp_path: Path, shared_data: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = shared_data / "vocab" / "google_uncased_en_vocab.txt"
    transformers.BertTokenizerFast(vocab=str(path), do_lower_case=True).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).digest == load_tokenizer(path).digest


def test_casing_of_a_bare_vocabulary(tmp_path: Path, shared_data: Path) -> None:
    uncased = load_tokenizer(shared_data / "vocab" / "google_uncased_en_vocab.txt")
    assert uncased.pipeline.normalization.lowercase
    assert "no entry has upper-case letters, so text is lower-cased (--lowercase false changes" in uncased.notes[0]
    cased = load_tokenizer(write_vocabulary(tmp_path / "vocab.txt", [*SPECIAL, "a", "##B"]))
    assert not cased.pipeline.normalization.lowercase
    assert "entries have upper-case letters, so text is kept cased" in cased.notes[0]
    assert load_tokenizer(tmp_path / "vocab.txt", lowercase=True).pipeline.normalization.lowercase
    assert load_tokenizer(
        tmp_path, lowercase=True
    ).pipeline.normalization.lowercase  # a folder with nothing but vocab.txt


def test_chinese_vocabulary_of_google_is_uncased(shared_data: Path) -> None:
    """Its only upper-case letters are in <S> and <T>."""
    transformers = pytest.importorskip("transformers")
    path = shared_data / "vocab" / "google_zh_vocab.txt"
    tokenizer = load_tokenizer(path)
    assert tokenizer.pipeline.normalization.lowercase
    theirs = transformers.BertTokenizerFast(vocab=str(path))
    text = (shared_data / "raw_zh_clue_news" / "doc_per_line.txt").read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if line != line.lower()][:300]
    assert len(lines) == 300
    expected = theirs(lines, add_special_tokens=False)["input_ids"]
    ids, counts = tokenizer.encode(lines)
    assert counts.tolist() == [len(row) for row in expected]
    assert ids.tolist() == [token for row in expected for token in row]


@pytest.mark.parametrize(
    ("template", "single", "pair"),
    [(LANGUAGE_MODEL, "[CLS] a", "[CLS] a b"), (CAUSAL_TEXTS, "a [SEP]", "a [SEP] b [SEP]")],
)
def test_saved_for_a_causal_model(tmp_path: Path, tokenizer: Tokenizer, template: str, single: str, pair: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, template)
    assert load_tokenizer(tmp_path).digest == tokenizer.digest
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for texts, expected in ((("A",), single), (("A", "B"), pair)):
        encoded = theirs(*texts)
        assert list(encoded) == ["input_ids", "attention_mask"]
        assert encoded["input_ids"] == [tokenizer.tokens.index(token) for token in expected.split()]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (2, 3, 0)
    text = "The masking of Café 中文, tokens"
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode([text])[0].tolist()
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path).digest == tokenizer.digest  # from vocab.txt and the settings


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[PAD]\na\nb\n", r"has no \[UNK\] entry among 3 lines"),
        (b"[UNK]\na\nb\na\n", r"'a' is on line 2 and again on line 4"),
        (b"[UNK]\na\n\nb\n", r"line 3 is empty"),
        (b"\x0a\x0e\x00binary", r"is a binary file, no vocabulary"),
        (b"[UNK]\n\xff\xfe\n", r"byte 6 is not UTF-8"),
        (b'{"a": 1}', r"is JSON without a model"),
        (b'{"model": {"type": "BPE"}}', r"the tokenizers library cannot read it"),
        (b"the\t-3.5\n", r"line 1 is 'the\\t-3.5'"),
        (b"", r"has no \[UNK\] entry among 0 lines"),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("part", "value", "kind"),
    [
        ("normalizer", {"type": "NFC"}, "tokenizer_json"),
        ("normalizer", None, "tokenizer_json"),
        ("pre_tokenizer", {"type": "WhitespaceSplit"}, "tokenizer_json"),
        ("added_tokens", [], "wordpiece"),
    ],
)
def test_other_pipelines_are_kept_as_they_are(
    tokenizer: Tokenizer, tmp_path: Path, part: str, value, kind: str
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, LANGUAGE_MODEL)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data[part] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    found = load_tokenizer(tmp_path)
    assert found.type == kind
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the mask, masking token. é é"
    assert found.encode([text])[0].tolist() == theirs(text, add_special_tokens=False)["input_ids"]


def test_added_token_that_is_not_special(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, LANGUAGE_MODEL)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.add_tokens(["cat mask"])
    library.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path)
    assert found.type == "tokenizer_json"
    assert found.tokens[-1] == "cat mask"
    text = "the cat mask [MASK] token"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert found.encode([text])[0].tolist() == expected
    assert found.vocab_size - 1 in expected


def test_pickled(tokenizer: Tokenizer) -> None:
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert copied.digest == tokenizer.digest
    assert copied.encode(["the mask"])[0].tolist() == tokenizer.encode(["the mask"])[0].tolist()


def test_settings_that_bert_tokenizer_does_not_know(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    short = Tokenizer(tokenizer.tokens, ROLES, WordPiece(Normalization(), max_word_length=4))
    short.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the masking"
    assert theirs(text)["input_ids"] == [2, *short.encode([text])[0].tolist(), 3]
    assert short.encode(["masking"])[0].tolist() == [1]


def test_places_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer at .*nowhere: give a folder .*or vocab.txt file"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds no usable tokenizer \(found merges.txt\)"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json is not valid JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match=r"holds a JSON list, not an object"):
        load_tokenizer(tmp_path)
