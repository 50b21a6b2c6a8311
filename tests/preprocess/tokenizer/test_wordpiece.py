"""The encoder against the plain ``tokenizers`` pipeline and against transformers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import preprocess.tokenizer.wordpiece as wordpiece
from preprocess.tokenizer import load_tokenizer
from preprocess.tokenizer.bert_pipeline import Normalization, build_backend
from preprocess.tokenizer.vocabulary import read_vocabulary
from preprocess.tokenizer.wordpiece import WordPieceEncoder

LAST_CODE_POINT = 0x32000
SAMPLES = [
    "",
    " ",
    "naïve café Ångström ﬁne ΜΟΥΣΑΣ İstanbul ß STRASSE Straße",
    "😀👩‍👩‍👧‍👦🏽 emoji🎉text",
    "ctrl\x00a\x01b\x02\x0b\x0cx\x1c\x1d\x1e\x1f\x7f\x85y",
    "\ufeffmark zero\u200bwidth\u200cjoin\u200dx soft\u00adhyphen \u2060\ufffd\ufffe",
    "ＦＵＬＬ　ｗｉｄｔｈ１２３，。！？（）",
    "𠀀𠀁𪛖𫜴𫝀𬺡𰀀𱍐㐀㐁ext 豈更車賈龜契金喇",
    "あいうえおカタカナｶﾀｶﾅ 한국어 텍스트 각",
    "a" * 99 + " " + "b" * 100 + " " + "c" * 101 + " " + "unaffable" * 12,
    "混合mixed文字text中英文123abc，。T恤卡拉OK",
    "[CLS] [MASK] [SEP]mask[PAD][UNK]",
    "http://www.example.com/a?b=c&d=e#f 3.14 1,000,000 10% $5.00 don't ``it''",
    "e\u0301\u0327\u0301a\u0300 \u0301lone 中\u0301文 ,\u0301. \u0338= ≠ ≮ \u037e \u1fef \u0387",
    "العربية हिन्दी ไทย Ελληνικά Русский עברית",
    "\u00a0nb\u00a0sp\u2003em\u2028ls\u2029ps\u202fnn\u205fmm\u3000id\u1680og",
    "\ue000\ue001 private \U000f0000 \U0010ffff \u0378 \u2fff",
    "\U0001d165\U0001d16d\u302e\u302f 가\u302e x\u20dd y\u0488 z\u1ab0 ͅ ᾳ ΐ i̇İıI",
    "\t tab\ttab \r\n line\nline\n\n",
]


def adversarial_lines(vocabulary: list[str], num_mixes: int = 600) -> list[str]:
    """Return odd samples, random mixes of them, and every code point below U+32000 between letters."""
    generator = random.Random(7)
    points = [point for point in range(1, LAST_CODE_POINT) if not 0xD800 <= point <= 0xDFFF]
    lines = list(SAMPLES)
    for _ in range(num_mixes):
        pieces = []
        for _ in range(generator.randint(1, 25)):
            kind = generator.random()
            if kind < 0.4:
                pieces.append(generator.choice(vocabulary).removeprefix("##"))
            elif kind < 0.7:
                pieces.append("".join(map(chr, generator.choices(points, k=3))))
            elif kind < 0.8:
                pieces.append(generator.choice(SAMPLES))
            else:
                pieces.append(generator.choice([" ", "  ", "\t", ",", ".", "\u3000", "\u0301", "-", "中"]))
        lines.append("".join(pieces))
    for first in range(0, len(points), 64):
        characters = list(map(chr, points[first : first + 64]))
        lines += ["a".join(characters), "中".join(characters) + "".join(generator.sample(characters, 20))]
    return lines


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
    lines = adversarial_lines(vocabulary)
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
    lines = adversarial_lines(vocabulary, num_mixes=200)
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


def test_bounded_cache_changes_nothing(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = tokenizer.encoder.backend
    lines = adversarial_lines(list(tokenizer.tokens), num_mixes=300)
    expected = reference(backend, lines)
    monkeypatch.setattr(wordpiece, "MAX_CACHED_SPANS", 50)
    monkeypatch.setattr(wordpiece, "MAX_CACHED_SPAN_LENGTH", 4)
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
    from preprocess.tokenizer import Tokenizer

    tokens = ["[UNK]", *(f"[unused{index}]" for index in range(70_000)), "last"]
    large = Tokenizer(tokens, {"unk": "[UNK]"}, Normalization())
    ids, _ = large.encode(["last 中"])
    assert ids.dtype == np.uint32
    assert ids.tolist() == [70_001, 0]
    assert Tokenizer(tokens[:65_535], {"unk": "[UNK]"}, Normalization()).dtype == np.uint16
    assert Tokenizer(tokens[:65_536], {"unk": "[UNK]"}, Normalization()).dtype == np.uint32
