"""The encoder against the plain ``tokenizers`` pipeline and against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers

from preprocess.tokenizer import Tokenizer, load_tokenizer, span_cache, wordpiece
from preprocess.tokenizer.bert_pipeline import Normalization, WordPiece, build_backend
from preprocess.tokenizer.vocabulary import read_vocabulary
from preprocess.tokenizer.wordpiece import WordPieceEncoder
from tests.preprocess.tokenizer.odd_texts import check_positions, odd_lines, offsets, real_lines


def reference(backend: tokenizers.Tokenizer, texts: list[str]) -> tuple[list[int], list[int]]:
    """Return the ids and counts that ``tokenizers`` gives."""
    encodings = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    return [token for ids in encodings for token in ids], [len(ids) for ids in encodings]


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("name", ["google_uncased_en_vocab.txt", "google_zh_vocab.txt"])
def test_equals_tokenizers_on_adversarial_text(shared_data: Path, name: str, lowercase: bool) -> None:
    vocabulary = read_vocabulary(shared_data / "vocab" / name)
    ids = {token: index for index, token in enumerate(vocabulary)}
    backend = build_backend(ids, "[UNK]", Normalization(lowercase=lowercase))
    lines = odd_lines(vocabulary)
    found, counts = WordPieceEncoder(backend, np.uint16).encode(lines)
    expected_ids, expected_counts = reference(backend, lines)
    assert counts.tolist() == expected_counts
    assert found.tolist() == expected_ids


@pytest.mark.parametrize(
    "normalization",
    [
        Normalization(lowercase=True, strip_accents=False),
        Normalization(lowercase=False, strip_accents=True),
        Normalization(lowercase=True, clean_text=False),
        Normalization(lowercase=True, handle_chinese_chars=False),
    ],
    ids=str,
)
def test_equals_tokenizers_for_other_normalizations(shared_data: Path, normalization: Normalization) -> None:
    vocabulary = read_vocabulary(shared_data / "vocab" / "google_zh_vocab.txt")
    backend = build_backend({token: index for index, token in enumerate(vocabulary)}, "[UNK]", normalization)
    lines = odd_lines(vocabulary, num_mixes=200)
    found, counts = WordPieceEncoder(backend, np.uint16).encode(lines)
    expected_ids, expected_counts = reference(backend, lines)
    assert counts.tolist() == expected_counts
    assert found.tolist() == expected_ids


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize(
    ("vocabulary", "corpus"),
    [
        ("google_uncased_en_vocab.txt", "raw_en_classics/Homer__The_Iliad.md"),
        ("google_zh_vocab.txt", "raw_zh_clue_news/doc_per_line.txt"),
    ],
)
def test_equals_transformers_on_real_text(
    shared_data: Path, tmp_path: Path, vocabulary: str, corpus: str, lowercase: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(shared_data / "vocab" / vocabulary, lowercase)
    tokenizer.save(tmp_path)
    lines = (shared_data / corpus).read_text(encoding="utf-8")[:500_000].split("\n")
    theirs = transformers.BertTokenizerFast(vocab=str(shared_data / "vocab" / vocabulary), do_lower_case=lowercase)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids, counts = tokenizer.encode(lines)
    for oracle in (theirs, saved):
        expected = oracle(lines, add_special_tokens=False)["input_ids"]
        assert counts.tolist() == [len(line) for line in expected]
        assert ids.tolist() == [token for line in expected for token in line]


def test_offsets_and_positions(shared_data: Path, tokenizer: Tokenizer) -> None:
    chinese = load_tokenizer(shared_data / "vocab" / "google_zh_vocab.txt")
    backend = chinese.encoder.backend
    lines = odd_lines(list(chinese.tokens), 100)[:400] + real_lines(shared_data, 10_000)
    for line in lines:
        assert offsets(chinese, line) == backend.encode(line, add_special_tokens=False).offsets
    check_positions(chinese, lines, one_each=False)
    ids, counts, positions = tokenizer.encode_with_positions(["Masking 中文,", "", " \x85tokening"])
    tokens = [tokenizer.tokens[index] for index in ids]
    assert tokens == ["mask", "##ing", "中", "文", ",", "token", "##ing"]
    assert positions.tolist() == [0, -1, 8, 9, 10, 15, -1]
    assert counts.tolist() == [5, 0, 2]


def test_bounded_cache_changes_nothing(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = tokenizer.encoder.backend
    lines = odd_lines(list(tokenizer.tokens), num_mixes=300)
    expected = reference(backend, lines)
    monkeypatch.setattr(span_cache, "MAX_CACHED_SPANS", 50)
    monkeypatch.setattr(span_cache, "MAX_CACHED_SPAN_LENGTH", 4)
    monkeypatch.setattr(wordpiece, "BATCH_CHARACTERS", 1000)
    encoder = WordPieceEncoder(backend, np.uint16)
    for _ in range(2):
        ids, counts = encoder.encode(lines)
        assert (ids.tolist(), counts.tolist()) == expected
    assert max(map(len, encoder.spans)) <= 4
    assert len(encoder.spans) < 2000


def test_special_tokens_in_text_are_text(tokenizer) -> None:
    ids, counts = tokenizer.encode(["[MASK] mask", "[CLS]"])
    tokens = [tokenizer.tokens[index] for index in ids]
    assert tokens == ["[", "mask", "]", "mask", "[", "c", "##l", "##s", "]"]
    assert counts.tolist() == [4, 5]


def test_nothing_to_encode(tokenizer) -> None:
    for texts in ([], ["", "", ""], ["\n", " \t"]):
        ids, counts = tokenizer.encode(texts)
        assert ids.dtype == np.uint16
        assert len(ids) == 0
        assert counts.tolist() == [0] * len(texts)
        assert counts.dtype == np.int64


def test_large_vocabularies_have_32_bit_ids() -> None:
    tokens = ["[UNK]", *(f"[unused{index}]" for index in range(70_000)), "last"]
    large = Tokenizer(tokens, {"unk": "[UNK]"}, WordPiece(Normalization()))
    ids, _ = large.encode(["last 中"])
    assert ids.dtype == np.uint32
    assert ids.tolist() == [70_001, 0]
    assert Tokenizer(tokens[:65_535], {"unk": "[UNK]"}, WordPiece(Normalization())).dtype == np.uint16
    assert Tokenizer(tokens[:65_536], {"unk": "[UNK]"}, WordPiece(Normalization())).dtype == np.uint32
