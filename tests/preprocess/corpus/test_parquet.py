"""Parquet files: rows by blocks of any size, and what is wrong with bad files."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import pytest

from preprocess.cleaning.drops import Drops
from preprocess.corpus import parquet as reader_module
from preprocess.corpus.blocks import BlockReader
from preprocess.corpus.corpus import Corpus, CorpusSettings
from preprocess.corpus.inputs import open_corpus

pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")


def write(path: Path, texts: Any, row_group_size: int = 7, **options: Any) -> Path:
    """Write a table with an id and a text column."""
    column = texts if isinstance(texts, pyarrow.Array) else pyarrow.array(texts, pyarrow.string())
    table = pyarrow.table({"id": list(range(len(column))), "text": column})
    parquet.write_table(table, path, row_group_size=row_group_size, **options)
    return path


def opened(path: Path, **settings: Any) -> tuple[Corpus, list[str]]:
    """Open a file or folder."""
    return open_corpus(CorpusSettings(arguments=[str(path)], **settings), Path("/nowhere"))


def random_texts(seed: int, number: int = 60) -> list[str | None]:
    """Return texts, some of which are empty or missing."""
    generator = random.Random(seed)
    words = ["one", "zwei\n", "三", "😀"]
    return [
        None if generator.random() < 0.1 else " ".join(generator.choices(words, k=generator.randint(0, 9)))
        for _ in range(number)
    ]


@pytest.mark.parametrize("block_bytes", [5, 16, 100, 333, 1 << 20])
@pytest.mark.parametrize("order", ["rising", "falling", "every other"])
def test_rows_by_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, order: str) -> None:
    monkeypatch.setattr(reader_module, "MAX_BATCH_ROWS", 3)
    files = [random_texts(seed) for seed in range(2)]
    for number, texts in enumerate(files):
        write(tmp_path / f"{number}.parquet", texts, compression="zstd" if number else "snappy")
    corpus, reports = opened(tmp_path)
    raw = [b"".join((text or "").encode() + b"\n" for text in texts) for texts in files]
    assert [file.num_bytes for file in corpus.files] == [len(data) for data in raw]
    assert "60 documents, text in the field 'text'" in reports[0]
    expected: dict[int, list[tuple[int, int, str]]] = {}
    raw_blocks: dict[int, bytes] = {}
    start = 0
    for source, texts in enumerate(files):
        position = 0
        for text in texts:
            data = (text or "").encode() + b"\n"
            block = (start + position) // block_bytes
            raw_blocks[block] = raw_blocks.get(block, b"") + data
            if text and text.strip():
                expected.setdefault(block, []).append((source, position, text.strip()))
            position += len(data)
        start += position
    blocks = list(range(corpus.num_blocks(block_bytes)))
    drops = Drops()
    reader = BlockReader(corpus, block_bytes, drops)
    names = [file.path for file in corpus.files]
    chosen = {"rising": blocks, "falling": blocks[::-1], "every other": blocks[::2]}[order]
    for block in chosen:
        pieces: list[bytes] = []
        found = [(names.index(d.file), d.offset, d.text) for d in reader.documents(block, pieces.append)]
        assert found == expected.get(block, [])
        assert b"".join(pieces) == raw_blocks.get(block, b"")
        assert b"".join(reader.raw(block)) == raw_blocks.get(block, b"")
    if order != "every other":
        lost = sum(not (text and text.strip()) for texts in files for text in texts)
        assert drops.counts == {"documents_without_text": lost}


def test_a_row_group_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.parquet", ["some text here"] * 1000, row_group_size=1000)
    corpus, _ = opened(tmp_path / "x.parquet")
    asked = []
    texts = reader_module.Column.texts
    monkeypatch.setattr(reader_module.Column, "texts", lambda self, group: asked.append(group) or texts(self, group))
    reader = BlockReader(corpus, 100)
    assert sum(1 for block in range(corpus.num_blocks(100)) for _ in reader.documents(block)) == 1000
    assert asked == [0]


@pytest.mark.parametrize("kind", ["large_string", "dictionary", "struct"])
def test_kinds_of_columns(tmp_path: Path, kind: str) -> None:
    texts = ["one", "two", None, "one"]
    column = pyarrow.array(texts, pyarrow.large_string() if kind == "large_string" else pyarrow.string())
    if kind == "dictionary":
        column = column.dictionary_encode()
    if kind == "struct":
        column = pyarrow.StructArray.from_arrays([column, pyarrow.array([1, 2, 3, 4])], ["body", "n"])
    write(tmp_path / "x.parquet", column)
    corpus, _ = opened(tmp_path / "x.parquet", text_field=("text.body" if kind == "struct" else "text",))
    assert [item.text for item in BlockReader(corpus, 100).documents(0)] == ["one", "two", "one"]
    assert corpus.description()["sources"][0]["files"][0]["text_field"] == corpus.files[0].text_field


def test_parquet_without_the_field(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", ["one"])
    message = r"x.parquet has no column 'body'; it has: id, text; name the one with the text by --text_field"
    with pytest.raises(ValueError, match=message):
        opened(path, text_field=("body",))
    with pytest.raises(ValueError, match=r"x.parquet has no column 'text.body'; it has: id, text"):
        opened(path, text_field=("text.body",))
    with pytest.raises(ValueError, match=r"the column 'id' holds int64, and text is needed; give another --text_field"):
        opened(path, text_field=("id",))


def test_parquet_that_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", ["some text"] * 1000)
    with pytest.raises(ValueError, match=r"--layout jsonl does not fit .*x.parquet: it is a parquet file"):
        opened(path, layout=("jsonl",))
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"x.parquet cannot be read as parquet: .*; fetch or make the file again"):
        opened(path)
    path.write_bytes(data[:10] + bytes(500) + data[510:])
    with pytest.raises(ValueError, match=r"x.parquet cannot be read as parquet: "):
        opened(path)
    path.write_text("text\n")
    with pytest.raises(ValueError, match=r"--layout parquet does not fit .*x.parquet: it is no parquet file"):
        opened(path, layout=("parquet",))


def test_invalid_utf8_in_parquet(tmp_path: Path) -> None:
    raw = pyarrow.array([b"one", b"tw\xff", b"three"], pyarrow.binary())
    path = write(tmp_path / "x.parquet", pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers()))
    with pytest.raises(ValueError, match=r"x.parquet, row 1 of column 'text', is not UTF-8; give --invalid_utf8 drop"):
        list(BlockReader(opened(path)[0], 100).documents(0))
    drops = Drops()
    dropping = BlockReader(opened(path, invalid_utf8="drop")[0], 100, drops)
    assert [item.text for item in dropping.documents(0)] == ["one", "three"]
    assert drops.counts == {"documents_invalid_utf8": 1}
    replacing = BlockReader(opened(path, invalid_utf8="replace")[0], 100)
    assert [item.text for item in replacing.documents(0)] == ["one", "tw\ufffd", "three"]
    assert replacing.num_replaced == 1


def test_bad_texts_in_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", ["one", "tw\0o"])
    with pytest.raises(ValueError, match=r"x.parquet, row 1 of column 'text', is not text: it has a NUL byte"):
        list(BlockReader(opened(path)[0], 100).documents(0))
    write(path, ["one", "x" * 2000])
    monkeypatch.setattr(reader_module, "MAX_DOCUMENT_BYTES", 1000)
    with pytest.raises(
        ValueError, match=r"row 1 of column 'text', has 2,000 bytes, and at most 1,000 are possible: cut"
    ):
        list(BlockReader(opened(path)[0], 100).documents(0))


def test_pyarrow_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", ["one"])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"x.parquet is a parquet file: reading it needs the package pyarrow; install"):
        opened(path)


def test_an_empty_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the corpus is empty: no text in"):
        opened(write(tmp_path / "x.parquet", []))


@pytest.mark.parametrize("kind", ["binary", "large_binary", "dictionary"])
def test_binary_columns_are_text(tmp_path: Path, kind: str) -> None:
    """As Spark writes text."""
    column = pyarrow.array([b"one", "zwölf 中\r\n".encode(), None, b"tw\xff"], pyarrow.binary())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pyarrow, kind)())
    path = write(tmp_path / "x.parquet", column)
    with pytest.raises(ValueError, match=r"x.parquet, row 3 of column 'text', is not UTF-8; give --invalid_utf8 drop"):
        list(BlockReader(opened(path)[0], 100).documents(0))
    drops = Drops()
    dropping = BlockReader(opened(path, invalid_utf8="drop")[0], 100, drops)
    assert [item.text for item in dropping.documents(0)] == ["one", "zwölf 中"]
    assert drops.counts == {"documents_invalid_utf8": 1, "documents_without_text": 1}
    replacing = BlockReader(opened(path, invalid_utf8="replace")[0], 100)
    assert [item.text for item in replacing.documents(0)] == ["one", "zwölf 中", "tw\ufffd"]


def test_parquet_inside_gzip(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet.gz"
    path.write_bytes(gzip.compress(write(tmp_path / "x.parquet", ["some text"] * 1000).read_bytes()))
    with pytest.raises(ValueError, match=r"x.parquet.gz is a parquet file inside gzip: unpack it first \(`gzip -dc"):
        opened(path)
