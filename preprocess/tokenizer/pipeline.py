"""What every kind of tokenizer provides: a pipeline (how text becomes tokens) and its encoder (that, fast)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from preprocess.code_points import is_visible, to_code_points
from preprocess.files import write_atomically
from preprocess.tokenizer.roles import Vocabulary

BATCH_CHARACTERS = 1 << 18
NUM_CODE_POINTS = 0x110000

IntArray = npt.NDArray[np.int64]


class Encoder(ABC):
    """Text to ids. Not thread-safe; one per process, single-threaded."""

    dtype: np.dtype

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray]:
        """Return the concatenated ids [T] and the number of ids of each text [len(texts)] int64."""

    @abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids [T] and where each token begins and ends in the text, in code points: [T], [T] int64."""

    def encode_with_positions(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids, counts and positions; see ``Tokenizer.encode_with_positions``."""
        parts = [self.encode_with_offsets(text) for text in texts]
        begins = text_begins(texts).tolist()
        empty = np.zeros(0, np.int64)
        ids = np.concatenate([np.zeros(0, self.dtype), *(part[0] for part in parts)])
        starts = np.concatenate([empty, *(part[1] + begin for part, begin in zip(parts, begins, strict=True))])
        ends = np.concatenate([empty, *(part[2] + begin for part, begin in zip(parts, begins, strict=True))])
        visible = np.flatnonzero(is_visible(to_code_points("\n".join(texts))))
        counts = np.fromiter((len(part[0]) for part in parts), np.int64, len(parts))
        return ids, counts, first_characters(starts, ends, visible)


class Pipeline(ABC):
    """How text becomes tokens: normalisation, cutting, the model. Holds settings only; picklable."""

    type: str
    prefix: str = ""
    keeps_whitespace: bool = False
    trimming: dict[str, bool] | None = None  # settings of the ByteLevel post-processor that trims offsets
    transformers_class: str = "PreTrainedTokenizerFast"
    files: tuple[str, ...] = ("tokenizer.json", "tokenizer_config.json")

    @abstractmethod
    def backend(self, vocabulary: Vocabulary, hidden: bool) -> tokenizers.Tokenizer:
        """Return the library's tokenizer without special tokens; ``hidden``: no text gives their ids either."""

    @abstractmethod
    def encoder(self, vocabulary: Vocabulary, dtype: np.dtype) -> Encoder:
        """Return the fast way to the same ids."""

    @abstractmethod
    def decisive(self) -> dict[str, Any]:
        """Return all settings that decide ids, as JSON."""

    def continuation(self, tokens: Sequence[str]) -> list[bool]:
        """Tell for each token whether it continues a word."""
        return [False] * len(tokens)

    def config(self) -> dict[str, Any]:
        """Return entries for tokenizer_config.json."""
        return {}

    def classic_files(self, vocabulary: Vocabulary) -> dict[str, bytes]:
        """Return the files that tokenizers of this kind had before tokenizer.json: name -> content."""
        return {}

    def write(self, folder: Path, vocabulary: Vocabulary) -> None:
        """Write ``classic_files``."""
        for name, content in self.classic_files(vocabulary).items():
            write_atomically(folder / name, content)


def vocabulary_file(vocabulary: Vocabulary) -> bytes:
    """Return vocab.txt: one token a line."""
    return "".join(f"{token}\n" for token in vocabulary.tokens).encode()


def text_begins(texts: Sequence[str]) -> IntArray:
    """Return where each text begins in "\\n".join(texts), in code points."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    begins: IntArray = np.cumsum(lengths) - lengths
    return begins


def first_characters(starts: IntArray, ends: IntArray, visible: IntArray) -> IntArray:
    """Return the first visible character of each token, -1 where it has none or an earlier token has it.

    Args:
        starts, ends: [T] where tokens begin and end.
        visible: where the visible characters begin, ascending, in the same unit.
    """
    if not len(visible):
        return np.full(len(starts), -1, np.int64)
    starts = starts.copy()
    if len(starts):
        starts[1:] = np.maximum(starts[1:], np.maximum.accumulate(ends)[:-1])  # tokens of one character overlap
    position = visible[np.minimum(np.searchsorted(visible, starts), len(visible) - 1)]
    return np.where((position >= starts) & (position < ends), position, -1)


def flat_ids(rows: Sequence[Sequence[int]], dtype: npt.DTypeLike) -> tuple[np.ndarray, IntArray]:
    """Return lists of ids as one array and their lengths."""
    counts = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), dtype, int(counts.sum())), counts


def batches(texts: Sequence[str], size: int = BATCH_CHARACTERS) -> list[Sequence[str]]:
    """Cut a list of texts into runs of about ``size`` characters."""
    found: list[Sequence[str]] = []
    first = total = 0
    for index, text in enumerate(texts):
        total += len(text) + 1
        if total >= size:
            found.append(texts[first : index + 1])
            first, total = index + 1, 0
    if first < len(texts):
        found.append(texts[first:])
    return found
