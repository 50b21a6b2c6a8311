"""Tab-separated files: what is read, and what is refused with file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from finetune.readers.columns import parse_columns
from finetune.readers.tables import Row, Table, open_table

NEEDED = ("label", "text_a")


def write(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "file.tsv"
    path.write_bytes(content)
    return str(path)


def cells(table: Table) -> list[list[str]]:
    return [row.cells for row in table.records()]


def test_header_in_any_order_with_more_columns(tmp_path):
    path = write(tmp_path, b"id\ttext_b\tlabel\ttext_a\n7\tb\tyes\ta\n")
    table = open_table(path, None, NEEDED)
    assert table.names == ("id", "text_b", "label", "text_a")
    assert list(table.records()) == [Row(2, ["7", "b", "yes", "a"])]


@pytest.mark.parametrize("name", ["text", "sentence", "text_a"])
def test_other_names_of_the_text(tmp_path, name):
    table = open_table(write(tmp_path, f"{name}\tlabel\nhello\t1\n".encode()), None, NEEDED)
    assert table.column("text_a") == 0


def test_byte_order_mark_crlf_and_no_last_line_end(tmp_path):
    table = open_table(write(tmp_path, "\ufefflabel\ttext_a\r\n1\t好\r\n0\tend".encode()), None, NEEDED)
    assert cells(table) == [["1", "好"], ["0", "end"]]


def test_quotes_and_unicode_line_ends_are_text(tmp_path):
    text = 'say "hi\u2028there\u0085\x0b\x0c'
    table = open_table(write(tmp_path, f"label\ttext_a\n1\t{text}\n0\t\n".encode()), None, NEEDED)
    assert cells(table) == [["1", text], ["0", ""]]


def test_columns_name_a_file_without_header(tmp_path):
    path = write(tmp_path, b"good film\t1\nbad film\t0\n")
    table = open_table(path, parse_columns("text, label"), NEEDED)
    assert table.names == ("text_a", "label")
    assert [row.line for row in table.records()] == [1, 2]


def test_the_bytes_of_all_lines_are_told(tmp_path):
    content = "\ufefflabel\ttext_a\r\n1\t好\r\n0\tend".encode()
    told: list[int] = []
    list(open_table(write(tmp_path, content), None, NEEDED).records(told.append))
    assert sum(told) == len(content)


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        (b"", None, r"file\.tsv is empty"),
        (b"label\ttext_a\n", None, "holds no examples"),
        (
            b"good film\t1\n",
            None,
            r"no column label and no column text_a.*found 'good film\\t1'.*--columns label,text_a$",
        ),
        (b"a\tb\t0\n", None, "--columns label,text_a,text_b$"),
        (b"label\tbody\n1\tx\n", None, r"no column text_a in its first line"),
        (b"label,text_a\n1,x\n", None, "separated by tabs; found 'label,text_a'"),
        (b"label\ttext_a\ttext\n1\tx\ty\n", None, r"text_a is there 2 times"),
        (b"label\ttext_a\n1\tx\n", "label,text_a", "its first line names the columns .*; leave out --columns"),
        (b"label\ttext\n1\tx\n", "label,text_a", "leave out --columns"),
        (b"1\tx\n", "label,body", r"--columns label,body: .* needs the column\(s\) text_a too"),
        (b"1\tx\n", "label,text_a,text_b", r"line 1: 2 column\(s\), but there must be 3 \(label, text_a, text_b\)"),
        (b"label\ttext_a\n1\tx\n\n1\ty\n", None, r"line 3: 1 column\(s\), but there must be 2.*the line is ''"),
        (b"label\ttext_a\n1\tx\ty\n", None, r"line 2: 3 column\(s\), but there must be 2"),
        (b"label\ttext_a\n1\t\xff\n", None, r"is not UTF-8: byte 0xff at offset 15 \(line 2\)"),
        (b"label\ttext_a\n1\t\0\n", None, r"is not text: NUL byte at offset 15 \(line 2\)"),
        (gzip.compress(b"label\ttext_a\n1\tx\n" * 9), None, "this is a gzip file: unpack it first"),
    ],
)
def test_refusals(tmp_path, content, columns, message):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=message):
        cells(open_table(path, parse_columns(columns), NEEDED))


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        open_table(str(tmp_path / "none.tsv"), None, NEEDED)
    with pytest.raises(ValueError, match="a folder, not a file"):
        open_table(str(tmp_path), None, NEEDED)
