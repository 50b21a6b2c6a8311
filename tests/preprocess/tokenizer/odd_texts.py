"""Texts that tokenizers get wrong, and real ones."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from preprocess.tokenizer import Tokenizer

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
    "ab" * 2500 + " " + "中" * 5000 + "-" * 5000,
    "混合mixed文字text中英文123abc，。T恤卡拉OK",
    "[CLS] [MASK] [SEP]mask[PAD][UNK]",
    "<s> a<mask>b </s><pad><unk><|endoftext|>",
    "http://www.example.com/a?b=c&d=e#f 3.14 1,000,000 10% $5.00 don't ``it''",
    "e\u0301\u0327\u0301a\u0300 \u0301lone 中\u0301文 ,\u0301. \u0338= ≠ ≮ \u037e \u1fef \u0387",
    "العربية हिन्दी ไทย Ελληνικά Русский עברית",
    "\u00a0nb\u00a0sp\u2003em\u2028ls\u2029ps\u202fnn\u205fmm\u3000id\u1680og",
    "\ue000\ue001 private \U000f0000 \U0010ffff \u0378 \u2fff",
    "\U0001d165\U0001d16d\u302e\u302f 가\u302e x\u20dd y\u0488 z\u1ab0 ͅ ᾳ ΐ i̇İıI",
    "\t tab\ttab \r\n line\nline\n\n",
    "\n\n  two lines before, two spaces after  ",
    " one space",
    "  two spaces",
    "I'll we've 'tis DON'T l'été ''s",
    "\u2581literal mark \u2581\u2581 <0xE4> Ġ Ċ",
]


def odd_lines(words: list[str], num_mixes: int = 400) -> list[str]:
    """Return odd samples, random mixes of them and of ``words``, and every code point below U+32000 between letters."""
    generator = random.Random(7)
    points = [point for point in range(1, LAST_CODE_POINT) if not 0xD800 <= point <= 0xDFFF]
    short = [sample for sample in SAMPLES if len(sample) < 1000]
    lines = list(SAMPLES)
    for _ in range(num_mixes):
        pieces = []
        for _ in range(generator.randint(1, 25)):
            kind = generator.random()
            if kind < 0.4:
                pieces.append(generator.choice(words).removeprefix("##"))
            elif kind < 0.7:
                pieces.append("".join(map(chr, generator.choices(points, k=3))))
            elif kind < 0.8:
                pieces.append(generator.choice(short))
            else:
                pieces.append(generator.choice([" ", "  ", "\t", ",", ".", "\u3000", "\u0301", "-", "中"]))
        lines.append("".join(pieces))
    for first in range(0, len(points), 64):
        characters = list(map(chr, points[first : first + 64]))
        lines += ["a".join(characters), "中".join(characters) + "".join(generator.sample(characters, 20))]
    return lines


def real_lines(shared_data: Path, size: int = 150_000) -> list[str]:
    """Return lines of English and Chinese: books, news, reviews with emoji, histories."""
    names = (
        "raw_en_classics/Homer__The_Iliad.md",
        "raw_zh_clue_news/doc_per_line.txt",
        "cls_zh_book_review/dev.tsv",
        "cls_en_sst2/dev.tsv",
    )
    lines = []
    for name in names:
        lines += (shared_data / name).read_text(encoding="utf-8")[:size].split("\n")
    return lines


def rows(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Return the ids of each text."""
    ids, counts = tokenizer.encode(texts)
    assert len(counts) == len(texts) and counts.sum() == len(ids)
    return [row.tolist() for row in np.split(ids, np.cumsum(counts)[:-1])] if texts else []


def offsets(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """Return the offsets of each token, after a look at their ids."""
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    assert ids.tolist() == tokenizer.encode([text])[0].tolist()
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def differing(tokenizer: Tokenizer, theirs, texts: list[str], with_offsets: bool = True) -> list[str]:
    """Return the texts for which a tokenizer of transformers, told to take special tokens for text, gives others."""
    encoded = theirs(texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    found = [
        text for text, ours, row in zip(texts, rows(tokenizer, texts), encoded["input_ids"], strict=True) if ours != row
    ]
    if with_offsets:
        found += [
            text
            for text, expected in zip(texts, encoded["offset_mapping"], strict=True)
            if offsets(tokenizer, text) != [tuple(pair) for pair in expected]
        ]
    return found


def check_positions(tokenizer: Tokenizer, texts: list[str], one_each: bool = True) -> None:
    """Check positions against a character-by-character walk along the offsets."""
    ids, counts, positions = tokenizer.encode_with_positions(texts)
    assert ids.tolist() == tokenizer.encode(texts)[0].tolist()
    assert counts.tolist() == tokenizer.encode(texts)[1].tolist()
    begin = token = 0
    for text in texts:
        done = 0
        for start, end in offsets(tokenizer, text):
            visible = [index for index in range(max(start, done), end) if not text[index].isspace()]
            expected = begin + visible[0] if visible else -1
            done = max(done, end)
            if one_each:
                assert positions[token] == expected, (text, token)
            else:
                assert positions[token] in (expected, -1), (text, token)
            token += 1
        begin += len(text) + 1
    assert token == len(ids)
