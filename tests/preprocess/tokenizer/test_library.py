"""Any tokenizer.json: kept as it is, and special tokens in text are text."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from preprocess.tokenizer import BERT, LANGUAGE_MODEL, load_tokenizer
from tests.preprocess.tokenizer.odd_texts import check_positions, differing, odd_lines, offsets, rows

TEXTS = ["the cat sat on the mat, and 12 dogs sat too", "naïve Café 中文 <mask>", "The end of the story"] * 5


def byte_level(add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """As Llama 3 has it: its own pattern, then bytes; merges may be left out."""
    found = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    pattern = Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+")
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space, use_regex=False)]
    )
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    found.train_from_iterator(TEXTS, trainer)
    return found


def metaspace() -> tokenizers.Tokenizer:
    """As XLM-R has it: a unigram list in which the special tokens have the best score."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -5.0) for c in "▁thecasonmdgf<k>")]
    pieces = list(dict(pieces).items())
    found = tokenizers.Tokenizer(models.Unigram([*pieces, ("▁the", -2.0), ("at", -3.0), ("<mask>", 0.0)], unk_id=3))
    found.normalizer = normalizers.NFKC()
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    return found


def wordpiece() -> tokenizers.Tokenizer:
    """WordPiece, but normalised otherwise than BERT's."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"thecasonmd", *(f"##{c}" for c in "thecasonmd"), "the"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    found = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    found.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.decoder = decoders.WordPiece()
    return found


KINDS = {"byte_level": byte_level, "metaspace": metaspace, "wordpiece": wordpiece}
SPECIAL = {
    "byte_level": ["<|begin|>", "<|end|>", "<|pad|>"],
    "metaspace": ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)],
    "wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
}


@pytest.fixture(params=sorted(KINDS))
def folder(request, tmp_path: Path) -> Path:
    """A folder with such a tokenizer, a special token without a role, and one that is added but not special."""
    made = KINDS[request.param]()
    made.add_special_tokens(SPECIAL[request.param])
    made.add_tokens([AddedToken("sat on", normalized=False)])
    made.add_special_tokens(["<extra>"])
    folder = tmp_path / request.param
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if request.param == "byte_level":
        config |= {
            "bos_token": "<|begin|>",
            "eos_token": {"content": "<|end|>", "__type": "AddedToken"},
            "pad_token": "<|pad|>",
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_equals_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.type == "tokenizer_json"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    lines = odd_lines(["the cat ", "sat on", "<extra>", " mats"], 200)
    if folder.name == "metaspace":  # transformers takes "<mask>" in text for the token even when told not to
        lines = [line for line in lines if "<" not in line]
    assert differing(tokenizer, theirs, lines) == []
    check_positions(tokenizer, lines[:300])


def test_special_tokens_in_text_are_text_and_added_ones_are_not(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    names = {"<extra>", "[MASK]", "<mask>", "<s>", "<|end|>", "[CLS]"} & set(tokenizer.tokens)
    ids = tokenizer.encode([f"the {name} cat{name}" for name in names])[0]
    unknown = tokenizer.special_ids.get("unk")
    assert not [tokenizer.tokens[index] for index in ids if tokenizer.all_special[index] and index != unknown]
    assert "sat on" in [tokenizer.tokens[index] for index in tokenizer.encode(["cat sat on mat"])[0]]


def test_save_keeps_the_pipeline(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(folder)
    original = transformers.AutoTokenizer.from_pretrained(folder)
    for template in (BERT, LANGUAGE_MODEL):
        for name in ("a", "b"):
            tokenizer.save(tmp_path / name, template)
        for path in (tmp_path / "a").iterdir():
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        again = load_tokenizer(tmp_path / "a")
        assert again.digest == tokenizer.digest
        assert again.special_ids == tokenizer.special_ids
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
        assert len(theirs) == tokenizer.vocab_size
        texts = [*TEXTS, "the <extra> cat <mask> [MASK] sat on"]
        expected = original(texts, add_special_tokens=False)["input_ids"]
        assert theirs(texts, add_special_tokens=False)["input_ids"] == expected
    assert tokenizer.decode(tokenizer.encode(["the cat"])[0]) == original.decode(
        original.encode("the cat", add_special_tokens=False)
    )
    assert rows(pickle.loads(pickle.dumps(tokenizer)), TEXTS) == rows(tokenizer, TEXTS)


def test_what_they_say_of_themselves(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    names = {role: tokenizer.tokens[index] for role, index in tokenizer.special_ids.items()}
    flags = dict(zip(tokenizer.tokens, tokenizer.continuation.tolist(), strict=True))
    assert not flags["<extra>"]
    if folder.name == "byte_level":
        assert names == {"pad": "<|pad|>", "bos": "<|begin|>", "eos": "<|end|>", "cls": "<|begin|>", "sep": "<|end|>"}
        assert tokenizer.keeps_whitespace and flags["at"] and not flags["Ġthe"]
    if folder.name == "metaspace":
        assert names == {
            "pad": "<pad>",
            "unk": "<unk>",
            "cls": "<s>",
            "sep": "</s>",
            "mask": "<mask>",
            "bos": "<s>",
            "eos": "</s>",
        }
        assert not tokenizer.keeps_whitespace and flags["at"] and not flags["▁the"]
    if folder.name == "wordpiece":
        assert tokenizer.prefix == "##" and flags["##t"] and not flags["t"] and not tokenizer.keeps_whitespace


def test_white_space_that_a_prefix_replaces_is_not_kept(tmp_path: Path) -> None:
    byte_level(add_prefix_space=True).save(str(tmp_path / "tokenizer.json"))
    assert not load_tokenizer(tmp_path).keeps_whitespace


def test_offsets(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("the cat sat on mats", "the ＣＡＴ 中文 é"):
        assert offsets(tokenizer, text) == plain.encode(text, add_special_tokens=False).offsets


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, "tokenizers library cannot read it"),
        ({"model": {"type": "Neural", "vocab": {}}}, "the tokenizers library cannot read it"),
        ({"added_tokens": []}, None),
    ],
)
def test_files_that_are_broken(tmp_path: Path, change: dict, message: str | None) -> None:
    wordpiece().save(str(tmp_path / "tokenizer.json"))
    data = json.loads((tmp_path / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    if message is None:
        assert load_tokenizer(tmp_path).vocab_size == len(data["model"]["vocab"])
        return
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_ids_with_gaps_and_lacking_unknown_token(tmp_path: Path) -> None:
    wordpiece().save(str(tmp_path / "tokenizer.json"))
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["model"]["vocab"]["far"] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="do not run from 0 without gap"):
        load_tokenizer(tmp_path)
    del data["model"]["vocab"]["far"]
    data["model"]["unk_token"] = "<oov>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="its vocabulary lacks the unknown token <oov>"):
        load_tokenizer(tmp_path)


def test_dropout_is_left_out(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["model"] |= {"dropout": 0.5, "ignore_merges": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(tmp_path)
    assert "drops merges at random (0.5); here all are applied" in tokenizer.notes[0]
    assert rows(tokenizer, TEXTS) == rows(tokenizer, TEXTS)


def test_lowercase_is_not_for_them(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--lowercase true is for vocabularies of WordPiece, and .* of type tokenizer_json"
    ):
        load_tokenizer(folder, lowercase=True)
