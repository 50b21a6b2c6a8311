"""Compressed files: any offset, and what is wrong with damaged ones."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.corpus import streams
from preprocess.corpus.corpus import CorpusSettings
from preprocess.corpus.inputs import open_corpus
from preprocess.corpus.streams import CompressedStream, compression_of, open_stream


def zstd(data: bytes) -> bytes:
    """Compress as one frame."""
    return pytest.importorskip("zstandard", reason="needs zstandard").ZstdCompressor().compress(data)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstd,
}
compressions = pytest.mark.parametrize("compression", list(COMPRESS))
TEXT = "".join(f"line {n} {n * 7919 % 10_007}\n" for n in range(60_000)).encode()


def read_all(path: Path, compression: str, max_expansion: int = 200, size: int = 100_000) -> bytes:
    """Read a file from its beginning to its end."""
    stream = open_stream(str(path), compression, max_expansion)
    data = b""
    while piece := stream.read(len(data), size):
        data += piece
    stream.close()
    return data


@compressions
@pytest.mark.parametrize("window", [10, 1 << 20])
def test_any_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, window: int) -> None:
    monkeypatch.setattr(streams, "WINDOW_BYTES", window)
    monkeypatch.setattr(streams, "PIECE_BYTES", 5000)
    monkeypatch.setattr(streams, "FEED_BYTES", 777)
    path = tmp_path / "x"
    path.write_bytes(COMPRESS[compression](TEXT[:300_000]) + COMPRESS[compression](TEXT[300_000:]))
    assert compression_of(path.read_bytes()) == compression
    stream = CompressedStream(str(path), compression, 200)
    generator = random.Random(0)
    for _ in range(25):
        offset, size = generator.randrange(len(TEXT) + 100), generator.randrange(100_000)
        assert stream.read(offset, size) == TEXT[offset : offset + size]
    stream.close()


def test_plain_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(TEXT * 3)
    stream = open_stream(str(tmp_path / "x"), "", 1)
    for offset, size in ((0, 10), (500, 3 << 20), (len(TEXT) * 3 - 5, 100), (1 << 30, 5)):
        assert stream.read(offset, size) == (TEXT * 3)[offset : offset + size]
    stream.close()
    assert compression_of(TEXT) == ""


@compressions
def test_cut_off(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "x.gz"
    packed = COMPRESS[compression](TEXT)
    for size in (len(packed) // 2, len(packed) - 1, 14):
        path.write_bytes(packed[:size])
        message = rf"x.gz is cut off: its {compression} data ends in the middle at byte {size:,} of the file, after "
        with pytest.raises(ValueError, match=message):
            read_all(path, compression)
    path.write_bytes(packed + packed[:-1])
    with pytest.raises(ValueError, match=r"x.gz is cut off: "):
        read_all(path, compression)


@compressions
def test_damaged(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "x.gz"
    packed = bytearray(COMPRESS[compression](TEXT))
    packed[len(packed) // 2 : len(packed) // 2 + 200] = bytes(range(200))
    path.write_bytes(packed)
    message = rf"x.gz is damaged: its {compression} data cannot be unpacked near byte [\d,]+ of the file, after [\d,]+ "
    with pytest.raises(ValueError, match=message):
        read_all(path, compression)


@compressions
def test_something_behind_the_end(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "x.gz"
    packed = COMPRESS[compression](TEXT)
    path.write_bytes(packed + b"\0" * 1024)  # padding
    assert read_all(path, compression) == TEXT
    path.write_bytes(packed + b"something else")
    message = rf"x.gz is damaged: at byte {len(packed):,} of the file, behind a complete part of {compression} data"
    with pytest.raises(ValueError, match=message):
        read_all(path, compression)


def test_wrong_checksum(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(TEXT))
    packed[-8:-4] = (zlib.crc32(TEXT) ^ 1).to_bytes(4, "little")
    (tmp_path / "x.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"x.gz is damaged: .*incorrect data check"):
        read_all(tmp_path / "x.gz", "gzip")


@compressions
def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    monkeypatch.setattr(streams, "TRUSTED_BYTES", 1 << 20)
    path = tmp_path / "bomb"
    path.write_bytes(COMPRESS[compression](bytes(30 << 20)))
    message = r"bomb expands to more than 50 times its size .*leave it out, or allow more with --max_expansion"
    with pytest.raises(ValueError, match=message):
        read_all(path, compression, max_expansion=50)
    assert len(read_all(path, compression, max_expansion=10_000_000, size=1 << 20)) == 30 << 20
    path.write_bytes(COMPRESS[compression](TEXT))
    assert read_all(path, compression, max_expansion=50) == TEXT


def test_skippable_frames_of_zstd(tmp_path: Path) -> None:
    path = tmp_path / "x.zst"
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    path.write_bytes(zstd(TEXT) + skippable + zstd(TEXT))
    assert read_all(path, "zstd") == TEXT * 2


def test_zstandard_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.zst").write_bytes(zstd(TEXT))
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(ValueError, match=r"x.zst is a zstd file: reading it needs the package zstandard; install it"):
        read_all(tmp_path / "x.zst", "zstd")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nowhere: No such file"):
        open_stream(str(tmp_path / "nowhere"), "", 1)


@compressions
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_encodings_inside_compression(tmp_path: Path, compression: str, encoding: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(COMPRESS[compression]("\ufeff<mediawiki>текст\n".encode(encoding)))
    name = encoding[:6].upper()
    message = (
        rf"x is {name} inside {compression}: convert it: {compression} -dc .*x \| iconv -f {name} -t UTF-8 > NEW_FILE"
    )
    with pytest.raises(ValueError, match=message):
        open_corpus(CorpusSettings(arguments=[str(path)]), tmp_path)


def test_a_real_dump_in_utf16() -> None:
    """The Bulgarian sample that gensim ships."""
    gensim = pytest.importorskip("gensim", reason="needs the sample dump of gensim")
    path = Path(gensim.__file__).parent / "test/test_data/bgwiki-latest-pages-articles-shortened.xml.bz2"
    with pytest.raises(ValueError, match=r"bz2 is UTF-16 inside bzip2: convert it: bzip2 -dc .* \| iconv -f UTF-16"):
        open_corpus(CorpusSettings(arguments=[str(path)]), path.parent)
