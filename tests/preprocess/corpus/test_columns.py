"""JSON lines and lines with columns: what they give, and what is wrong with bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preprocess.cleaning.drops import Drops
from preprocess.corpus import survey
from preprocess.corpus.blocks import BlockReader
from preprocess.corpus.corpus import CorpusSettings, InputFile
from preprocess.corpus.document import Document
from preprocess.corpus.inputs import open_corpus
from preprocess.corpus.records import TextRecords


def documents(path: Path, drops: Drops | None = None, **settings: object) -> list[Document]:
    """Return the documents of a file."""
    corpus, _ = open_corpus(CorpusSettings(arguments=[str(path)], **settings), Path("/nowhere"))  # type: ignore[arg-type]
    return list(BlockReader(corpus, 1 << 20, drops).documents(0))


def jsonl(path: Path, *values: object) -> Path:
    """Write values as JSON lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_text_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": " a\\r\\nb\\rc\\n"}\r\n\n  {"text": "\\ud83d\\ude00 \xe4\xb8\xad"}')
    found = documents(path)
    assert [(item.text, item.offset) for item in found] == [("a\nb\nc", 3), ("😀 中", path.read_bytes().index(b"  {"))]
    assert not found[0].lines_are_sentences


def test_fields_in_objects(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", {"a": {"b": "one"}}, {"a.b": "two", "a": {"b": "no"}}, {"a": {"b": None}})
    drops = Drops()
    assert [item.text for item in documents(path, drops, text_field=("a.b",))] == ["one", "two"]
    assert drops.counts == {"documents_without_text": 1}


def test_empty_texts_are_counted(tmp_path: Path) -> None:
    drops = Drops()
    path = jsonl(tmp_path / "x.jsonl", {"text": ""}, {"text": None}, {"text": " \n"}, {"text": "one"})
    assert [item.text for item in documents(path, drops)] == ["one"]
    assert drops.counts == {"documents_without_text": 3}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"line 3 \(offset 32\): it is not JSON \(Expecting ',' delimiter.*every line is one JSON"),
        (b"just text", r"line 3 \(offset 32\): it is not JSON \(Expecting value"),
        (b"[" * 100_000, r"line 3 \(offset 32\): it is not JSON"),
        (b'["x"]', r"line 3 .*: it is a JSON array; in jsonl every line is one JSON object"),
        (b"null", "it is a JSON null"),
        (b'{"body": "x", "id": 1}', r"the object has no field 'text'; it has: body, id; name the one .* --text_field"),
        (b"{}", r"the object has no field 'text'; it has: none"),
        (b'{"text": ["x"]}', r"the field 'text' holds a JSON array, and text is needed; give another --text_field"),
        (b'{"text": true}', "holds a JSON boolean"),
        (b'{"text": 1.5}', "holds a JSON number"),
        (b'{"text": {}}', "holds a JSON object"),
        (b'{"text": "a\\ud83d"}', r"line 3 .*its text has half of a surrogate pair.*--invalid_utf8 drop"),
        (b'{"text": "\xff"}', r"x.jsonl is not UTF-8: byte 0xff at offset 42 \(line 3\)"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "one"}\n' * 2 + line + b"\n")
    with pytest.raises(ValueError, match=message):
        documents(path, layout=("jsonl",))


def test_invalid_characters_in_json(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a\\ud83d"}\n{"text": "b\xff"}\n{"text": "c"}\n')
    drops = Drops()
    assert [item.text for item in documents(path, drops, layout=("jsonl",), invalid_utf8="drop")] == ["c"]
    assert drops.counts == {"documents_invalid_utf8": 2}
    found = documents(path, layout=("jsonl",), invalid_utf8="replace")
    assert [item.text for item in found] == ["a\ufffd", "b\ufffd", "c"]


def test_labelled_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(b"label\ttext_a\ttext_b\r\n10\tone\ttwo\r\n9\t three \r\n\r\n9\tfour\t\r\n9\t\tfive\r\n")
    corpus, _ = open_corpus(CorpusSettings(arguments=[str(path)]), tmp_path)
    assert corpus.labels == ("9", "10")
    assert corpus.has_second
    drops = Drops()
    found = [(d.label, d.text, d.second) for d in BlockReader(corpus, 99, drops).documents(0)]
    assert found == [("10", "one", "two"), ("9", "three", None), ("9", "four", None)]
    assert drops.counts == {"documents_without_text": 1}


def test_labels_are_sorted(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("b\tx\na\ty\n10\tz\n" * 5)
    assert open_corpus(CorpusSettings(arguments=[str(tmp_path)]), tmp_path)[0].labels == ("10", "a", "b")
    (tmp_path / "y.tsv").write_text("-1\tx\n9\ty\n10\tz\n" * 5)
    assert open_corpus(CorpusSettings(arguments=[f"{tmp_path}/y.tsv"]), tmp_path)[0].labels == ("-1", "9", "10")


def test_paired_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("".join(f"one {n}\teins {n}\n" for n in range(20)) + "empty\t \n")
    drops = Drops()
    found = documents(path, drops)
    assert [(d.text, d.second, d.label) for d in found[:2]] == [("one 0", "eins 0", None), ("one 1", "eins 1", None)]
    assert len(found) == 20
    assert drops.counts == {"documents_without_text": 1}


@pytest.mark.parametrize(
    ("layout", "line", "message"),
    [
        ("labelled_tsv", "text", r"x.tsv, line 2 \(offset 6\): 1 columns, and labelled_tsv needs label<TAB>text or"),
        ("labelled_tsv", "0\ta\tb\tc", r"line 2 \(offset 6\): 4 columns, and labelled_tsv needs"),
        ("labelled_tsv", " \ta", r"line 2 \(offset 6\): its label \(the first column\) is empty"),
        ("paired_tsv", "text", r"line 2 \(offset 6\): 1 columns, and paired_tsv needs source<TAB>target"),
        ("paired_tsv", "0\ta\tb", r"line 2 \(offset 6\): 3 columns, and paired_tsv needs"),
    ],
)
def test_wrong_columns(tmp_path: Path, layout: str, line: str, message: str) -> None:
    (tmp_path / "x.tsv").write_text(f"0\tone\n{line}\n")
    with pytest.raises(ValueError, match=message):
        documents(tmp_path / "x.tsv", layout=(layout,))


def test_too_many_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tsv").write_text("".join(f"{n}\ttext\n" for n in range(200)))
    monkeypatch.setattr(survey, "MAX_CORPUS_LABELS", 100)
    with pytest.raises(ValueError, match=r"x.tsv: more than 100 different labels; the first column must be a label"):
        documents(tmp_path / "x.tsv", layout=("labelled_tsv",))


INCOMPLETE_ROWS = {
    "jsonl": (
        b'{"text": "one"}',
        [b'{"text": "cut', b"words", b'["x"]', b"null", b'{"body": "x"}', b"{}", b'{"text": 5}', b"[" * 100_000],
    ),
    "labelled_tsv": (b"0\tone", [b"text", b"0\ta\tb\tc", b" \ta", b"\ta\tb"]),
    "paired_tsv": (b"one\teins", [b"text", b"0\ta\tb"]),
}


@pytest.mark.parametrize("layout", list(INCOMPLETE_ROWS))
def test_incomplete_records(tmp_path: Path, layout: str) -> None:
    good, bad = INCOMPLETE_ROWS[layout]
    path = tmp_path / "x"
    data = b"".join(good + b"\n" + line + b"\n" for line in bad)
    path.write_bytes(data)
    file = InputFile(
        path=str(path), name="x", source=0, start=0, num_bytes=len(data), layout=layout, text_field="text",
        stored_bytes=len(data), modified_ns=path.stat().st_mtime_ns,
    )  # fmt: skip
    message = r"x, line 2 \(offset \d+\): .*; or give --incomplete_records drop, which leaves such records out"
    with pytest.raises(ValueError, match=message):
        texts_of(TextRecords(file))
    records = TextRecords(file, incomplete_records="drop")
    records.drops = Drops(keep_texts=True)
    assert texts_of(records) == ["one"] * len(bad)
    assert records.drops.counts == {"documents_incomplete_records": len(bad)}
    assert [dropped.text.encode().strip(b"\n") for dropped in records.drops.texts] == bad
    assert all(data[dropped.offset :].startswith(dropped.text.encode()) for dropped in records.drops.texts)


def texts_of(records: TextRecords) -> list[str]:
    """Return all texts of a file."""
    size = records.file.num_bytes
    return [document.text for _, documents in records.read(0, size) for document in documents]


@pytest.mark.parametrize("layout", list(INCOMPLETE_ROWS))
def test_incomplete_records_of_a_corpus(tmp_path: Path, layout: str) -> None:
    good, bad = INCOMPLETE_ROWS[layout]
    path = tmp_path / "x"
    path.write_bytes(b"".join(good + b"\n" + line + b"\n" for line in bad))
    with pytest.raises(ValueError, match="or give --incomplete_records drop"):
        documents(path, layout=(layout,))
    drops = Drops()
    found = documents(path, drops, layout=(layout,), incomplete_records="drop")
    assert [item.text for item in found] == ["one"] * len(bad)
    assert drops.counts == {"documents_incomplete_records": len(bad)}
    if layout == "labelled_tsv":
        corpus, _ = open_corpus(
            CorpusSettings(arguments=[str(path)], layout=(layout,), incomplete_records="drop"), path
        )
        assert corpus.labels == ("0",)
