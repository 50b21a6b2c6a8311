"""Duplicates found by merging sorted digests are those that a set of all texts finds."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from preprocess.cleaning import duplicates
from preprocess.cleaning.drops import Drops
from preprocess.cleaning.duplicates import (
    SentenceFilter,
    document_digest,
    find_duplicates,
    read_duplicates,
    sentence_digest,
    without_duplicates,
    write_digests,
)
from preprocess.corpus.document import Document


def by_set(blocks: list[list[bytes]]) -> list[list[int]]:
    """The duplicates of each block, by a set of everything seen."""
    seen: set[bytes] = set()
    result = []
    for digests in blocks:
        result.append([])
        for index, digest in enumerate(digests):
            if digest in seen:
                result[-1].append(index)
            seen.add(digest)
    return result


def found_by_merging(folder: Path, blocks: list[list[bytes]], **settings: int) -> tuple[int, list[list[int]]]:
    digest_files: list[Path | None] = []
    for number, digests in enumerate(blocks):
        digest_files.append(folder / f"{number}.digests" if digests else None)
        if digests:
            assert write_digests(folder / f"{number}.digests", digests) == len(digests)
    outputs = [folder / f"{number}.npy" for number in range(len(blocks))]
    number = find_duplicates(digest_files, outputs, **settings)
    assert not list(folder.glob("*.part"))
    return number, [read_duplicates(path).tolist() for path in outputs]


def random_blocks(seed: int, values: int) -> list[list[bytes]]:
    draw = random.Random(seed)
    texts = [draw.randbytes(16) for _ in range(values)]
    texts += [texts[0][:8] + draw.randbytes(8) for _ in range(3)]  # equal first halves of different texts
    texts += [bytes(16), b"\xff" * 16]
    return [[draw.choice(texts) for _ in range(draw.choice([0, 1, 37, 400]))] for _ in range(9)]


@pytest.mark.parametrize("memory_bytes", [1, 500, 5000, 256 << 20])
@pytest.mark.parametrize(("seed", "values"), [(0, 3), (1, 300), (2, 100_000)])
def test_equals_brute_force(tmp_path: Path, seed: int, values: int, memory_bytes: int) -> None:
    blocks = random_blocks(seed, values)
    expected = by_set(blocks)
    number, found = found_by_merging(tmp_path, blocks, memory_bytes=memory_bytes)
    assert found == expected and number == sum(map(len, expected))


def test_lists_of_some_blocks(tmp_path: Path) -> None:
    """The others are compared all the same."""
    blocks = random_blocks(4, 30)
    files: list[Path | None] = []
    for number, digests in enumerate(blocks):
        files.append(tmp_path / f"{number}.digests")
        write_digests(tmp_path / f"{number}.digests", digests)
    outputs = [tmp_path / f"{number}.npy" if number % 3 == 1 else None for number in range(len(blocks))]
    expected = by_set(blocks)
    for memory_bytes in (500, 256 << 20):
        assert find_duplicates(files, outputs, memory_bytes) == sum(map(len, expected))
        for number, path in enumerate(outputs):
            if path is not None:
                assert read_duplicates(path).tolist() == expected[number]
                path.unlink()
        assert {path.suffix for path in tmp_path.iterdir()} == {".digests"}


def test_nothing(tmp_path: Path) -> None:
    assert found_by_merging(tmp_path, []) == (0, [])
    assert found_by_merging(tmp_path, [[], []]) == (0, [[], []])


def test_does_not_depend_on_leftovers(tmp_path: Path) -> None:
    (tmp_path / "0.npy.part").write_bytes(b"left by a killed run")
    assert found_by_merging(tmp_path, [[b"a" * 16, b"a" * 16]]) == (1, [[1]])


def test_memory_is_bounded(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    files: list[Path | None] = []
    for number in range(8):
        halves = draw.integers(0, 100_000, (100_000, 1)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        files.append(tmp_path / f"{number}.digests")
        write_digests(tmp_path / f"{number}.digests", [np.repeat(halves, 2, axis=1).tobytes()])
    outputs = [tmp_path / f"{number}.npy" for number in range(8)]
    tracemalloc.start()
    try:
        find_duplicates(files, outputs, memory_bytes=4 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20  # the digests are 16 MB
    assert find_duplicates(files, outputs) == sum(len(read_duplicates(path)) for path in outputs)


def test_one_text_very_often_does_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    read = duplicates._read_slice

    def read_slice(path: Path, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        counts.append(end - begin)
        return read(path, begin, end)

    monkeypatch.setattr(duplicates, "_read_slice", read_slice)
    blocks = [[b"x" * 16] * 1000, [b"y" * 16, b"x" * 16], [b"x" * 16] * 500]
    number, found = found_by_merging(tmp_path, blocks, memory_bytes=100 * duplicates.WORKING_BYTES)
    assert number == 1500 and found == by_set(blocks) and max(counts) <= 100


def test_damaged_digests(tmp_path: Path) -> None:
    (tmp_path / "0.digests").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"0\.digests: 3 bytes are no whole number of digests; delete the file"):
        find_duplicates([tmp_path / "0.digests"], [tmp_path / "0.npy"])


def test_progress_is_the_size_of_the_files(tmp_path: Path) -> None:
    write_digests(tmp_path / "0.digests", [random.Random(i).randbytes(16) for i in range(100)])
    done: list[int] = []
    find_duplicates([tmp_path / "0.digests"], [tmp_path / "0.npy"], memory_bytes=1000, progress=done.append)
    assert sum(done) == (tmp_path / "0.digests").stat().st_size and len(done) > 5


def test_digests() -> None:
    def digest(text: str, second: str | None = None, **fields: int) -> bytes:
        return document_digest(Document(text, **{"source": 0, **fields}, second=second))

    assert digest("a") == digest("a", source=3, offset=7) and len(digest("a")) == 16
    different = [digest("ab"), digest("a", "b"), digest("ab", ""), digest("", "ab"), digest("1 ab"), digest("A")]
    assert len(set(different)) == len(different)
    assert sentence_digest(" One.\n") == sentence_digest("One.") != sentence_digest("One")
    assert digest("\ud800") != digest("?")  # a lone surrogate of a JSON escape


def test_documents() -> None:
    documents = [Document(text, 0) for text in "abcde"]
    drops = Drops()
    kept = without_duplicates(iter(documents), np.array([0, 3, 4], np.uint32), drops)
    assert [document.text for document in kept] == ["b", "c"] and drops.counts == {"documents_duplicate": 3}
    assert len(list(without_duplicates(iter(documents), np.zeros(0, np.uint32), drops))) == 5


def test_sentences() -> None:
    texts = [["A.", " B.", " A."], ["B."], ["C.", "\nA."], [], ["D."]]
    duplicate = [index for index, text in enumerate(["A", "B", "A", "B", "C", "A", "D"]) if text in "ABABCAD"[:index]]
    drops = Drops()
    stay = SentenceFilter(np.array(duplicate, np.uint32), drops)
    kept = [stay.keep(text, Document("".join(text), 0)) for text in texts]
    assert kept == [["A.", " B."], [], ["C."], [], ["D."]]
    assert drops.counts == {"sentences_duplicate": 3, "documents_of_duplicate_sentences": 1}
