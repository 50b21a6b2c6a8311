"""Every layout in every compression: blocks of any size give what a parser of the whole file gives."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.cleaning.drops import Drops
from preprocess.corpus import record_ranges, streams
from preprocess.corpus.blocks import BlockReader
from preprocess.corpus.corpus import CorpusSettings
from preprocess.corpus.inputs import open_corpus

Record = tuple[int, str, "str | None", "str | None"]  # first byte, text, second, label
WORDS = ["one", "zwei", "três", "四", "😀", "six.", "Seven"]


def words(generator: random.Random, most: int = 9) -> str:
    """Return a few words."""
    return " ".join(generator.choices(WORDS, k=generator.randint(1, most)))


def sentence_per_line(generator: random.Random) -> tuple[bytes, list[Record]]:
    data, records = b"", []
    for _ in range(40):
        lines = [words(generator) for _ in range(generator.randint(1, 5))]
        records.append((len(data), "\n".join(lines), None, None))
        data += "\n".join(lines).encode() + b"\n" * generator.randint(2, 4)
    return data, records


def document_per_line(generator: random.Random) -> tuple[bytes, list[Record]]:
    data, records = b"", []
    for _ in range(80):
        text = words(generator)
        records.append((len(data), text, None, None))
        data += text.encode() + generator.choice([b"\n", b"\r\n", b" \t\n"])
    return data, records


def document_per_file(generator: random.Random) -> tuple[bytes, list[Record]]:
    paragraphs = [words(generator, 40) for _ in range(20)]
    return "\n\n".join(paragraphs).encode() + b"\n", [(0, "\n".join(paragraphs), None, None)]


def jsonl(generator: random.Random) -> tuple[bytes, list[Record]]:
    data, records = b"", []
    for number in range(60):
        text = "\n".join(words(generator) for _ in range(generator.randint(1, 3)))
        records.append((len(data), text, None, None))
        record = {"id": number, "text": text, "meta": {"n": [1, 2]}}
        data += json.dumps(record, ensure_ascii=generator.random() < 0.5).encode() + b"\n"
    return data, records


def labelled_tsv(generator: random.Random) -> tuple[bytes, list[Record]]:
    data, records = b"label\ttext_a\ttext_b\n", []
    for _ in range(60):
        label, text = str(generator.randint(-1, 11)), words(generator)
        second = words(generator) if generator.random() < 0.5 else None
        records.append((len(data), text, second, label))
        data += "\t".join([label, text, *([second] if second else [])]).encode() + b"\n"
    return data, records


def paired_tsv(generator: random.Random) -> tuple[bytes, list[Record]]:
    data, records = b"", []
    for _ in range(60):
        text, target = words(generator), words(generator)
        records.append((len(data), text, target, None))
        data += f"{text}\t{target}\r\n".encode()
    return data, records


def mediawiki(generator: random.Random) -> tuple[bytes, list[Record]]:
    data, records = b"<mediawiki>\n  <siteinfo>\n  </siteinfo>\n", []
    for number in range(30):
        text = "\n".join(words(generator) + " end" for _ in range(generator.randint(1, 4)))
        page = f"  <page>\n <title>T{number}</title><ns>0</ns>\n<revision><text>{text}</text></revision>\n  </page>\n"
        records.append((len(data), f"T{number}\n{text}", None, None))
        data += page.encode()
    return data + b"</mediawiki>\n", records


def zstd(data: bytes) -> bytes:
    """Compress as one frame."""
    return pytest.importorskip("zstandard", reason="needs zstandard").ZstdCompressor().compress(data)


MAKERS: dict[str, Callable[[random.Random], tuple[bytes, list[Record]]]] = {
    maker.__name__: maker
    for maker in (
        sentence_per_line,
        document_per_line,
        document_per_file,
        jsonl,
        labelled_tsv,
        paired_tsv,
        mediawiki,
    )
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstd,
}


@pytest.mark.parametrize("compression", list(COMPRESS))
@pytest.mark.parametrize("layout", list(MAKERS))
def test_blocks_of_every_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, compression: str) -> None:
    if layout == "mediawiki":
        pytest.importorskip("mwparserfromhell", reason="needs mwparserfromhell")
    monkeypatch.setattr(record_ranges, "CHUNK_BYTES", 50)
    monkeypatch.setattr(record_ranges, "LOOK_BEHIND_BYTES", 3)
    monkeypatch.setattr(streams, "PIECE_BYTES", 64)
    generator = random.Random(layout)
    made = [MAKERS[layout](generator) for _ in range(2)]
    for number, (data, _) in enumerate(made):
        (tmp_path / f"{number}.bin").write_bytes(COMPRESS[compression](data))
    settings = CorpusSettings(arguments=[str(tmp_path)], layout=(layout,))
    corpus, _ = open_corpus(settings, tmp_path / "spool")
    assert corpus.num_bytes == sum(len(data) for data, _ in made)
    assert [file.compression for file in corpus.files] == [compression] * 2
    for block_bytes in (16, 37, 100, 555, 1 << 20):
        expected: dict[int, list[Record]] = {}
        start = 0
        for data, records in made:
            for record in records:
                expected.setdefault((start + record[0]) // block_bytes, []).append(record)
            start += len(data)
        reader = BlockReader(corpus, block_bytes, Drops())
        whole = b""
        for block in range(corpus.num_blocks(block_bytes)):
            pieces: list[bytes] = []
            found = [(d.offset, d.text, d.second, d.label) for d in reader.documents(block, pieces.append)]
            assert found == expected.get(block, []), (block_bytes, block)
            whole += b"".join(pieces)
        assert whole == b"".join(data for data, _ in made)
        assert not reader.drops.counts
    assert corpus.has_second == (layout in ("labelled_tsv", "paired_tsv"))
    labels = {record[3] for _, records in made for record in records if record[3]}
    assert corpus.labels == tuple(sorted(labels, key=int))


def test_a_block_asked_for_again_after_a_break(tmp_path: Path) -> None:
    data, records = document_per_line(random.Random(1))
    (tmp_path / "x.txt").write_bytes(gzip.compress(data))
    corpus, _ = open_corpus(CorpusSettings(arguments=[str(tmp_path / "x.txt")]), tmp_path)
    reader = BlockReader(corpus, 300)
    first = next(reader.documents(1, bytes))
    assert next(reader.documents(1, bytes)) == first
    assert [d.offset for d in reader.documents(0, bytes)] == [r[0] for r in records if r[0] < 300]


@pytest.mark.parametrize("block_bytes", [1 << 16, 1 << 18, 1 << 20])
def test_a_compressed_file_is_decompressed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Also with a document that is longer than all that is kept behind the place of reading."""
    text = b"word " * 400_000 + b"\n" + b"\n".join(b"%d" % n for n in range(300_000)) + b"\n" + b"tail " * 900_000
    (tmp_path / "x.gz").write_bytes(gzip.compress(text, 1))
    corpus, _ = open_corpus(CorpusSettings(arguments=[str(tmp_path / "x.gz")], layout=("document_per_line",)), tmp_path)
    made = []
    new_decoder = streams.new_decoder
    monkeypatch.setattr(streams, "WINDOW_BYTES", 1 << 16)
    monkeypatch.setattr(streams, "new_decoder", lambda *given: made.append(1) or new_decoder(*given))
    reader = BlockReader(corpus, block_bytes)
    number = sum(1 for block in range(corpus.num_blocks(block_bytes)) for _ in reader.documents(block, bytes))
    assert number == 300_002
    assert len(made) == 1


def test_memory_of_a_survey_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed file is read in pieces, and little of it is kept."""
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"some text\n" * 2_000_000, 1))
    kept = []
    read = streams.CompressedStream.read

    def watched(self: streams.CompressedStream, offset: int, size: int) -> bytes:
        data = read(self, offset, size)
        kept.append(len(self.window))
        return data

    monkeypatch.setattr(streams.CompressedStream, "read", watched)
    corpus, _ = open_corpus(CorpusSettings(arguments=[str(tmp_path / "x.gz")]), tmp_path)
    assert corpus.num_bytes == 20_000_000
    assert max(kept) < 10 << 20
    assert len(kept) < 60


def test_document_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_ranges, "MAX_DOCUMENT_BYTES", 5000)
    monkeypatch.setattr(record_ranges, "CHUNK_BYTES", 512)
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\ntwo\n" + b"x" * 6000 + b"\nthree\n")
    corpus, _ = open_corpus(CorpusSettings(arguments=[str(path)], layout=("document_per_line",)), tmp_path)
    message = r"x.txt has a document of more than 5,000 bytes near offset 8 \(line 3\) as document_per_line: cut it"
    with pytest.raises(ValueError, match=message):
        list(BlockReader(corpus, 1 << 20).documents(0, bytes))
    with pytest.raises(ValueError, match="has a document of more than 5,000 bytes near offset"):
        list(BlockReader(corpus, 2000).documents(2, bytes))


@pytest.mark.parametrize("num_bytes", [3000, 4100, 4998])
def test_document_that_is_nearly_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """What is read with a document counts for nothing."""
    monkeypatch.setattr(record_ranges, "MAX_DOCUMENT_BYTES", 5000)
    monkeypatch.setattr(record_ranges, "CHUNK_BYTES", 512)
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\ntwo\n" + b"x" * num_bytes + b"\n" + b"three\n" * 2000)
    corpus, _ = open_corpus(CorpusSettings(arguments=[str(path)], layout=("document_per_line",)), tmp_path)
    reader = BlockReader(corpus, 3000)
    texts = [item.text for block in range(corpus.num_blocks(3000)) for item in reader.documents(block, bytes)]
    assert texts == ["one", "two", "x" * num_bytes] + ["three"] * 2000


def test_raw_bytes_are_given_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"x" * (5 << 20) + b"\nend")
    corpus, _ = open_corpus(CorpusSettings(arguments=[str(path)]), tmp_path)
    pieces = list(BlockReader(corpus, 1 << 30).raw(0))
    assert b"".join(pieces) == path.read_bytes()
    assert max(map(len, pieces)) <= 2 << 20
    assert re.fullmatch(rb"x+", pieces[0])
