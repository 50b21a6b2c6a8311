"""What to make shards of, and how."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.cleaning.settings import CleaningSettings
from preprocess.corpus.corpus import CorpusSettings
from preprocess.shards import COMPRESSIONS
from preprocess.words import SEGMENTERS, segmenter_problem

DEFAULT_SHARD_BYTES = 64 << 20
DEFAULT_HELDOUT = 0.01
MIN_SHARD_BYTES = 16
EXECUTORS = ("local", "ray")
DICTIONARY_SEGMENTERS = ("rjieba", "jieba")  # packages of the same names


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """Settings of the ``shards`` command.

    Attributes:
        dropped: file that dropped texts are written to, as JSON lines.
        part: "I/N": do the I-th of N shares of the blocks, and leave the folder for ``finish``.
        executor: "local" for processes of this machine, "ray" for a Ray cluster.
    """

    corpus: CorpusSettings
    tokenizer: str
    output: str
    cleaning: CleaningSettings = field(default_factory=CleaningSettings)
    workers: int = 1
    heldout: float = DEFAULT_HELDOUT
    shard_bytes: int = DEFAULT_SHARD_BYTES
    compression: str = "zstd"
    lowercase: bool | None = None
    word_segmenter: str | None = None
    user_dictionary: str | None = None
    dropped: str | None = None
    part: str | None = None
    executor: str = "local"

    @property
    def share(self) -> tuple[int, int]:
        """Which blocks to do: those with number % second == first."""
        if self.part is None:
            return 0, 1
        index, _, count = self.part.partition("/")
        return int(index) - 1, int(count)

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = [*self.corpus.problems(), *self.cleaning.problems()]
        if self.workers < 1:
            found.append(f"workers is {self.workers}: at least 1 is needed")
        if not 0 <= self.heldout < 1:
            found.append(f"heldout is {self.heldout}: a share of the documents from 0 to below 1 is needed")
        if self.shard_bytes < MIN_SHARD_BYTES:
            found.append(
                f"shard_bytes is {self.shard_bytes}: needs {MIN_SHARD_BYTES} or more ({DEFAULT_SHARD_BYTES} is usual)"
            )
        if self.compression not in COMPRESSIONS:
            found.append(f"compression is {self.compression!r}; allowed: {', '.join(COMPRESSIONS)}")
        if self.compression == "zstd" and not importlib.util.find_spec("hdf5plugin"):
            found.append("compression zstd needs a package: pip install hdf5plugin, or use --compression gzip")
        if self.executor not in EXECUTORS:
            found.append(f"executor is {self.executor!r}; allowed: {', '.join(EXECUTORS)}")
        return found + self._word_problems() + self._part_problems()

    def _word_problems(self) -> list[str]:
        if self.word_segmenter is not None and self.word_segmenter not in SEGMENTERS:
            return [f"word_segmenter is {self.word_segmenter!r}; allowed: {', '.join(SEGMENTERS)}"]
        if self.word_segmenter and (problem := segmenter_problem(self.word_segmenter)):
            return [problem]
        if self.user_dictionary and self.word_segmenter not in DICTIONARY_SEGMENTERS:
            return ["user_dictionary needs --word_segmenter rjieba or jieba"]
        if self.user_dictionary and not Path(self.user_dictionary).is_file():
            return [f"user_dictionary is {self.user_dictionary!r}: there is no such file"]
        return []

    def _part_problems(self) -> list[str]:
        if self.part is None:
            return []
        if not re.fullmatch(r"\d+/\d+", self.part) or not 0 <= self.share[0] < self.share[1]:
            return [f"part is {self.part!r}: needs I/N with I from 1 to N, such as 2/8"]
        if any(argument.rpartition("=")[2] == "-" for argument in self.corpus.arguments):
            return ["standard input cannot be split over parts; write it to a file that all of them can read"]
        if self.executor != "local":
            return ["part and executor both divide the work: give one of them"]
        return []
