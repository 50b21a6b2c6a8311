"""inspect: numbers against counts over plain documents, samples against the text, the page as a parser sees it."""

from __future__ import annotations

import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from preprocess.inspecting.inspection import inspect_folder, pad, width
from preprocess.inspecting.samples import draw_documents, printable, show_words
from preprocess.manifest import read_manifest, write_manifest
from preprocess.shards import OPTIONAL, write_shard
from preprocess.tokenizer import Tokenizer, load_tokenizer
from preprocess.tokenizer.training import TYPES, TrainingSettings, train
from tests.html_pages import Page
from tests.preprocess.folders.shard_documents import Doc, make_arrays, random_docs

Make = Callable[..., Path]
ORDINARY = 74 - 5  # of the tests' vocabulary


def table(lines: list[str], title: str) -> list[list[str]]:
    """Rows of a table of the output, split at two spaces; the title's line and lines without columns left out."""
    start = next(number for number, line in enumerate(lines) if line.startswith(title))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("  "):
            break
        rows.append([cell.strip() for cell in line.strip().split("  ") if cell.strip()])
    return rows


def test_counts(make_folder: Make, tokenizer: Tokenizer) -> None:
    docs = random_docs(1, 83, ["first", "second"], OPTIONAL)
    docs.append(Doc(((1, 7), (1, 1)), "second", None, None, (True,) * 4))
    folder = make_folder("s", docs, random_docs(2, 3, ["first"], OPTIONAL), options=OPTIONAL, labels=["neg", "pos"])
    lines = list(inspect_folder(folder))
    text = "\n".join(lines)
    tokens = list(chain.from_iterable(doc.tokens for doc in docs))
    sentences = [sentence for doc in docs for sentence in doc.sentences]
    assert read_manifest(folder).digest in text
    assert f"documents 84, sentences {len(sentences)}, tokens {len(tokens):,}" in text
    assert "held out: 3 documents" in text and "dropped documents too short: 3" in text
    assert f"unknown tokens: 3 ({3 / len(tokens):.3%} of all)" in text
    seen = {token for token in tokens if token >= 5}
    assert f"vocabulary: {len(seen)} of {ORDINARY} ordinary tokens occur ({len(seen) / ORDINARY:.1%}), " in text
    assert f"{ORDINARY - len(seen)} never do" in text
    assert f"second texts: {sum(doc.second is not None for doc in docs)} documents have one" in text
    rows = table(lines, "sources:")
    for row, name in zip(rows[1:], ("first", "second"), strict=True):
        own = [doc for doc in docs if doc.source == name]
        num_tokens = sum(len(doc.tokens) for doc in own)
        unknown = sum(doc.tokens.count(1) for doc in own)
        assert row[0].endswith(name) and row[1:3] == ["1", "document_per_line"]
        assert row[3:] == [
            str(len(own)),
            str(sum(len(doc.sentences) for doc in own)),
            f"{num_tokens:,}",
            f"{unknown / num_tokens:.3%}",
        ]
    frequent = Counter(tokens).most_common()
    rows = table(lines, "most frequent tokens:")[1:]
    assert [int(row[2]) for row in rows] == [count for _, count in frequent[:20]]
    assert all(tokenizer.tokens[int(row[1])] == row[0] and tokens.count(int(row[1])) == int(row[2]) for row in rows)
    labels = Counter(doc.label for doc in docs)
    assert table(lines, "documents of each label:")[1:] == [
        ["(none)", str(labels[None])],
        ["neg", str(labels["neg"])],
        ["pos", str(labels["pos"])],
    ]


@pytest.mark.parametrize(
    ("title", "lengths_of"),
    [
        ("tokens per document:", lambda doc: [len(doc.tokens)]),
        ("sentences per document:", lambda doc: [len(doc.sentences)]),
        ("tokens per sentence:", lambda doc: [len(sentence) for sentence in doc.sentences]),
    ],
)
@pytest.mark.parametrize("num_docs", [40, 41])
def test_lengths(make_folder: Make, title: str, lengths_of: Callable[[Doc], list[int]], num_docs: int) -> None:
    docs = random_docs(num_docs, num_docs, ["a"])
    lengths = list(chain.from_iterable(map(lengths_of, docs)))
    rows = table(list(inspect_folder(make_folder("s", docs))), title)
    assert rows[0] == [
        f"mean {statistics.mean(lengths):.1f}, median {statistics.median(lengths):g}, longest {max(lengths)}"
    ]
    for row in rows[2:]:
        least, most, count = (int(cell.replace(",", "")) for cell in row[:3])
        assert most + 1 == 2 * least and count == sum(least <= length <= most for length in lengths)
        assert (len(row) == 4) == (
            count > 0 and round(40 * count / max(Counter(map(int.bit_length, lengths)).values())) > 0
        )
    assert int(rows[2][0]) <= min(lengths) <= int(rows[2][1]) and int(rows[-1][0]) <= max(lengths) <= int(rows[-1][1])


def test_same_lines_for_any_number_of_workers(make_folder: Make) -> None:
    folder = make_folder("s", random_docs(1, 200, ["a", "b"], OPTIONAL), options=OPTIONAL, labels=["neg", "pos"])
    assert list(inspect_folder(folder, num_workers=2)) == list(inspect_folder(folder))


def test_samples_depend_on_seed_and_manifest(make_folder: Make) -> None:
    manifest = read_manifest(make_folder("s", random_docs(1, 200, ["a"])))
    first = draw_documents(manifest, 5, 0)
    assert first == draw_documents(manifest, 5, 0) == sorted(set(first)) and len(first) == 5
    assert first != draw_documents(manifest, 5, 1)
    other = read_manifest(make_folder("t", random_docs(2, 200, ["a"])))
    assert first != draw_documents(other, 5, 0)
    assert draw_documents(manifest, 200, 3) == draw_documents(manifest, 999, 3) == list(range(200))
    times = np.bincount(list(chain.from_iterable(draw_documents(manifest, 20, seed) for seed in range(300))))
    assert len(times) == 200 and abs(times - 30).max() < 30  # 5 standard deviations and more


def test_samples_show_words_sentences_and_second_texts(make_folder: Make, tokenizer: Tokenizer) -> None:
    ids = {token: index for index, token in enumerate(tokenizer.tokens)}
    words = [[ids[token] for token in text.split()] for text in ("the token ##s", "中 文 字 人", "mask ##ing")]
    starts = (True, True, False, True, False, True, True, True, False)
    doc = Doc(tuple(map(tuple, words)), "a", "pos", 7, starts)
    plain = Doc(doc.sentences, "a")
    folder = make_folder("s", [doc], options=OPTIONAL, labels=["pos"])
    lines = list(inspect_folder(folder))
    assert lines[-1] == "  shard-00000.h5, document 0 [a, pos]: the token·s | 中·文 字 人 => mask·ing"
    lines = list(inspect_folder(make_folder("t", [plain])))
    assert lines[-1] == "  shard-00000.h5, document 0 [a]: the token·s | 中 文 字 人 | mask·ing"
    long = Doc(((ids["the"],) * 61,), "a")
    lines = list(inspect_folder(make_folder("u", [long])))
    assert lines[-1].endswith("the the ... (61 tokens)") and lines[-1].count("the") == 60
    assert not list(inspect_folder(folder, num_samples=0))[-1].startswith("  ")


class ByteTokenizer:
    """Decodes ids as UTF-8 bytes, as a byte-level BPE does."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of bytes."""
        return bytes(ids).decode(errors="replace")


def test_tokens_of_parts_of_characters_are_shown_together() -> None:
    text = " né 中 x"
    ids = list(text.encode())
    starts = np.array([byte == 32 for byte in ids])
    assert show_words(ids, starts, ByteTokenizer(), {}) == "n·é 中 x"  # type: ignore[arg-type]
    assert show_words(ids[:-3], starts[:-3], ByteTokenizer(), {}) == "n·é \ufffd"  # type: ignore[arg-type]
    assert show_words([65, 66], np.array([False, False]), ByteTokenizer(), {1: "|"}) == "A | B"  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", TYPES)
def test_samples_can_be_read_with_every_type_of_tokenizer(kind: str, repository: Path) -> None:
    """Without the marks between words and pieces, the text is there again."""
    texts = ["It was a truth, universally acknowledged", "国破山河在城春草木深"]
    english = (repository / "examples" / "corpus" / "en_northanger_abbey.txt").read_text(encoding="utf-8")[:40_000]
    corpus = [*english.split("\n"), *(texts + texts[0].split()) * 3]
    tokenizer = train(corpus, TrainingSettings(type=kind, vocab_size=700))
    ids, counts = tokenizer.encode(texts)
    shown = show_words(ids.tolist(), ~tokenizer.continuation[ids], tokenizer, {int(counts[0]): "|"})
    plain = shown.replace("·", "").replace(" ", "")
    assert plain in ("|".join(texts).replace(" ", ""), "|".join(texts).replace(" ", "").lower())


def test_nothing_in_the_text_reaches_the_terminal_as_a_command() -> None:
    assert printable("a\x1b[31m\n中\u202e\ud800") == "a\\x1b[31m\\n中\\u202e\\ud800"


def test_columns_of_wide_characters() -> None:
    assert width("中文") == 4 and width("e\u0301") == 1
    assert pad("中", 4, False) == "中  " and pad("中", 4, True) == "  中"


def test_the_heldout_folder_and_an_empty_one(make_folder: Make) -> None:
    folder = make_folder("s", random_docs(1, 9, ["a"]), random_docs(2, 3, ["a"]))
    assert "documents 3, " in "\n".join(inspect_folder(folder / "heldout"))
    empty = make_folder("t", random_docs(1, 9, ["a"]), [])
    assert "documents 0, " in "\n".join(inspect_folder(empty / "heldout"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a._replace(tokens=np.full_like(a.tokens, 99)), "token id 99, and the vocabulary has 74"),
        (lambda a: a._replace(document_source=a.document_source + np.uint16(7)), "a document of source 7"),
        (lambda a: a._replace(document_label=np.full_like(a.document_label, 2)), "a document of label 2"),
    ],
)
def test_shards_that_contradict_the_manifest(make_folder: Make, change: Callable, message: str) -> None:
    docs = random_docs(1, 9, ["a"], OPTIONAL)
    folder = make_folder("s", docs, options=OPTIONAL, labels=["neg", "pos"], per_shard=9)
    manifest = read_manifest(folder)
    arrays = change(make_arrays(docs, ["a"], ["neg", "pos"], OPTIONAL))
    manifest.shards[0] = write_shard(folder / manifest.shards[0].file, arrays, "0" * 64)
    write_manifest(manifest, folder)
    with pytest.raises(ValueError, match=rf"shard-00000.h5 has .*{message}"):
        list(inspect_folder(folder))


def test_another_tokenizer(make_folder: Make, tmp_path: Path, vocabulary_file: Path) -> None:
    folder = make_folder("s", random_docs(1, 9, ["a"]))
    (tmp_path / "v.txt").write_text(vocabulary_file.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    load_tokenizer(tmp_path / "v.txt").save(folder / "tokenizer")
    with pytest.raises(ValueError, match=r"tokenizer is not the tokenizer that .* was made with; .*verify"):
        list(inspect_folder(folder))


def test_wrong_arguments(make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder("s", random_docs(1, 9, ["a"]))
    with pytest.raises(ValueError, match="samples is -1 and seed is 0: both are 0 or more"):
        list(inspect_folder(folder, num_samples=-1))
    for path in (tmp_path, tmp_path / "nowhere" / "x.html"):
        with pytest.raises(ValueError, match=r"--html .*: give the name of a file in a folder that exists"):
            list(inspect_folder(folder, html=path))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="draws its plots with matplotlib: pip install matplotlib, or leave --html"):
        list(inspect_folder(folder, html=tmp_path / "x.html"))


def test_the_page(make_folder: Make, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plots of --html need matplotlib")
    evil = ["<script>alert(1)</script>", "$\\frac{1}{0}$ & co", "中文\x07'\"", "x"]
    docs = random_docs(1, 90, evil, OPTIONAL)
    labels = ["neg", "<img src=x onerror=y>"]
    folder = make_folder("s&<b>", docs, [], options=OPTIONAL, labels=["pos", *labels])
    lines = list(inspect_folder(folder, html=tmp_path / "x.html"))
    assert lines[-1] == f"wrote {tmp_path / 'x.html'}"
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and page.seen["svg"] == 4 and page.seen["table"] == 6
    assert not set(page.seen) & {"script", "img", "link", "iframe", "object", "b>"}
    assert len(set(page.ids)) == len(page.ids) and all(ref[1:] in page.ids for ref in page.references)
    assert all(ref.startswith("#") for ref in page.references)
    assert "http" not in text.replace("http://www.w3.org/1999/xlink", "").replace("http-equiv", "")
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    shown = "\n".join(page.text)
    for line in lines[1:4]:
        assert line in shown
    for name in ("<script>alert(1)</script>", "$\\frac{1}{0}$ & co", "<img src=x onerror=y>", "中文\\x07'\""):
        assert name in shown
    for cells in table(lines, "most frequent tokens:"):
        assert all(cell in page.text for cell in cells)
    again = tmp_path / "y.html"
    list(inspect_folder(folder, html=again))
    assert again.read_bytes() == (tmp_path / "x.html").read_bytes()


def test_a_page_of_many_sources_and_one_of_nothing(make_folder: Make, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plots of --html need matplotlib")
    names = [f"a source with a rather long name, number {number}" for number in range(30)]
    list(inspect_folder(make_folder("s", random_docs(1, 60, names)), html=tmp_path / "x.html"))
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "10 others" in text and len(re.findall(r">\.\.\.[^<]+, number \d+<", text)) == 20
    empty = make_folder("t", random_docs(1, 9, ["a"]), [])
    list(inspect_folder(empty / "heldout", html=tmp_path / "y.html"))
    page = Page((tmp_path / "y.html").read_text(encoding="utf-8"))
    assert page.open == [] and page.seen["svg"] == 0
