"""Blocks of a corpus: against a reader that parses whole files, compressed and plain, in any block size."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.cleaning.drops import Drops
from preprocess.corpus import record_ranges, streams
from preprocess.corpus.blocks import BlockReader
from preprocess.corpus.corpus import Corpus, CorpusSettings, InputFile
from preprocess.corpus.inputs import open_corpus
from preprocess.corpus.layouts import DOCUMENT_PER_LINE, SENTENCE_PER_LINE

MARK = b"\xef\xbb\xbf"
SPACE = b" \t\r\x0b\x0c"
PIECES = [
    "a",
    "bc",
    "é",
    "中",
    "😀",
    " ",
    "\t",
    "\r",
    "\n",
    "\n",
    "\n\n",
    "\r\n",
    "\r\n\r\n",
    "\n \n",
    "\x0b",
    "\u3000",
]


def zstd(data: bytes) -> bytes:
    """Compress as two frames."""
    zstandard = pytest.importorskip("zstandard", reason="needs zstandard")
    half = len(data) // 2
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))


def two_members(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Compress as two members."""
    return lambda data: compress(data[: len(data) // 3]) + compress(data[len(data) // 3 :])


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": two_members(gzip.compress),
    "xz": two_members(lzma.compress),
    "bzip2": two_members(bz2.compress),
    "zstd": zstd,
}


def reference(data: bytes, layout: str) -> Iterator[tuple[int, str]]:
    """Yield (first byte of its first line, text) of each document, by reading the whole file line by line."""
    position = len(MARK) if data.startswith(MARK) else 0
    documents: list[tuple[int, list[bytes]]] = []
    inside = False
    for line in data[position:].split(b"\n"):
        blank = not line.strip(SPACE)
        if not blank and (layout == DOCUMENT_PER_LINE or not inside):
            documents.append((position, []))
        if not blank:
            documents[-1][1].append(line.rstrip(SPACE))
        inside = not blank
        position += len(line) + 1
    for first, lines in documents:
        text = b"\n".join(lines).decode().strip()
        if text:
            yield first, text


def corpus_of(folder: Path, contents: list[tuple[bytes, str]], compression: str = "") -> Corpus:
    """Write files and return their corpus, one source each."""
    files = []
    start = 0
    for index, (data, layout) in enumerate(contents):
        path = folder / f"{index}.txt"
        path.write_bytes(COMPRESSIONS[compression](data))
        status = path.stat()
        files.append(
            InputFile(
                path=str(path),
                name=path.name,
                source=index,
                start=start,
                num_bytes=len(data),
                layout=layout,
                compression=compression,
                stored_bytes=status.st_size,
                modified_ns=status.st_mtime_ns,
            )
        )
        start += len(data)
    return Corpus(tuple(file.name for file in files), tuple(files))


file_contents = st.tuples(
    st.builds(
        lambda mark, pieces: mark + "".join(pieces).encode(),
        st.sampled_from([b"", MARK]),
        st.lists(st.sampled_from(PIECES), max_size=40),
    ),
    st.sampled_from([SENTENCE_PER_LINE, DOCUMENT_PER_LINE]),
)


@settings(max_examples=400, deadline=None)
@given(
    contents=st.lists(file_contents, min_size=1, max_size=3),
    block_bytes=st.integers(1, 60),
    compression=st.sampled_from(list(COMPRESSIONS)),
    chunk_bytes=st.integers(1, 20),
    backwards=st.booleans(),
)
def test_blocks_hold_the_documents_that_begin_in_them(
    tmp_path_factory: pytest.TempPathFactory,
    contents: list[tuple[bytes, str]],
    block_bytes: int,
    compression: str,
    chunk_bytes: int,
    backwards: bool,
) -> None:
    corpus = corpus_of(tmp_path_factory.mktemp("blocks"), contents, compression)
    expected: dict[int, list[tuple[int, int, str]]] = {}
    for file, (data, layout) in zip(corpus.files, contents, strict=True):
        for first, text in reference(data, layout):
            expected.setdefault((file.start + first) // block_bytes, []).append((file.source, first, text))
    blocks = list(range(corpus.num_blocks(block_bytes)))
    raw: dict[int, bytes] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_ranges, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(record_ranges, "LOOK_BEHIND_BYTES", 2)
        patch.setattr(streams, "WINDOW_BYTES", chunk_bytes)
        patch.setattr(streams, "PIECE_BYTES", chunk_bytes)
        reader = BlockReader(corpus, block_bytes)
        for block in reversed(blocks) if backwards else blocks:
            pieces: list[bytes] = []
            found = [(item.source, item.offset, item.text) for item in reader.documents(block, pieces.append)]
            assert found == expected.get(block, [])
            raw[block] = b"".join(pieces)
            assert b"".join(reader.raw(block)) == raw[block]
    assert b"".join(raw[block] for block in blocks) == b"".join(data.removeprefix(MARK) for data, _ in contents)


@pytest.mark.parametrize("compression", ["gzip", "xz", "bzip2", "zstd"])
def test_compressed_files_give_what_plain_ones_give(tmp_path: Path, compression: str) -> None:
    text = "".join(f"the sentence {n}\n" + "\n" * (n % 5 == 0) for n in range(2000)).encode()
    (tmp_path / "plain.txt").write_bytes(text)
    (tmp_path / "packed.txt.x").write_bytes(COMPRESSIONS[compression](text))
    found = []
    for name in ("plain.txt", "packed.txt.x"):
        corpus, _ = open_corpus(CorpusSettings(arguments=[str(tmp_path / name)]), tmp_path / "spool")
        assert corpus.num_bytes == len(text)
        assert corpus.files[0].compression == (compression if name != "plain.txt" else "")
        reader = BlockReader(corpus, 5000, Drops())
        found.append([[(d.text, d.offset) for d in reader.documents(k, bytes)] for k in range(corpus.num_blocks(5000))])
    assert found[0] == found[1]
    assert len(found[0]) > 3
