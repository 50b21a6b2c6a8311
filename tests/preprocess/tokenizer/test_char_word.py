"""Characters and words against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.tokenizer import TrainingSettings, load_tokenizer, train
from tests.preprocess.tokenizer.odd_texts import check_positions, differing, odd_lines, real_lines, rows


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("kind", ["char", "word"])
def test_equals_transformers(shared_data: Path, tmp_path: Path, kind: str, lowercase: bool) -> None:
    transformers = pytest.importorskip("transformers")
    lines = real_lines(shared_data, 60_000)
    settings = TrainingSettings(type=kind, vocab_size=6000, lowercase=lowercase, special_tokens=["<ent>", "the"])
    tokenizer = train(lines, settings)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    odd = odd_lines([word for word in tokenizer.tokens[5:-2] if len(word) < 20], 200)
    special = set(tokenizer.vocabulary.special_tokens())
    texts = [line for line in odd + lines if not special & set(line.lower().split() + line.split())]
    assert differing(tokenizer, theirs, texts[:2500]) == []
    check_positions(tokenizer, texts[:500])


def test_characters() -> None:
    tokenizer = train(["Ab c中文, ab"] * 2, TrainingSettings(type="char", vocab_size=50))
    assert tokenizer.tokens == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", ",", "c", "中", "文")
    assert [tokenizer.tokens[index] for index in tokenizer.encode(["BÁ x文"])[0]] == ["b", "a", "[UNK]", "文"]
    assert tokenizer.encode_with_positions(["BÁ", " 文"])[2].tolist() == [0, 1, 4]
    assert tokenizer.decode(tokenizer.encode(["b a 中"])[0]) == "ba中"


def test_words() -> None:
    tokenizer = train(
        ["the cat, the 中文 [MASK] cat,"] * 2, TrainingSettings(type="word", vocab_size=50, lowercase=False)
    )
    assert tokenizer.tokens == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat,", "the", "中文")
    assert [tokenizer.tokens[index] for index in tokenizer.encode(["the  cat, [MASK] 中 中文"])[0]] == [
        "the", "cat,", "[UNK]", "[UNK]", "中文",
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer.encode(["the cat,"])[0]) == "the cat,"


@pytest.mark.parametrize("kind", ["char", "word"])
def test_save_and_load(tmp_path: Path, kind: str) -> None:
    tokenizer = train(["The cat sat"] * 2, TrainingSettings(type=kind, vocab_size=50, special_tokens=["<ent>"]))
    assert tokenizer.files == ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.type, loaded.digest) == (kind, tokenizer.digest)
    assert not loaded.continuation.any() and not loaded.keeps_whitespace
    assert rows(loaded, ["the sat <ent>"]) == rows(tokenizer, ["the sat <ent>"])
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path).digest == tokenizer.digest
    with pytest.raises(ValueError, match=r"--lowercase false contradicts .* which says true"):
        load_tokenizer(tmp_path, lowercase=False)
