"""Exact duplicates over all blocks in bounded memory: the first occurrence in input order stays.

A first pass writes each block's digests sorted (`write_digests`); `find_duplicates` merges these files range by range
of the digests and writes for each block which of its items came before; a second pass leaves those out (`without`).

Exact means exact: "Yes." as a sentence stays once in the whole corpus, where it is first.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocess.cleaning.drops import Drops
from preprocess.corpus.document import Document
from preprocess.files import write_atomically

DIGEST_BYTES = 16
RECORD_BYTES = 20  # uint64 first half, uint64 second half, uint32 index: three columns one behind the other
WORKING_BYTES = 96  # memory that one record needs while its range of digests is worked on, sorting included
DEFAULT_MEMORY = 256 << 20
MAX_RANGES = 1024  # that one range is cut into at once

IndexArray = npt.NDArray[np.uint32]


def document_digest(document: Document) -> bytes:
    """Return the 16-byte digest of a document's text and second text; nothing else of it counts."""
    if document.second is None:
        return _digest(document.text)
    return _digest(f"{len(document.text)} {document.text}{document.second}", b"pair")


def sentence_digest(sentence: str) -> bytes:
    """Return the 16-byte digest of a sentence without the white space at its ends."""
    return _digest(sentence.strip())


def _digest(text: str, kind: bytes = b"") -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, person=kind).digest()


def write_digests(path: Path, digests: Iterable[bytes]) -> int:
    """Write the digests of a block's items, given in input order, sorted; return how many there are."""
    halves = np.frombuffer(b"".join(digests), ">u8").astype("<u8").reshape(-1, 2)  # [items, 2]
    order = np.argsort(halves[:, 0], kind="stable")
    columns = (halves[order, 0].tobytes(), halves[order, 1].tobytes(), order.astype("<u4").tobytes())
    write_atomically(path, b"".join(columns))
    return len(order)


def find_duplicates(
    digest_files: Sequence[Path | None],
    output_files: Sequence[Path | None],
    memory_bytes: int = DEFAULT_MEMORY,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write for each block which of its items occur earlier in the input, and return how many there are in all.

    Args:
        digest_files: of each block, as `write_digests` wrote it; None for a block without items.
        output_files: of each block, for `read_duplicates`: indices of its duplicates, rising; None: a list that
            nobody needs.
        memory_bytes: about how much memory the work may take; with less it takes more rounds.
        progress: called with the bytes of digest files done since the last call.

    Raises:
        ValueError: for a digest file that is not whole.
    """
    spills = {block: path.with_name(path.name + ".part") for block, path in enumerate(output_files) if path is not None}
    for spill in spills.values():
        spill.unlink(missing_ok=True)
    files = [(block, path) for block, path in enumerate(digest_files) if path is not None]
    ends = np.array([_num_records(path) for _, path in files], np.int64)
    limit = max(memory_bytes // WORKING_BYTES, 1)
    total = 0
    for begins, tops in _ranges([path for _, path in files], np.zeros_like(ends), ends, 0, 1 << 64, limit):
        num_records = int((tops - begins).sum())
        find = _duplicates_of_range if num_records <= limit else _duplicates_of_one_value
        for block, indices in find(files, begins, tops, limit):
            if block in spills:
                with open(spills[block], "ab") as spill_file:
                    spill_file.write(indices.astype("<u4").tobytes())
            total += len(indices)
        progress(num_records * RECORD_BYTES)
    for block, path in enumerate(output_files):
        if path is not None:
            _write_indices(spills[block], path)
    return total


def read_duplicates(path: Path) -> IndexArray:
    """Return the indices of a block's duplicates [duplicates] uint32, rising."""
    return np.load(path, allow_pickle=False)


def without_duplicates(documents: Iterable[Document], duplicates: IndexArray, drops: Drops) -> Iterator[Document]:
    """Yield a block's documents without those whose index is in ``duplicates``; drops: documents_duplicate."""
    left = iter(duplicates.tolist())
    following = next(left, -1)
    for index, document in enumerate(documents):
        if index == following:
            following = next(left, -1)
            drops.add("documents_duplicate", document.text, document)
        else:
            yield document


class SentenceFilter:
    """Leaves duplicates out of the sentences of a block's documents, which are given in order.

    Args:
        duplicates: indices among all sentences of the block, rising.
        drops: gets sentences_duplicate, and documents_of_duplicate_sentences for one that loses all its sentences.
    """

    def __init__(self, duplicates: IndexArray, drops: Drops) -> None:
        self.duplicates = duplicates
        self.drops = drops
        self.position = 0  # among the duplicates
        self.num_sentences = 0

    def keep(self, sentences: list[str], document: Document) -> list[str]:
        """Return the sentences of the next document that stay, as they are; none if all are duplicates."""
        begin = self.num_sentences
        self.num_sentences += len(sentences)
        end = self.position + int(np.searchsorted(self.duplicates[self.position :], self.num_sentences))
        if end == self.position:
            return sentences
        lost = {int(index) - begin for index in self.duplicates[self.position : end]}
        self.position = end
        for index in sorted(lost):
            self.drops.add("sentences_duplicate", sentences[index].strip(), document)
        if len(lost) == len(sentences):
            self.drops.add("documents_of_duplicate_sentences", document.text, document)
        return [sentence for index, sentence in enumerate(sentences) if index not in lost]


def _num_records(path: Path) -> int:
    num_bytes = path.stat().st_size
    if num_bytes % RECORD_BYTES:
        raise ValueError(
            f"{path}: {num_bytes:,} bytes are no whole number of digests; delete the file and run the command again"
        )
    return num_bytes // RECORD_BYTES


def _ranges(
    paths: list[Path], begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], low: int, high: int, limit: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield slices [files] of the files with digests from ``low`` to ``high``, in ranges of at most limit records.

    A range of one single value (of the first half) may have more.
    """
    total = int((ends - begins).sum())
    if total <= limit or high - low == 1:
        if total:
            yield begins, ends
        return
    num_ranges = min(-(-total // limit), high - low, MAX_RANGES)
    limits = [low + (high - low) * number // num_ranges for number in range(num_ranges + 1)]
    inner = np.array(limits[1:-1], np.uint64)
    cuts = np.empty((num_ranges + 1, len(paths)), np.int64)
    cuts[0], cuts[-1] = begins, ends
    for file in range(len(paths)):
        if begins[file] < ends[file]:
            first_halves = np.memmap(paths[file], "<u8", "r", 8 * int(begins[file]), int(ends[file] - begins[file]))
            cuts[1:-1, file] = begins[file] + np.searchsorted(first_halves, inner)
        else:
            cuts[:, file] = begins[file]
    for number in range(num_ranges):
        yield from _ranges(paths, cuts[number], cuts[number + 1], limits[number], limits[number + 1], limit)


Found = Iterator[tuple[int, IndexArray]]
Slices = npt.NDArray[np.int64]


def _duplicates_of_range(files: list[tuple[int, Path]], begins: Slices, ends: Slices, limit: int) -> Found:
    """Yield block and indices of the duplicates within slices of the files, all in memory at once."""
    used = np.flatnonzero(begins < ends)
    parts = [_read_slice(files[file][1], int(begins[file]), int(ends[file])) for file in used]
    first, second, index = (np.concatenate(column) for column in zip(*parts, strict=True))
    duplicates = np.sort(_later_of_equals(first, second))  # positions in the parts, which are in the order of blocks
    part_ends = np.cumsum([len(part[0]) for part in parts])
    bounds = np.searchsorted(duplicates, [0, *part_ends])
    for file, begin, end in zip(used, bounds[:-1], bounds[1:], strict=True):
        if begin < end:
            yield files[file][0], index[duplicates[begin:end]]


def _later_of_equals(first: np.ndarray, second: np.ndarray) -> npt.NDArray[np.int64]:
    """Return the positions of all records that equal an earlier one."""
    order = np.argsort(first, kind="stable")
    sorted_first = first[order]
    equal = sorted_first[1:] == sorted_first[:-1]
    later, earlier = order[1:][equal], order[:-1][equal]
    if np.array_equal(second[later], second[earlier]):
        return later
    # Different texts with equal first halves: all that share a first half, sorted by both halves.
    candidates = np.unique(np.concatenate([later, earlier]))
    candidates = candidates[np.lexsort((second[candidates], first[candidates]))]  # stable, too
    same = (first[candidates[1:]] == first[candidates[:-1]]) & (second[candidates[1:]] == second[candidates[:-1]])
    return candidates[1:][same]


def _duplicates_of_one_value(files: list[tuple[int, Path]], begins: Slices, ends: Slices, limit: int) -> Found:
    """The same for slices with one and the same first half that do not fit in memory: one text, very often."""
    seen: set[int] = set()
    for (block, path), begin, end in zip(files, begins.tolist(), ends.tolist(), strict=True):
        for start in range(begin, end, limit):
            _, second, index = _read_slice(path, start, min(start + limit, end))
            is_duplicate = np.ones(len(second), np.bool_)
            values, firsts = np.unique(second, return_index=True)
            for value, first in zip(values.tolist(), firsts.tolist(), strict=True):
                is_duplicate[first] = value in seen
                seen.add(value)
            yield block, index[is_duplicate]


def _read_slice(path: Path, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read records begin..end of a digest file: first halves, second halves, indices."""
    num_records = _num_records(path)
    count = end - begin
    return (
        np.fromfile(path, "<u8", count, offset=8 * begin),
        np.fromfile(path, "<u8", count, offset=8 * (num_records + begin)),
        np.fromfile(path, "<u4", count, offset=16 * num_records + 4 * begin),
    )


def _write_indices(spill: Path, path: Path) -> None:
    """Sort what was found of a block into its file."""
    indices = np.fromfile(spill, "<u4") if spill.exists() else np.zeros(0, "<u4")
    indices.sort()
    buffer = io.BytesIO()
    np.save(buffer, indices, allow_pickle=False)
    write_atomically(path, buffer.getvalue())
    spill.unlink(missing_ok=True)
