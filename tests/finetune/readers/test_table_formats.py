"""csv and JSON Lines, what is malformed, and which format a file has."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from finetune import predict
from finetune.config.tasks import FileConfig
from finetune.readers.columns import parse_columns
from finetune.readers.tables import Table, open_table
from tests.finetune import tiny

NEEDED = ("label", "text_a")
TEXTS = [
    "plain",
    'a "quoted" word',
    "a, comma",
    "two\nlines",
    "two\r\nlines",
    "a\ttab",
    "",
    "  spaces  ",
    "好\u2028人",
    "'",
]


def write(tmp_path: Path, content: str | bytes, name: str) -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(path: str, columns: str | None = None, **fields: str) -> tuple[Table, list[tuple[int, list[str]]]]:
    table = open_table(path, parse_columns(columns), NEEDED, FileConfig(**fields))
    return table, [(row.line, row.cells) for row in table.records()]


def test_csv_gives_back_what_a_writer_wrote(tmp_path):
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r\n").writerows(
        [["label", "text_a"], *([str(n), t] for n, t in enumerate(TEXTS))]
    )
    table, rows = read(write(tmp_path, "\ufeff" + buffer.getvalue(), "file.csv"))
    assert table.format == "csv" and [cells for _, cells in rows] == [[str(n), t] for n, t in enumerate(TEXTS)]
    assert [line for line, _ in rows] == [2, 3, 4, 5, 7, 9, 10, 11, 12, 13]  # two of the texts have two lines


def test_json_lines_give_back_what_was_written(tmp_path):
    lines = "".join(json.dumps({"text": text, "label": number}) + "\n" for number, text in enumerate(TEXTS))
    table, rows = read(write(tmp_path, lines, "file.jsonl"))
    assert table.names == ("text_a", "label") and rows == [(n + 1, [t, str(n)]) for n, t in enumerate(TEXTS)]


def test_values_and_keys_of_json(tmp_path):
    lines = (
        '{"id": null, "sentence": "x", "label": [0.25, 0.75], "gone": 1}\n'
        '{"id": 7, "label": true, "sentence": "y", "more": 1}\n'
        '{"label": 1.5, "sentence": "z", "id": {"a": "好"}}\n'
    )
    table, rows = read(write(tmp_path, lines, "file.txt"))  # by its first line
    assert [cells for _, cells in rows] == [
        ["", "x", "[0.25, 0.75]", "1"],
        ["7", "y", "true", ""],
        ['{"a": "好"}', "z", "1.5", ""],
    ]
    assert table.notes() == [f"{table.path}: key(s) that the first line does not have are not used: more (1 lines)"]
    table, rows = read(table.path, "label=id,text_a=sentence")
    assert table.names == ("label", "text_a", "the file's label", "gone") and rows[2][1][:2] == ['{"a": "好"}', "z"]


@pytest.mark.parametrize(
    ("name", "content", "given", "expected"),
    [
        ("a.tsv", 'label\ttext_a\n1\t"x, y\n', None, "tsv"),
        ("a.txt", "label\ttext_a\n1\tx\n", None, "tsv"),
        ("a.CSV", "label,text_a\n1,x\n", None, "csv"),
        ("a.csv", 'label\ttext_a\n1\t"x, y\n', None, "tsv"),
        ("a.txt", "label,text_a\n1,x\n", "csv", "csv"),
        ("a.json", '{"label": 1, "text_a": "x"}\n', None, "jsonl"),
        ("a.txt", '{"label": 1, "text_a": "x"}\n', None, "jsonl"),
        ("a.tsv", "{label}\ttext_a\n1\tx\n", None, "tsv"),
    ],
)
def test_formats(tmp_path, name, content, given, expected):
    columns = "label={label},text_a" if "{label}" in content else None
    path = write(tmp_path, content, name)
    table = open_table(path, parse_columns(columns and "label={label}"), NEEDED, FileConfig(format=given))
    assert table.format == expected and len(list(table.records())) == 1
    said = f"{path}: its first line has tabs, so it is read as tab-separated, without quoting, for all its name"
    assert table.notes() == ([said] if name == "a.csv" and expected == "tsv" else [])


CSV_BAD = b'label,text_a\n1,x\n1,"x" y\n0\n0,\xff\n1,"y\nz"\n0,"open\n1,x\n'
JSON_BAD = (
    b'{"label": 1, "text_a": "x"}\n{"label": 1}\n[1, "x"]\n\n{"label": 1, "text_a": "\\ud83d"}\n'
    b'{"label": 0, "text_a": "y"}\n{"label"\n'
)
TSV_BAD = b"label\ttext_a\n1\tx\n1\tx\ty\n\n0\t\xff\n0\ty\n"


@pytest.mark.parametrize(
    ("name", "content", "messages", "skipped", "kept"),
    [
        (
            "a.csv",
            CSV_BAD,
            [r"line 3: no csv: ',' expected after '\"' .*; the line is '1,\"x\" y' \(--bad_lines skip leaves"],
            [3, 4, 5, 8],
            [(2, ["1", "x"]), (6, ["1", "y\nz"])],
        ),
        (
            "a.jsonl",
            JSON_BAD,
            [r"line 2: no key text_a; the line is '\{\"label\": 1\}'"],
            [2, 3, 4, 5, 7],
            [(1, ["1", "x"]), (6, ["0", "y"])],
        ),
        (
            "a.tsv",
            TSV_BAD,
            [r"line 3: 3 column\(s\), but there must be 2 \(label, text_a\), separated by tabs"],
            [3, 4, 5],
            [(2, ["1", "x"]), (6, ["0", "y"])],
        ),
    ],
)
def test_malformed_lines_are_errors_or_counted(tmp_path, name, content, messages, skipped, kept):
    path = write(tmp_path, content, name)
    with pytest.raises(ValueError, match=messages[0]):
        read(path)
    told: list[int] = []
    table = open_table(path, None, NEEDED, FileConfig(bad_lines="skip"))
    assert [(row.line, row.cells) for row in table.records(told.append)] == kept
    assert sum(told) == len(content) and table.skipped == skipped
    shown = ", ".join(map(str, skipped))
    assert table.notes() == [f"{path}: {len(skipped)} malformed line(s) skipped: {shown}"]
    assert [row.line for row in table.records()] == [line for line, _ in kept] and table.skipped == skipped


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.csv", "a,b\n1,x\n", None, "must name the columns, separated by commas; found 'a,b'"),
        ("a.csv", "1,x,y\n0,x\n", "label,text_a,text_b", r"must be 3 \(label, text_a, text_b\), separated by commas"),
        (
            "a.tsv",
            "1\tx\ty\tz\n",
            "label,text_a",
            r"4 column\(s\), but there must be 2 .* let --columns end in ,\.\.\.",
        ),
        ("a.jsonl", '[{"label": 1}]\n', None, "no JSON object but list; a file of one JSON array must be written with"),
        ("a.jsonl", '{"label": 1, "body": "x"}\n', None, r"whose keys must name the columns; .*--columns text_a=body$"),
        ("a.jsonl", '{"label": 1, "body": "x"}\n', "label,text_a", "is JSON Lines, whose keys name the columns"),
        ("a.jsonl", '{"label": 1, "text_a": "x"}\nx\n', None, r"line 2: no JSON object \(Expecting value"),
    ],
)
def test_refusals(tmp_path, name, content, columns, message):
    lines = content * (40 if "body" in content else 1)
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, lines, name), columns)


def test_only_malformed_lines(tmp_path):
    path = write(tmp_path, "label\ttext_a\n1\n", "a.tsv")
    with pytest.raises(ValueError, match=r"holds no examples, only 1 malformed line\(s\)"):
        read(path, bad_lines="skip")


@pytest.mark.parametrize(
    ("file", "columns", "count", "notes"),
    [
        ("sts_en_stsb/dev.csv", "genre,file,year,id,label,text_a,text_b,...", 1500, 1),
        ("sts_en_stsb/test.csv", "genre,file,year,id,label,text_a,text_b,...", 1379, 1),
        ("pair_en_mrpc/train.tsv", "label=Quality,text_a=#1 String,text_b=#2 String", 3576, 0),
        ("sts_zh_stsb/dev.txt", "text_a,text_b,label", 1458, 0),
    ],
)
def test_real_traps(file, columns, count, notes, shared_data):
    """STS-B has tabs in files named .csv, quotes that end nowhere and lines with two more columns; MRPC a byte order
    mark and CRLF."""
    table, rows = read(str(shared_data / file), columns)
    lines = (shared_data / file).read_bytes().count(b"\n")
    assert len(rows) == count == lines - table.has_header and len(table.notes()) == notes
    label = table.column("label")
    scores = np.array([float(cells[label]) for _, cells in rows])
    assert ((scores >= 0) & (scores <= 5)).all()
    assert not any(cell.endswith(("\r", "\n")) for _, cells in rows for cell in cells)


def test_predict_keeps_the_order_and_names_the_bad_lines(bert, tmp_path, capsys):
    """And jsonl in gives what tsv in gives."""
    from tests.finetune.inference.test_predict import classifier

    model = classifier(tmp_path / "model", bert, tiny.BERT, pair=False)
    texts = [tiny.sentence(number, 2 + number % 7) for number in range(20)]
    good = [json.dumps({"text": text}) for text in texts]
    write(tmp_path, "\n".join([*good[:3], "{", *good[3:], '{"txt": ""}']) + "\n", "in.jsonl")
    tiny.write_table(tmp_path / "in.tsv", ["text"], [(text,) for text in texts])
    arguments = ["--model", str(model), "--bad_lines", "skip", "--probabilities"]

    def run(name: str) -> list[str]:
        files = ["--input", str(tmp_path / name), "--output", str(tmp_path / "out.tsv")]
        assert predict.main([*arguments, *files]) == 0
        return (tmp_path / "out.tsv").read_text().splitlines()

    assert len(set(run("in.tsv"))) > 10
    capsys.readouterr()
    assert run("in.jsonl") == run("in.tsv")
    assert "in.jsonl: 2 malformed line(s) skipped: 4, 22" in capsys.readouterr().err
