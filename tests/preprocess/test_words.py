"""Word starts are exact in characters, whatever stands between the words."""

from __future__ import annotations

import builtins
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocess import words
from preprocess.words import Segmenter, build_segmenter, read_user_dictionary, segmenter_identity

# "|" stands where a word begins; the text is what is left without it.
CHINESE = [
    "|我|在|北京大学|学习|。",
    "|他|说|：|“|你好|！|”",
    "|花|了|3.14|元|，|涨|了|50%",
    "|iPhone15| |Pro|很|好",
    "|我| |爱| |北京",
    "　　|北京|\t|上海\r\n|广州",
    "|C++|和|abc123|的|区别",
    "|😀|你好|😀|世界",
    "|𠮷|野家",
    "",
    " ",
    "\n\n",
]  # fmt: skip


def marked(segmenter: Segmenter, text: str) -> str:
    starts = segmenter.word_starts(text)
    assert starts.dtype == np.bool_ and len(starts) == len(text)
    return "".join("|" + character if start else character for character, start in zip(text, starts, strict=True))


@pytest.fixture(scope="module", params=["rjieba", "jieba"])
def chinese(request: pytest.FixtureRequest) -> Segmenter:
    pytest.importorskip(request.param, reason=f"needs {request.param}")
    return build_segmenter(request.param)


@pytest.mark.parametrize("text", CHINESE)
def test_hand_made_case(chinese: Segmenter, text: str) -> None:
    expected = text.replace("| ", " ").replace("|\t", "\t")
    assert marked(chinese, text.replace("|", "")) == expected


def test_spaces() -> None:
    spaces = build_segmenter("spaces")
    for text in ["|我们| |去| |北京| |，| |买| |iPhone| |15", " |a \t|b\u3000|c\n\n|d", "|😀| |𠮷野家", "", " ", "|x"]:
        assert marked(spaces, text.replace("|", "")) == text.replace("| ", " ")


def test_white_space_is_that_of_str() -> None:
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    after = build_segmenter("spaces").word_starts("".join(f"{c}a\n" for c in every))[1::3]
    assert after.tolist() == [c.isspace() for c in every]


def test_lines_are_independent(chinese: Segmenter, shared_data: Path) -> None:
    text = (shared_data / "raw_zh_clue_news" / "doc_per_line.txt").read_text(encoding="utf-8")
    lines = text.split("\n")[: 400 if chinese.name == "rjieba" else 60]
    alone = [start for line in lines for start in [*chinese.word_starts(line).tolist(), False]][:-1]
    assert chinese.word_starts("\n".join(lines)).tolist() == alone


def test_real_text_equals_the_library_word_by_word(chinese: Segmenter, shared_data: Path) -> None:
    """Offsets that the library itself gives (tokenize), against cumulated lengths of its cut."""
    library = pytest.importorskip(chinese.name)
    lines = (shared_data / "raw_zh_clue_news" / "doc_per_line.txt").read_text(encoding="utf-8").split("\n")
    for line in lines[: 200 if chinese.name == "rjieba" else 40]:
        offsets = [token[1] if isinstance(token, tuple) else token.start for token in library.tokenize(line)]
        assert np.flatnonzero(chinese.word_starts(line)).tolist() == [at for at in offsets if not line[at].isspace()]


def read_gold(path: Path) -> list[list[str]]:
    """Sentences of words: each line of the file is a character, its index in its word, and a label."""
    sentences = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        found: list[str] = []
        for line in block.split("\n"):
            character, index = line.split("\t")[0][:-1], line.split("\t")[0][-1]
            if index == "0" or not found:
                found.append(character)
            else:
                found[-1] += character
        sentences.append(found)
    return sentences


@pytest.mark.parametrize("separator", [" ", "  ", "\u3000", "\t"])
def test_gold_segmented_text(shared_data: Path, separator: str) -> None:
    spaces = build_segmenter("spaces")
    for name in ("dev", "test"):
        gold = read_gold(shared_data / "ner_zh_weibo" / f"{name}.conll")
        text = "\n".join(map(separator.join, gold))
        starts = np.flatnonzero(spaces.word_starts(text)).tolist()
        expected, at = [], 0
        for sentence in gold:
            for word in sentence:
                expected.append(at)
                at += len(word) + len(separator)
            at += 1 - len(separator)
        assert starts == expected


def test_names_and_titles_marked_by_hand_begin_words(chinese: Segmenter, shared_data: Path) -> None:
    """Annotators marked names, organisations, titles: nearly all begin where a word does, and end where one ends."""
    characters: list[str] = []
    bounds = []
    for line in (shared_data / "ner_zh_resume" / "test.char.bmes").read_text(encoding="utf-8").split("\n"):
        character, _, label = line.partition(" ")
        if label[:1] in ("B", "S"):
            bounds.append(len(characters))
        characters.append(character or "\n")
        if label[:1] in ("E", "S"):
            bounds.append(len(characters))
    starts = chinese.word_starts("".join(characters))
    assert starts[[at for at in bounds if not characters[at].isspace()]].mean() > 0.95


def test_agrees_with_words_of_social_media(chinese: Segmenter, shared_data: Path) -> None:
    """The words that come with this corpus are an older jieba's, it seems; entities there were marked by hand."""
    gold = read_gold(shared_data / "ner_zh_weibo" / "test.conll")
    theirs, ours, at = set(), set(), 0
    for sentence in gold:
        starts = np.flatnonzero(chinese.word_starts("".join(sentence))) + at
        for word in sentence:
            theirs.add((at, at + len(word)))
            at += len(word)
        ours |= set(zip(starts.tolist(), [*starts[1:].tolist(), at], strict=True))
    both = len(theirs & ours)
    assert 2 * both / (len(theirs) + len(ours)) > 0.97


def test_rjieba_equals_jieba_where_text_is_chinese(shared_data: Path) -> None:
    """They differ in words joined by . - _ only: jieba's statistics see such a run as one piece."""
    pytest.importorskip("rjieba")
    pytest.importorskip("jieba")
    fast, original = build_segmenter("rjieba"), build_segmenter("jieba")
    text = (shared_data / "raw_zh_clue_news" / "doc_per_line.txt").read_text(encoding="utf-8")[:100_000]
    lines = [line for line in text.split("\n") if not set(line) & set(".-_+#&%")]
    joined = "\n".join(lines)
    differences = int((fast.word_starts(joined) != original.word_starts(joined)).sum())
    assert len(joined) > 10_000 and differences <= len(joined) // 5000


DICTIONARY = "\ufeff韩玉赏鉴 3 nz\n\n云计算 100000\n石墨烯\n创新办 i\nEdu Trust认证 2000\n"


def test_user_dictionary(chinese: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(DICTIONARY, encoding="utf-8")
    text = "韩玉赏鉴是云计算专家，石墨烯归创新办管"
    before = marked(chinese, text)
    own = build_segmenter(chinese.name, path)
    assert marked(own, text) == "|韩玉赏鉴|是|云计算|专家|，|石墨烯|归|创新办|管" != before
    assert marked(build_segmenter(chinese.name), text) == before  # others do not know these words


def test_user_dictionary_equals_load_userdict(tmp_path: Path, shared_data: Path) -> None:
    jieba = pytest.importorskip("jieba")
    text = (shared_data / "raw_zh_clue_news" / "doc_per_line.txt").read_text(encoding="utf-8")[:30_000]
    found = sorted({text[at : at + 3] for at in range(0, 30_000, 97) if text[at : at + 3].isalpha()})
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{word}{' 50 n' * (at % 2)}\n" for at, word in enumerate(found)), encoding="utf-8")
    reference = jieba.Tokenizer()
    reference.tmp_dir = str(tmp_path)
    reference.load_userdict(str(path))
    starts, at = [], 0
    for word in reference.cut(text):
        starts += [at] if not word.isspace() else []
        at += len(word)
    assert np.flatnonzero(build_segmenter("jieba", path).word_starts(text)).tolist() == starts
    pytest.importorskip("rjieba")
    differences = build_segmenter("rjieba", path).word_starts(text) != build_segmenter("jieba", path).word_starts(text)
    assert differences.mean() < 0.005


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ok 3\n\xd6\xd0 3\n", "words.txt: line 2: byte 0 of the line is not UTF-8"),
        ("好\n词\t3\n".encode(), r"words.txt: line 2: '词\\t3' has a control character or a tab; a line is: word"),
        ("好 0\n".encode(), r"line 1: '好 0' has the frequency 0 \(from 1 to 2,147,483,647, or none\)"),
        ("好 99999999999\n".encode(), "line 1: .* has the frequency 99999999999"),
        (("好" * 101).encode(), r"line 1: .* has a word of 101 characters \(100 at most\)"),
    ],
)
def test_bad_user_dictionary(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "words.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read_user_dictionary(tmp_path / "words.txt"))
    with pytest.raises(ValueError, match=message):
        build_segmenter("rjieba", tmp_path / "words.txt")


def test_unknown_name_and_dictionary_for_spaces(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no word segmenter 'pkuseg'; there are: rjieba, jieba, spaces"):
        build_segmenter("pkuseg")
    with pytest.raises(ValueError, match="a user dictionary needs --word_segmenter rjieba or jieba"):
        build_segmenter("spaces", tmp_path / "words.txt")


@pytest.mark.parametrize("name", ["rjieba", "jieba"])
def test_missing_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importer(wanted: str, *arguments: Any, **keywords: Any) -> Any:
        if wanted == name:
            raise ImportError(wanted)
        return real(wanted, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", importer)
    with pytest.raises(ValueError, match=f"--word_segmenter {name} needs the package {name}: pip install {name}"):
        build_segmenter(name)


def test_lost_characters_are_an_error() -> None:
    segmenter = Segmenter("broken", lambda text: [text[:2]])
    with pytest.raises(ValueError, match="broken gave back 2 of 3 characters of 'abc'"):
        segmenter.word_starts("abc")


def test_identity(tmp_path: Path) -> None:
    pytest.importorskip("rjieba")
    (tmp_path / "words.txt").write_bytes(b"word\n")
    identity = segmenter_identity("rjieba", tmp_path / "words.txt")
    assert identity["name"] == "rjieba" and identity["version"]
    assert identity["user_dictionary_sha256"] == hashlib.sha256(b"word\n").hexdigest()
    assert segmenter_identity("spaces") == {"name": "spaces"}


def test_jieba_is_silent_and_leaves_no_cache(tmp_path: Path, repository: Path) -> None:
    pytest.importorskip("jieba")
    program = "from preprocess.words import build_segmenter; print(build_segmenter('jieba').word_starts('北京').sum())"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=repository,
        env={"TMPDIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "1\n" and run.stderr == "" and not list(tmp_path.iterdir())
    assert words.SEGMENTERS == ("rjieba", "jieba", "spaces")
