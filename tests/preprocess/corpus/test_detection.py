"""What files are taken for, and the lines that say so."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from preprocess.corpus.blocks import BlockReader
from preprocess.corpus.corpus import Corpus, CorpusSettings
from preprocess.corpus.inputs import open_corpus

DOCUMENT_PER_LINE, SENTENCE_PER_LINE = "document_per_line", "sentence_per_line"
PARAGRAPH = (
    "It was a bright cold day in April, and the clocks were striking thirteen. He was walking, with his head down, "
    "towards the door of the house. Nobody saw him! The hall smelt of old cabbage and of mats that were never beaten."
)


def opened(path: Path, layout: str = "auto") -> tuple[Corpus, list[str]]:
    """Open one file or folder."""
    return open_corpus(CorpusSettings(arguments=[str(path)], layout=(layout,)), Path("/nowhere"))


@pytest.mark.parametrize(
    ("text", "layout", "told"),
    [
        ("one\ntwo\n\nthree\n", SENTENCE_PER_LINE, "2 documents, 3 lines (sentences), 1.5 lines per document"),
        (
            "one\r\ntwo\r\n \t\r\nthree\r\n",
            SENTENCE_PER_LINE,
            "2 documents, 3 lines (sentences), 1.5 lines per document",
        ),
        ("one\ntwo\nthree\n\n\n", DOCUMENT_PER_LINE, "3 documents, a line each"),
        ("one\n" * 50_000 + "\none", DOCUMENT_PER_LINE, "50,001 documents, a line each"),
        ("one\n" * 500 + "\n" + "one\n" * 500, SENTENCE_PER_LINE, "500.0 lines per document"),
        ("one\n" * 501 + "\n" + "one\n" * 501, DOCUMENT_PER_LINE, "1,002 documents"),
        ("a single line", DOCUMENT_PER_LINE, "1 documents, a line each"),
        (f"{PARAGRAPH}\n\n" * 20, DOCUMENT_PER_LINE, "20 documents, a line each"),
        ("a\tb\tc\td\n" * 9, DOCUMENT_PER_LINE, "9 documents, a line each, 4 columns"),
        ('{"text": "one"}\n{"text": "two"}\n', "jsonl", "2 documents, text in the field 'text'"),
        ("1\tgood\n0\tbad\n" * 9, "labelled_tsv", "18 documents of 2 columns, 2 labels (0, 1)"),
        ("yes\ta b\tc d\nno\te f\tg\n" * 9, "labelled_tsv", "18 documents of 3 columns, 2 labels (no, yes)"),
        ("label\ttext_a\n0\tx\n", "labelled_tsv", "1 documents, 1 labels (0), header line left out"),
        ("src\ttgt\none\teins\n", "paired_tsv", "1 documents of two columns (source, target), header line left out"),
        ("".join(f"line {n}\tZeile {n}\n" for n in range(50)), "paired_tsv", "50 documents of two columns"),
        ("<mediawiki>\n  <page>\n  </page>\n</mediawiki>", "mediawiki", "1 pages"),
        ('<?xml version="1.0"?>\n<mediawiki xmlns="x">\n</mediawiki>', "mediawiki", "0 pages"),
    ],
)
def test_layouts_are_detected(tmp_path: Path, text: str, layout: str, told: str) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(text.encode())
    corpus, reports = opened(path)
    assert corpus.files[0].layout == layout
    assert told in reports[0]
    assert f"{len(text.encode()):,} bytes, {layout} (detected)" in reports[0]


def book(chapter: str, width: int | None) -> str:
    """Return a book of chapters, its lines broken at a width."""
    paragraphs = [PARAGRAPH if width is None else textwrap.fill(PARAGRAPH, width)] * 9
    return "".join("\n\n".join([chapter.format(n), *paragraphs, '"Why so?"']) + "\n\n" for n in range(1, 6))


@pytest.mark.parametrize("chapter", ["CHAPTER {}", "## Chapter {}", "Book the {}"])
@pytest.mark.parametrize("width", [None, 40, 72])
def test_a_book_is_one_document(tmp_path: Path, chapter: str, width: int | None) -> None:
    path = tmp_path / "book.txt"
    path.write_text(book(chapter, width))
    corpus, reports = opened(path)
    assert corpus.files[0].layout == "document_per_file"
    assert "taken as 1 document of 55 paragraphs, " in reports[0]
    assert reports[0].endswith("; --layout sentence_per_line would make 55 documents")
    (document,) = BlockReader(corpus, 1 << 20).documents(0)
    expected = [part for n in range(1, 6) for part in (chapter.format(n), *[PARAGRAPH] * 9, '"Why so?"')]
    assert document.text.split("\n") == expected
    given, reports = opened(path, SENTENCE_PER_LINE)
    assert given.files[0].layout == SENTENCE_PER_LINE
    assert "sentence_per_line (given): 55 documents" in reports[0]


def test_many_books_in_one_file(tmp_path: Path) -> None:
    """What is too large for a book is not one document."""
    path = tmp_path / "books.txt"
    path.write_text(book("## Chapter {}", None) * (1 + (32 << 20) // len(book("## Chapter {}", None))))
    corpus, reports = opened(path)
    assert corpus.files[0].layout == "document_per_line"
    assert "a line each; it looks like prose with paragraphs, but is too large for one book" in reports[0]
    assert opened(path, "document_per_file")[0].files[0].layout == "document_per_file"
    path.write_text(book("## Chapter {}", 72) * (1 + (32 << 20) // len(book("## Chapter {}", 72))))
    with pytest.raises(ValueError, match=r"books.txt has .* of wrapped prose .* or give --layout sentence_per_line"):
        opened(path)


@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_a_folder_of_documents(tmp_path: Path, between: str) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text(between.join([f"Title {number}", *[PARAGRAPH] * (2 + number)]))
    corpus, reports = opened(tmp_path)
    assert {file.layout for file in corpus.files} == {"document_per_file"}
    assert reports[0].startswith(f"{tmp_path}/0.txt: ") and len(reports) == 9
    found = list(BlockReader(corpus, 1 << 20).documents(0))
    assert [item.text.split("\n")[0] for item in found] == [f"Title {number}" for number in range(9)]
    (tmp_path / "8.txt").unlink()
    (tmp_path / "7.txt").unlink()
    assert {file.layout for file in opened(tmp_path)[0].files} != {"document_per_file"}  # too few to be sure
    for number in range(7, 20):
        (tmp_path / f"{number}.txt").write_text(between.join([PARAGRAPH] * 3))
    assert "taken as 20 documents of " in opened(tmp_path)[1][0]


def test_real_books_are_one_document_each(shared_data: Path) -> None:
    books = sorted((shared_data / "raw_en_classics").glob("*_*.md"))
    corpus, _ = open_corpus(CorpusSettings(arguments=[str(path) for path in books]), Path("/nowhere"))
    assert {file.layout for file in corpus.files} == {"document_per_file"}


@pytest.mark.parametrize(
    ("name", "layout", "told"),
    [
        ("sample/en_northanger_abbey.txt", "paragraph_per_line", "32 documents"),
        ("sample/zh_tang300_song100.txt", SENTENCE_PER_LINE, "437 documents"),
        ("sample/zh_reviews_800.tsv", "labelled_tsv", "800 documents of 2 columns, 2 labels (0, 1), header line left"),
        ("raw_zh_clue_news/doc_per_line.txt", DOCUMENT_PER_LINE, "2,500 documents"),
        ("raw_zh_clue_news/sentence_per_line_blank_between_docs.txt", SENTENCE_PER_LINE, "2,500 documents, 18,141"),
        ("raw_zh_clue_news/news_commentary_en_zh.tsv", "paired_tsv", "1,000 documents of two columns"),
        ("raw_zh_modern_histories/modern.txt", SENTENCE_PER_LINE, "175 documents"),
        ("raw_zh_modern_histories/classical_modern_pairs_10k.tsv", "paired_tsv", "10,000 documents"),
        ("raw_en_wikitext2_sample/test.txt", "document_per_file", "1,320 paragraphs"),
        ("cls_zh_book_review/train.tsv", "labelled_tsv", "20,000 documents of 2 columns, 2 labels"),
        ("gen_zh_poems/ccpc_valid.json", "jsonl", "7,979 documents"),
    ],
)
def test_real_files(shared_data: Path, name: str, layout: str, told: str) -> None:
    corpus, reports = opened(shared_data / name)
    assert corpus.files[0].layout == layout
    assert told in reports[0]
    assert len(reports) == 1


def test_a_stray_blank_line_is_told(tmp_path: Path) -> None:
    """One blank line in a file of a document per line does not make two documents of it."""
    path = tmp_path / "x.txt"
    path.write_text("one document\n" * 9750 + "\n" + "one document\n" * 9750)
    corpus, reports = opened(path)
    assert corpus.files[0].layout == DOCUMENT_PER_LINE
    assert "19,500 documents" in reports[0]
    assert len(reports) == 2
    assert "note: blank lines were taken as accidents in" in reports[1]
    assert "blocks of 9,750.0 lines on average" in reports[1] and "--layout sentence_per_line makes" in reports[1]
    assert len(opened(path, DOCUMENT_PER_LINE)[1]) == 1  # the user knows
    (tmp_path / "y.txt").write_text("one document\n" * 9000 + "\n\none document\n")
    assert f"in 2 files, such as {path}: " in opened(tmp_path)[1][-1]


def test_many_files_are_summed_up(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("one\ntwo\n\nthree\n" if number % 3 else "one\ntwo\n")
    _, reports = opened(tmp_path)
    assert len(reports) == 2
    assert reports[0].startswith(
        "20 files: 300 bytes, sentence_per_line (detected): 40 documents, 60 lines (sentences)"
    )
    assert f"10 files ({tmp_path}/0.txt, {tmp_path}/12.txt, " in reports[1]
    assert ", ...): 80 bytes, document_per_line (detected): 20 documents, a line each" in reports[1]
    (tmp_path / "mine.jsonl").write_text('{"text": "one"}\n')
    assert opened(tmp_path)[1][2].startswith(f"{tmp_path}/mine.jsonl: 16 bytes, jsonl (detected)")


WRAPPED = textwrap.fill(PARAGRAPH, 72)
SENTENCES = "她说了一句话。\n他走了。\n没有人回答她。\n"


@pytest.mark.parametrize("odd", [WRAPPED, "Title\n", "One. Two.\n\n" * 12, SENTENCES])
@pytest.mark.parametrize("text", ["\n\n".join([WRAPPED] * 5), SENTENCES, "\n".join([PARAGRAPH] * 4)])
def test_a_folder_is_judged_as_a_whole(tmp_path: Path, text: str, odd: str) -> None:
    """Short documents, wrapped or not, are one a file; so is the odd one among them."""
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text(text)
    (tmp_path / "odd.txt").write_text(odd)
    corpus, reports = opened(tmp_path)
    assert {file.layout for file in corpus.files} == {"document_per_file"}
    assert "taken as 21 documents of " in reports[0]


def test_a_folder_of_many_documents_a_file(tmp_path: Path) -> None:
    """Sentences with blank lines between documents stay so, with an odd file among them."""
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text("\n".join([SENTENCES] * 4))
    (tmp_path / "odd.txt").write_text(SENTENCES)
    assert {file.layout for file in opened(tmp_path)[0].files} == {"sentence_per_line"}


def test_paragraphs_with_blank_lines_between_documents(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\n\n".join(["\n".join(["Mr. X came. He saw. He left."] * 3)] * 50))
    corpus, reports = opened(path)
    assert corpus.files[0].layout == "paragraph_per_line"
    assert "paragraph_per_line (detected): 50 documents, 150 lines (paragraphs), 3.0 lines per document" in reports[0]
    found = list(BlockReader(corpus, 1 << 20).documents(0))
    assert len(found) == 50 and not found[0].lines_are_sentences and found[0].text.count("\n") == 2


GOOD = '{"text": "one thing"}\n'


@pytest.mark.parametrize(
    "text",
    [
        "# exported\n" + GOOD * 20,
        ("not json\n" + GOOD * 9) * 30,
        GOOD * 2 + "{broken\n",
        GOOD * 5 + "\n" + '{"text": "cut',
        '{"text": "' + "long " * 1_000_000 + '"}\n' + GOOD * 10,
        '{"text": "' + "long " * 100,
    ],
)
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_json_lines_with_some_that_are_none(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / name).write_text(text)
    assert opened(tmp_path / name)[0].files[0].layout == "jsonl"


@pytest.mark.parametrize("line", ['"a string"', "[1, 2]", "text"])
def test_a_name_that_promises_json_lines(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.jsonl").write_text(f"{line}\n" * 9)
    with pytest.raises(ValueError, match=r"x\.jsonl holds no JSON object a line .*jsonl needs lines such as"):
        opened(tmp_path / "x.jsonl")
    assert opened(tmp_path / "x.jsonl", "document_per_line")[0].files[0].layout == "document_per_line"


def test_layout_that_contradicts_the_file(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n" * 3000)
    with pytest.raises(ValueError, match=r"sentence_per_line does not fit .*lines.txt.*3,000 lines.*no blank line"):
        opened(lines, SENTENCE_PER_LINE)
    blocks = tmp_path / "blocks.txt"
    blocks.write_text("one\ntwo\nthree\n\n" * 100)
    with pytest.raises(ValueError, match=r"document_per_line does not fit .*100 blocks of 3.0 lines.*remove the blank"):
        opened(blocks, DOCUMENT_PER_LINE)
    with pytest.raises(ValueError, match=r"mediawiki does not fit .*blocks.txt: it does not begin with <mediawiki"):
        opened(blocks, "mediawiki")
    one = tmp_path / "one.txt"
    one.write_text("one\ntwo\n")
    assert opened(one, SENTENCE_PER_LINE)[0].files[0].layout == SENTENCE_PER_LINE
    one.write_text("one\n" * 9000 + "\n" + "one\n" * 9000)  # a blank line by accident: the user knows
    assert opened(one, DOCUMENT_PER_LINE)[0].files[0].layout == DOCUMENT_PER_LINE


def test_columns_in_another_order(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("".join(f"text {n}\t{n % 2}\n" for n in range(20)))
    message = r"x.tsv has 2 columns with the labels in the last: put them in the order label<TAB>"
    with pytest.raises(ValueError, match=message):
        opened(path)
    path.write_text("".join(f"a {n}\tb {n}\tc {n}\n" for n in range(50)))
    with pytest.raises(ValueError, match=r"x.tsv has 3 columns and the first does not look like labels: put them"):
        opened(path)
    assert opened(path, DOCUMENT_PER_LINE)[0].files[0].layout == DOCUMENT_PER_LINE


def test_json_over_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"text": "one"}], indent=1))
    with pytest.raises(ValueError, match=r"x.json is one JSON value over several lines; jsonl needs one object a line"):
        opened(path)


@pytest.mark.parametrize("layout", ["auto", SENTENCE_PER_LINE, DOCUMENT_PER_LINE])
def test_old_macintosh_line_ends_are_refused(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\rtwo\r\rthree\r" * 5)
    message = r"x.txt has the line ends of old Macintosh files: .*first 75 bytes.*: tr '\\r' '\\n' < .*x.txt > NEW_FILE"
    with pytest.raises(ValueError, match=message):
        opened(path, layout)
    path.write_bytes(b"one\r" * (1 << 19) + b"\n")
    with pytest.raises(ValueError, match="first 1,048,576 bytes"):
        opened(path, layout)
    path.write_bytes(b"one\rtwo\r\n")
    assert opened(path, layout)[0].num_bytes == 9


def test_only_the_beginning_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("some words\n" * 500_000)
    assert opened(path)[1][0].endswith("in the 4,194,304 bytes looked at")
