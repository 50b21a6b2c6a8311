"""Rows of static files back to documents: checked, the masking undone, special tokens and padding taken away."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocess.importing.nvidia_files import MASK_NAMES, NAMES, NvidiaFile, open_file
from preprocess.tokenizer import Tokenizer

READ_TOKENS = 1 << 19  # that are worked on at once

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SpecialIds:
    """What is asked of the tokenizer."""

    cls: int
    sep: int
    mask: int | None
    vocab_size: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> SpecialIds:
        """Return those of a tokenizer; ValueError if it has no [CLS] or [SEP]."""
        ids = tokenizer.special_ids
        if "cls" not in ids or "sep" not in ids:
            raise ValueError("the tokenizer has no [CLS] or no [SEP]: such files are made with a BERT vocabulary")
        return cls(ids["cls"], ids["sep"], ids.get("mask"), tokenizer.vocab_size)


@dataclass(frozen=True)
class RowDocuments:
    """Documents of some rows: tokens [T], sentence lengths [S], sentences and tokens of each document [D].

    ``num_empty`` documents without tokens were left out; ``num_masked`` tokens are still [MASK].
    """

    tokens: Int64
    sentence_lengths: Int64
    num_sentences: Int64
    num_tokens: Int64
    num_empty: int
    num_masked: int


def read_rows(
    file: NvidiaFile, begin: int, end: int, special: SpecialIds, digest: hashlib._Hash | None = None
) -> Iterator[RowDocuments]:
    """Yield the documents of rows begin to end, some rows at a time.

    Args:
        special: of the tokenizer that made the file.
        digest: is updated with the data that is read.

    Raises:
        ValueError: naming the file and the row, if that is not what such a file holds.
    """
    step = max(1, READ_TOKENS // file.length)
    with open_file(file.path) as opened:
        if opened["input_ids"].shape != (file.num_rows, file.length):
            raise ValueError(f"{file.path} changes while it is read")
        for first in range(begin, end, step):
            stop = min(end, first + step)
            try:
                data = {name: opened[name][first:stop] for name in NAMES}
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"{file.path} is damaged: rows {first:,} to {stop:,} cannot be read ({error})"
                ) from None
            if digest is not None:
                for array in data.values():
                    digest.update(np.ascontiguousarray(array).data)
            rows = {name: array.astype(np.int64) for name, array in data.items()}
            yield _Rows(file, first, special, rows).documents()


class _Rows:
    """Some rows in memory as int64; n rows of L tokens."""

    def __init__(self, file: NvidiaFile, first: int, special: SpecialIds, data: dict[str, Int64]) -> None:
        self.file, self.first, self.special, self.data = file, first, special, data
        self.place = np.arange(file.length)[None]  # [1, L]

    def _refuse(self, bad: np.ndarray | np.bool_, problem: str) -> None:
        """Raise for the first row [n] that is bad."""
        if bad.any():
            raise ValueError(f"{self.file.path}, row {self.first + int(bad.argmax()):,}: {problem}")

    def documents(self) -> RowDocuments:
        """Check the rows, undo the masking and take special tokens and padding away."""
        lengths, first_lengths = self._lengths()
        ids = self._restored(lengths)
        self._check_special(ids, lengths, first_lengths)
        random_next = self.data["next_sentence_labels"]
        self._refuse(~np.isin(random_next, (0, 1)), "next_sentence_labels is neither 0 nor 1")
        is_text = (self.place > 0) & (self.place != first_lengths[:, None] - 1) & (self.place < lengths[:, None] - 1)
        has_second = lengths > first_lengths
        pieces = np.stack([first_lengths - 2, np.where(has_second, lengths - first_lengths - 1, 0)], 1)  # [n, 2]
        begins = np.stack([np.ones(len(ids), np.bool_), has_second & (random_next == 1)], 1)
        return _grouped(ids[is_text], pieces.ravel(), begins.ravel(), self.special.mask)

    def _lengths(self) -> tuple[Int64, Int64]:
        """Return the tokens of each row [n] without padding, and of its first segment with [CLS] and [SEP]."""
        mask, segments = self.data["input_mask"], self.data["segment_ids"]
        lengths = (mask != 0).sum(1)
        inside = self.place < lengths[:, None]
        self._refuse(np.not_equal(mask, inside).any(1), "input_mask is not 1 for the first tokens and 0 for the rest")
        self._refuse(lengths == 0, "input_mask is 0 everywhere: there is no text")
        second = (segments != 0) & inside
        first_lengths = lengths - second.sum(1)
        expected = inside & (self.place >= first_lengths[:, None])
        wrong = (segments != expected) & inside
        self._refuse(wrong.any(1), "segment_ids is not 0 for the first tokens and 1 for the others")
        return lengths, first_lengths

    def _restored(self, lengths: Int64) -> Int64:
        """Return the ids [n, L] as they were before masking."""
        ids, size = self.data["input_ids"], self.special.vocab_size
        places, originals = (self.data[name] for name in MASK_NAMES)
        problem = (
            f"an id is not from 0 to {size - 1:,}, the last of the vocabulary: it was made with another vocabulary"
        )
        self._refuse(((ids < 0) | (ids >= size)).any(1), problem)
        used = places != 0
        outside = (places < 0) | (places >= lengths[:, None])
        self._refuse((used & outside).any(1), "masked_lm_positions points outside the row's text")
        self._refuse((used & ((originals < 0) | (originals >= size))).any(1), f"of masked_lm_ids, {problem}")
        row, _ = np.nonzero(used)
        ids[row, places[used]] = originals[used]
        return ids

    def _check_special(self, ids: Int64, lengths: Int64, first_lengths: Int64) -> None:
        """Check that [CLS] and [SEP] are where they must be."""
        row = np.arange(len(ids))
        cls, sep = self.special.cls, self.special.sep
        bad = ids[:, 0] != cls
        found = int(ids[int(bad.argmax()), 0])
        self._refuse(
            bad,
            f"it begins with the id {found:,}, and [CLS] of the tokenizer is {cls:,}: it was made with another "
            "vocabulary; give --tokenizer the one that made it",
        )
        self._refuse(first_lengths < 2, "its first segment has no room for [CLS] and [SEP]")
        for last in (first_lengths - 1, lengths - 1):
            self._refuse(
                ids[row, last] != sep,
                f"a segment does not end with [SEP], which is {sep:,} in the tokenizer's vocabulary",
            )


def _grouped(tokens: Int64, pieces: Int64, begins: npt.NDArray[np.bool_], mask: int | None) -> RowDocuments:
    """Group pieces into documents and drop those without tokens.

    Args:
        tokens: [T].
        pieces: lengths of the sentences, 0 where there is none.
        begins: whether a document begins with a piece.
    """
    document = np.cumsum(begins) - 1
    num_documents = int(document[-1]) + 1
    num_tokens = np.bincount(document, pieces, num_documents).astype(np.int64)
    num_sentences = np.bincount(document, pieces > 0, num_documents).astype(np.int64)
    kept = num_tokens > 0
    return RowDocuments(
        tokens=tokens,
        sentence_lengths=pieces[pieces > 0],
        num_sentences=num_sentences[kept],
        num_tokens=num_tokens[kept],
        num_empty=int((~kept).sum()),
        num_masked=0 if mask is None else int((tokens == mask).sum()),
    )
