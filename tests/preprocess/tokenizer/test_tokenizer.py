"""Loading, saving and training tokenizers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preprocess.tokenizer import CAUSAL_TEXTS, LANGUAGE_MODEL, Tokenizer, load_tokenizer, train_wordpiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def english(shared_data: Path) -> list[str]:
    """Return the lines of a book."""
    return (
        (shared_data / "raw_en_classics" / "Booth_Tarkington__Alice_Adams.md").read_text(encoding="utf-8").split("\n")
    )


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
    assert load_tokenizer(path).special_ids == {"unk": 0, "bos": 1, "eos": 2, "cls": 3}


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
    assert uncased.normalization.lowercase
    assert "no entry has upper-case letters, so text is lower-cased (--lowercase false changes" in uncased.notes[0]
    cased = load_tokenizer(write_vocabulary(tmp_path / "vocab.txt", [*SPECIAL, "a", "##B"]))
    assert not cased.normalization.lowercase
    assert "entries have upper-case letters, so text is kept cased" in cased.notes[0]
    assert load_tokenizer(tmp_path / "vocab.txt", lowercase=True).normalization.lowercase
    assert load_tokenizer(tmp_path, lowercase=True).normalization.lowercase  # a folder with nothing but vocab.txt


def test_chinese_vocabulary_of_google_is_uncased(shared_data: Path) -> None:
    """Its only upper-case letters are in <S> and <T>."""
    transformers = pytest.importorskip("transformers")
    path = shared_data / "vocab" / "google_zh_vocab.txt"
    tokenizer = load_tokenizer(path)
    assert tokenizer.normalization.lowercase
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
        (b'{"model": {"type": "BPE"}}', r"is JSON, no vocabulary.*give the folder that holds it"),
        (b"the\t-3.5\n", r"line 1 is 'the\\t-3.5'"),
        (b"", r"has no \[UNK\] entry among 0 lines"),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path / "x.txt")


def test_sentencepiece_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00")
    with pytest.raises(ValueError, match="looks like a SentencePiece model, which is not supported yet"):
        load_tokenizer(tmp_path / "spm.model")


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("model", {"type": "BPE", "vocab": {}}, "its model is BPE, and only WordPiece is supported so far"),
        ("normalizer", {"type": "NFC"}, "its normalizer is NFC, and only BertNormalizer"),
        ("normalizer", None, "its normalizer is missing"),
        ("pre_tokenizer", {"type": "ByteLevel"}, "its pre_tokenizer is ByteLevel"),
        ("added_tokens", [{"id": 9, "content": "<x>", "special": False}], "adds the token '<x>' outside its model"),
        ("added_tokens", [{"id": 1000, "content": "<x>", "special": True}], "do not run from 0 without gap"),
    ],
)
def test_other_kinds_are_refused_by_name(tokenizer: Tokenizer, tmp_path: Path, part: str, value, message: str) -> None:
    tokenizer.save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data[part] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_places_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer at .*nowhere: give a folder .*or a vocab.txt"):
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


def test_training(shared_data: Path) -> None:
    lines = english(shared_data)
    tokenizer = train_wordpiece(lines, 2000)
    assert tokenizer.vocab_size == 2000
    assert list(tokenizer.tokens[:5]) == SPECIAL
    ids, _ = tokenizer.encode(lines)
    assert (ids == tokenizer.special_ids["unk"]).mean() < 1e-3
    assert len(ids) < 2 * sum(len(line.split()) for line in lines)
    generator = train_wordpiece((line for line in lines), 2000)
    assert generator.tokens == tokenizer.tokens


TRAIN = """
import sys
from pathlib import Path
from preprocess.tokenizer import train_wordpiece
print(train_wordpiece(Path(sys.argv[1]).read_text(encoding="utf-8").split("\\n"), 3000).digest)
"""


def test_two_trainings_are_equal(shared_data: Path, repository: Path) -> None:
    """In fresh processes: the hash tables of ``tokenizers`` are seeded anew in each."""
    path = shared_data / "sample" / "en_northanger_abbey.txt"
    command = [sys.executable, "-c", TRAIN, str(path)]
    found = {
        subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout for _ in range(3)
    }
    assert len(found) == 1


def test_training_on_chinese(shared_data: Path) -> None:
    lines = (shared_data / "sample" / "zh_tang300_song100.txt").read_text(encoding="utf-8").split("\n")
    tokenizer = train_wordpiece(lines, 1000)
    assert tokenizer.vocab_size == 1000  # the most frequent characters; the others are unknown
    assert "人" in tokenizer.tokens and "##人" not in tokenizer.tokens
    small = train_wordpiece(lines, 20000, min_frequency=1)
    assert small.vocab_size < 5000
    ids, _ = small.encode(lines)
    assert small.special_ids["unk"] not in ids


def test_training_cased() -> None:
    texts = ["The CAT and the cat"] * 3
    assert {"T", "C"} <= set(train_wordpiece(texts, 100, lowercase=False).tokens)
    assert not {"T", "C"} & set(train_wordpiece(texts, 100, lowercase=True).tokens)


def test_training_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="vocab_size is 5: the 5 special tokens leave no room"):
        train_wordpiece(["text"], 5)
    with pytest.raises(ValueError, match="no character that occurs 2 times or more"):
        train_wordpiece(["abc", " "], 100)
