"""Each cleaning step changes and drops what its setting says, and counts it."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preprocess.cleaning.drops import Drops
from preprocess.cleaning.settings import CleaningSettings, cleaning_versions
from preprocess.cleaning.steps import cleaning_steps
from preprocess.corpus.document import Document


def clean(*texts: str | tuple[str, str], **settings: Any) -> tuple[list[str | tuple[str, str]], dict[str, int]]:
    """Return the texts (or pairs) that stay, and the counts of what was dropped."""
    pairs = [text if isinstance(text, tuple) else (text, None) for text in texts]
    documents = (Document(text, 0, second=second) for text, second in pairs)
    drops = Drops()
    kept = cleaning_steps(CleaningSettings(**settings), drops)(documents)
    result = [document.text if document.second is None else (document.text, document.second) for document in kept]
    return result, dict(drops.counts)


def test_all_off_is_the_iterator_itself() -> None:
    documents: Iterator[Document] = iter([])
    assert cleaning_steps(CleaningSettings(), Drops())(documents) is documents
    assert CleaningSettings().problems() == []


def test_settings_are_plain_json() -> None:
    settings = CleaningSettings(drop_matching=("a",), min_script_share=("Han:0.3",), min_characters=3)
    assert CleaningSettings(**json.loads(json.dumps(dataclasses.asdict(settings)))).problems() == []


def test_control_characters() -> None:
    text = "a\x00b\x0cc\x85d\x7f\te\nf\x1b"
    assert clean(text, control_characters="keep") == ([text], {})
    assert clean(text, "\x01\x02", control_characters="remove") == (["ab c d\te\nf"], {"documents_empty": 1})
    dropped = clean(text, "a\tb\nc\u200b😀", ("a", "\x01"), control_characters="drop")
    assert dropped == (["a\tb\nc\u200b😀"], {"documents_with_control_characters": 2})


def test_control_characters_are_those_of_unicode() -> None:
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    kept = "".join(c for c in every if unicodedata.category(c) != "Cc" or c in "\t\n\r")
    [found], _ = clean(f"x{every}x", control_characters="remove")
    assert [c for c in found if c != " "] == [c for c in f"x{kept}x" if c != " "]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normal_form(form: Any) -> None:
    text = "e\u0301 é ﬁ １２ Å ㍿ 가"
    assert clean(text, ("plain", text), normal_form=form) == (
        [unicodedata.normalize(form, text), ("plain", unicodedata.normalize(form, text))],
        {},
    )
    assert clean("\u00a8x", normal_form="NFKC") == (["\u0308x"], {})  # no white space at the ends


def test_simplify() -> None:
    pytest.importorskip("opencc", reason="simplify needs opencc")
    assert clean("漢語轉換。頭髮，發展，乾坤，乾燥", ("plain", "臺灣"), simplify=True)[0] == [
        "汉语转换。头发，发展，乾坤，干燥",
        ("plain", "台湾"),
    ]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert CleaningSettings(simplify=True).problems() == [
        "simplify needs the package opencc: pip install opencc",
        "split_sentences needs the package sentencex: pip install sentencex",
    ]
    assert CleaningSettings(split_sentences=False).problems() == []


def test_lengths() -> None:
    found = clean("a", "ab", "汉字很多", "abcde", min_characters=2, max_characters=4)
    assert found == (["ab", "汉字很多"], {"documents_too_short": 1, "documents_too_long": 1})


def test_patterns() -> None:
    found = clean("buy now", "hello", ("hello", "Buy"), drop_matching=["(?i)^buy", "casino"])
    assert found == (["hello"], {"documents_matching_a_drop_pattern": 2})
    found = clean("one. ", "two", "three!", ("x", "y."), keep_matching=["\\.", "!$"])
    assert found == (["one. ", "three!", ("x", "y.")], {"documents_matching_no_keep_pattern": 1})


def test_script_share() -> None:
    texts = ["汉字abcdefgh", "汉字很多ab", "12345 ！", "abc", "汉", ("abcdefgh", "汉字")]
    found = clean(*texts, min_script_share=["Han:0.3"])
    assert found == (["汉字很多ab", "汉"], {"documents_with_too_little_Han": 4})
    assert clean("汉字汉字a", "Hello 汉", min_script_share=["Hani:0.1", "latin:0.5"])[0] == ["Hello 汉"]
    assert clean("Привет", "hello", min_script_share=["Cyrl:1"])[0] == ["Привет"]


def test_order_of_steps() -> None:
    """A length is that of the text as it will be."""
    assert clean("\x01\x02ab", "ﬁ", min_characters=2, control_characters="remove", normal_form="NFKC")[0] == [
        "ab",
        "fi",
    ]


def test_empty_second_text_drops_the_pair() -> None:
    assert clean(("a", "\x01"), ("a", ""), control_characters="remove") == ([("a", "")], {"documents_empty": 1})


def test_dropped_texts_are_written_aside() -> None:
    aside = io.StringIO()
    documents = [
        Document("汉", 0, file="g.txt", offset=3),
        Document("\x01", 0, file="f.txt", offset=20),
        Document("汉字", 0, file="f.txt", offset=12),
    ]
    settings = CleaningSettings(min_characters=3, control_characters="remove")
    drops = Drops(keep_texts=True)
    assert list(cleaning_steps(settings, drops)(iter(documents))) == []
    drops.write(aside, ["f.txt", "g.txt"])
    assert [json.loads(line) for line in aside.getvalue().splitlines()] == [
        {"reason": "documents_too_short", "file": "f.txt", "offset": 12, "text": "汉字"},
        {"reason": "documents_empty", "file": "f.txt", "offset": 20, "text": "\x01"},
        {"reason": "documents_too_short", "file": "g.txt", "offset": 3, "text": "汉"},
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"control_characters": "no"}, "control_characters ('no') must be one of: keep, remove, drop"),
        ({"normal_form": "nfc"}, "normal_form ('nfc') must be one of: none, NFC, NFKC, NFD, NFKD"),
        ({"deduplicate": "lines"}, "deduplicate ('lines') must be one of: none, documents, sentences"),
        ({"min_characters": 0}, "min_characters (0) must be at least 1"),
        ({"min_characters": 5, "max_characters": 4}, "min_characters (5) must not be above max_characters (4)"),
        (
            {"drop_matching": ["ok", "a(b"]},
            "drop_matching ('a(b') is no regular expression: missing ), unterminated subpattern at character 2",
        ),
        (
            {"keep_matching": ["*"]},
            "keep_matching ('*') is no regular expression: nothing to repeat at character 1",
        ),
        ({"min_script_share": ["Han"]}, "('Han') must be SCRIPT:SHARE with a share above 0 up to 1, as in Han:0.3"),
        (
            {"min_script_share": ["Han:30"]},
            "('Han:30') must be SCRIPT:SHARE with a share above 0 up to 1, as in Han:0.3",
        ),
        ({"min_script_share": ["Han:nan"]}, "('Han:nan') must be SCRIPT:SHARE"),
        ({"min_script_share": ["Hann:0.3"]}, "there is no script 'Hann'; did you mean Han or Hani"),
        ({"min_script_share": ["chinese:0.3"]}, "there is no script 'chinese', a language; did you mean Han?"),
        ({"min_script_share": ["}:0.3"]}, "there is no script '}'; names are those of Unicode scripts"),
    ],
)
def test_problems(settings: dict[str, Any], message: str) -> None:
    [problem] = CleaningSettings(**settings).problems()
    assert message in problem
    with pytest.raises(ValueError) as raised:
        cleaning_steps(CleaningSettings(**settings), Drops())
    assert str(raised.value) == problem


def test_versions() -> None:
    assert set(cleaning_versions(CleaningSettings())) == {"sentencex"}
    assert cleaning_versions(CleaningSettings(split_sentences=False)) == {}
    pytest.importorskip("opencc", reason="simplify needs opencc")
    every = CleaningSettings(normal_form="NFC", simplify=True, drop_matching=["a"], min_script_share=["Han:0.1"])
    versions = cleaning_versions(every)
    assert set(versions) == {"sentencex", "unicodedata", "re", "opencc", "regex"}
    assert versions["unicodedata"] == unicodedata.unidata_version and all(versions.values())


def test_optional_libraries_are_not_imported(repository: Path) -> None:
    program = (
        "import sys; import preprocess.cleaning.steps, preprocess.cleaning.sentences, preprocess.words;"
        "print([name for name in ('opencc', 'rjieba', 'jieba', 'torch') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
