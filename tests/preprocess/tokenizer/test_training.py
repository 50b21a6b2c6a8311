"""Training: the same everywhere, as large as asked for, and errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from preprocess.tokenizer import TrainingSettings, sample, train, train_wordpiece
from preprocess.tokenizer.sentencepiece_training import MAX_PIECE_BYTES, pieces_of
from preprocess.tokenizer.training import TYPES

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

TRAIN = """
import sys
from itertools import pairwise
from pathlib import Path
from preprocess.tokenizer import TrainingSettings, train
lines = [line for path in sys.argv[1:] for line in Path(path).read_text(encoding="utf-8").split("\\n")]
for kind in ("wordpiece", "bpe", "unigram", "sentencepiece_bpe", "char", "word"):
    tokenizer = train(lines, TrainingSettings(type=kind, vocab_size=4500, special_tokens=["<ent>"]))
    print(kind, tokenizer.digest)
"""


def english(shared_data: Path) -> list[str]:
    return (shared_data / "sample" / "en_northanger_abbey.txt").read_text(encoding="utf-8").split("\n")


def chinese(shared_data: Path) -> list[str]:
    return (shared_data / "sample" / "zh_tang300_song100.txt").read_text(encoding="utf-8").split("\n")


def test_two_trainings_are_equal(shared_data: Path, repository: Path) -> None:
    """In fresh processes: the hash tables of Python and of ``tokenizers`` are seeded anew in each."""
    paths = [str(shared_data / "sample" / name) for name in ("en_northanger_abbey.txt", "zh_tang300_song100.txt")]
    found = {
        subprocess.run(
            [sys.executable, "-c", TRAIN, *paths],
            cwd=repository,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "RAYON_NUM_THREADS": threads},
        ).stdout
        for seed, threads in (("1", "1"), ("2", "2"))
    }
    assert len(found) == 1
    assert len(found.pop().splitlines()) == len(TYPES)


@pytest.mark.parametrize("kind", TYPES)
def test_sizes_and_special_tokens(shared_data: Path, kind: str) -> None:
    lines = english(shared_data)
    settings = TrainingSettings(type=kind, vocab_size=600, special_tokens=["<a>", "<b>"])
    tokenizer = train(lines, settings)
    assert tokenizer.vocab_size == (600 if kind != "char" else tokenizer.vocab_size) <= 600
    assert tokenizer.tokens[-2:] == ("<a>", "<b>")
    assert tokenizer.all_special.sum() == (9 if "unigram" in kind or "sentencepiece" in kind else 7)
    assert set(tokenizer.special_ids) == {"pad", "unk", "cls", "sep", "mask", "bos", "eos"}
    ids = tokenizer.encode(lines)[0]
    assert not {tokenizer.vocab_size - 1, tokenizer.special_ids["mask"]} & set(ids.tolist())
    if kind != "word":
        assert (ids == tokenizer.special_ids["unk"]).mean() < 1e-3
    assert train((line for line in lines), settings).digest == tokenizer.digest


def test_wordpiece(shared_data: Path) -> None:
    lines = english(shared_data)
    tokenizer = train_wordpiece(lines, 2000)
    assert tokenizer.vocab_size == 2000
    assert tokenizer.tokens[:5] == SPECIAL
    ids, _ = tokenizer.encode(lines)
    assert len(ids) < 2 * sum(len(line.split()) for line in lines)
    assert not {"T", "C"} & set(train_wordpiece(["The CAT and the cat"] * 3, 100, lowercase=True).tokens)
    assert {"T", "C"} <= set(train_wordpiece(["The CAT and the cat"] * 3, 100, lowercase=False).tokens)


def test_chinese(shared_data: Path) -> None:
    lines = chinese(shared_data)
    tokenizer = train_wordpiece(lines, 1000)
    assert tokenizer.vocab_size == 1000  # the most frequent characters; the others are unknown
    assert "人" in tokenizer.tokens and "##人" not in tokenizer.tokens
    small = train_wordpiece(lines, 20000, min_frequency=1)
    assert small.vocab_size < 5000
    assert small.special_ids["unk"] not in small.encode(lines)[0]


@pytest.mark.parametrize("kind", ["wordpiece", "char", "unigram", "sentencepiece_bpe"])
def test_character_coverage(kind: str) -> None:
    lines = ["abcab abcba"] * 99 + ["x y"]
    by_sentencepiece = kind in ("unigram", "sentencepiece_bpe")
    settings = {"type": kind, **({} if by_sentencepiece else {"min_frequency": 1})}
    whole = train(lines, TrainingSettings(**settings, vocab_size=13 if by_sentencepiece else 30))
    size = 12 if by_sentencepiece else 30
    part = train(lines, TrainingSettings(**settings, vocab_size=size, character_coverage=0.99))
    assert whole.special_ids["unk"] not in whole.encode(["x y ab"])[0]
    assert part.special_ids["unk"] in part.encode(["x"])[0]
    assert part.special_ids["unk"] not in part.encode(["cab"])[0]


def test_min_frequency() -> None:
    lines = ["aa bb aa", "aa cc"]
    for kind in ("char", "word"):
        found = train(lines, TrainingSettings(type=kind, vocab_size=50, min_frequency=3)).tokens
        assert found == (*SPECIAL, "a" if kind == "char" else "aa")
    frequent = train(["ab cd"] * 3 + ["ef"] * 2, TrainingSettings(type="bpe", vocab_size=400, min_frequency=3))
    assert "ab" in frequent.tokens and "ef" not in frequent.tokens


def test_sample_is_spread_evenly() -> None:
    texts = [f"{index:06d} text" for index in range(1000)]
    total = sum(map(len, texts))
    for wanted in (1, 500, total // 3, total - 1):
        found = list(sample(texts, total, wanted))
        assert abs(sum(map(len, found)) - wanted) <= 2 * len(texts[0])
        steps = {int(second[:6]) - int(first[:6]) for first, second in pairwise(found)}
        assert not steps or max(steps) - min(steps) <= 1
    assert list(sample(texts, total, None)) == list(sample(texts, total, 2 * total)) == texts
    assert list(sample(iter(["中" * 100, "b"]), 301, 10)) == ["中" * 100]  # the first always is


def test_sentencepiece_gets_all_text() -> None:
    """It drops long sentences, and those with U+2585, without a word."""
    long = "word " * 3000
    pieces = list(pieces_of([long + "\nsecond ▅ line\n\n \n", "中" * 5000]))
    assert "".join(pieces[:-6]).split() == long.split()
    assert pieces[-6] == "second   line"
    assert pieces[-5:] == ["中" * 1000] * 5
    assert max(len(piece.encode()) for piece in pieces) <= MAX_PIECE_BYTES
    tokenizer = train(["a" * 9000 + " ▅ rare"] * 3, TrainingSettings(type="unigram", vocab_size=13))
    assert {"r", "e"} <= {character for token in tokenizer.tokens[7:] for character in token}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"type": "wordpeace"},
            "type is 'wordpeace'; there are: wordpiece, bpe, unigram, sentencepiece_bpe, char, word",
        ),
        ({"vocab_size": 5}, "vocab_size is 5, and must be at least 6 for type wordpiece"),
        ({"type": "bpe", "vocab_size": 260, "special_tokens": ["<x>"]}, "vocab_size is 260, and must be at least 262"),
        ({"type": "bpe", "lowercase": True}, "lowercase is not for type bpe"),
        ({"type": "unigram", "min_frequency": 3}, "min_frequency is not for type unigram"),
        ({"min_frequency": 0}, "min_frequency is 0, and must be at least 1"),
        ({"character_coverage": 0.0}, "character_coverage is 0.0, and must be above 0 and at most 1"),
        ({"type": "word", "character_coverage": 0.9}, "character_coverage is not for type word"),
        ({"sample_bytes": 0}, "sample_bytes is 0, and must be at least 1"),
        ({"special_tokens": ["[MASK]"]}, r"special token '\[MASK\]' is named twice; \[PAD\], .* are there anyway"),
        ({"special_tokens": ["<x>", "<x>"]}, "special token '<x>' is named twice"),
        ({"special_tokens": ["a b"]}, "special token 'a b' must be one word without white space"),
        ({"special_tokens": ["t"]}, r"special token\(s\) t occur in the text as ordinary tokens"),
    ],
)
def test_settings_that_are_wrong(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(["text text"] * 3, TrainingSettings(**settings))


@pytest.mark.parametrize(
    ("kind", "texts", "size", "message"),
    [
        ("wordpiece", ["abc", " "], 100, "no character that occurs 2 times or more"),
        ("char", ["abc", " "], 100, "no character that occurs 2 times or more"),
        ("word", ["abc", " "], 100, "no word that occurs 2 times or more"),
        ("unigram", ["", " "], 100, "the corpus has no text that sentencepiece can be trained on"),
        ("unigram", ["a few words"] * 9, 9000, r"the corpus gives \d+ tokens of type unigram at most; ask for \d+ or"),
        ("sentencepiece_bpe", ["a few words"] * 9, 9000, "tokens of type sentencepiece_bpe at most; ask for"),
        ("unigram", ["abcdefghij klmnop"] * 9, 12, "characters of the corpus need 25 at least; a lower --character_"),
    ],
)
def test_corpora_that_do_not_suffice(kind: str, texts: list[str], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(texts, TrainingSettings(type=kind, vocab_size=size))


def test_the_size_that_an_error_names_works() -> None:
    texts = ["a few words about words"] * 9
    for kind in ("unigram", "sentencepiece_bpe"):
        for size in (10, 9000):
            settings = {"type": kind, "special_tokens": ["<x>", "<y>"]}
            with pytest.raises(ValueError, match=r"\d+ (at least|tokens of type)") as caught:
                train(texts, TrainingSettings(vocab_size=size, **settings))
            named = [int(word) for word in str(caught.value).replace(",", " ").split() if word.isdigit()][-1]
            assert train(texts, TrainingSettings(vocab_size=named, **settings)).vocab_size == named
