"""The ``tokenizer`` command: a corpus to a trained tokenizer folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from preprocess.corpus.arguments import reads_standard_input
from preprocess.corpus.blocks import BlockReader
from preprocess.corpus.corpus import Corpus, CorpusSettings
from preprocess.corpus.inputs import open_corpus
from preprocess.progress import progress_bar
from preprocess.tokenizer.base import Tokenizer
from preprocess.tokenizer.char_word import CHARACTER, WORD
from preprocess.tokenizer.training import (
    BYTE_BPE,
    DEFAULT_MIN_FREQUENCY,
    SENTENCEPIECE_BPE,
    UNIGRAM,
    WORDPIECE,
    TrainingSettings,
    sample,
    train,
)

BLOCK_BYTES = 1 << 24
TITLES = {
    WORDPIECE: "WordPiece",
    BYTE_BPE: "byte-level BPE",
    UNIGRAM: "sentencepiece unigram",
    SENTENCEPIECE_BPE: "sentencepiece BPE",
    CHARACTER: "characters",
    WORD: "words",
}


@dataclass(frozen=True)
class TrainingTexts:
    """The texts of a corpus's documents, or a sample of them; can be iterated any number of times.

    Attributes:
        sample_bytes: how many bytes the sample has, about; None for all.
        progress: called with the number of bytes read since the last call.
    """

    corpus: Corpus
    sample_bytes: int | None = None
    progress: Callable[[int], None] = lambda _: None

    def __iter__(self) -> Iterator[str]:
        return sample(self._texts(), self.corpus.num_bytes, self.sample_bytes)

    def _texts(self) -> Iterator[str]:
        with closing(BlockReader(self.corpus, BLOCK_BYTES)) as reader:
            for index in range(self.corpus.num_blocks(BLOCK_BYTES)):
                for document in reader.documents(index, lambda raw: self.progress(len(raw))):
                    yield document.text
                    if document.second:
                        yield document.second


def train_tokenizer(
    corpus: CorpusSettings,
    settings: TrainingSettings,
    output: Path | str,
    num_workers: int = 1,
    say: Callable[[str], None] = print,
) -> Tokenizer:
    """Train a tokenizer on a corpus and save it in a folder.

    Args:
        output: a new or empty folder.
        num_workers: processes that look through the corpus; training itself uses one.

    Raises:
        ValueError: if settings are wrong, ``output`` holds something already, or for bad input.
    """
    folder = Path(output)
    problems = [*corpus.problems(), *settings.problems(), *_output_problems(folder)]
    if num_workers < 1:
        problems.append(f"workers is {num_workers}: at least 1 is needed")
    if problems:
        raise ValueError("\n".join(problems))
    with _spool(corpus) as spool:
        opened, reports = open_corpus(corpus, spool, num_workers)
        for line in reports:
            say(line)
        readings = 2 if settings.type in (WORDPIECE, CHARACTER) else 1
        with progress_bar("reading twice" if readings == 2 else "reading", readings * opened.num_bytes) as progress:
            tokenizer = train(TrainingTexts(opened, settings.sample_bytes, progress), settings)
    tokenizer.save(folder)
    case = "lower-cased" if settings.lowercases else "cased"
    say(f"{folder}: {TITLES[settings.type]}, {tokenizer.vocab_size:,} tokens, {case}")
    if tokenizer.vocab_size < settings.vocab_size:
        least = DEFAULT_MIN_FREQUENCY if settings.min_frequency is None else settings.min_frequency
        say(
            f"note: {settings.vocab_size:,} tokens were asked for, and the corpus gives {tokenizer.vocab_size:,} that "
            f"occur {least} times or more"
        )
    return tokenizer


@contextmanager
def _spool(corpus: CorpusSettings) -> Iterator[Path | None]:
    """Yield a temporary folder for standard input, in the system's one for such; None if nothing reads it."""
    if reads_standard_input(corpus.arguments):
        with tempfile.TemporaryDirectory(prefix="tokenizer-") as folder:
            yield Path(folder)
    else:
        yield None


def _output_problems(folder: Path) -> list[str]:
    """Everything that would keep the tokenizer from being saved, known before the corpus is read."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        what = "holds a tokenizer already" if (folder / "tokenizer.json").is_file() else "is not an empty folder"
        return [f"--output {folder} {what}; give a new folder, or delete it first"]
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        return [f"--output {folder}: {nearest} is a file; give a new folder elsewhere"]
    if not os.access(nearest, os.W_OK | os.X_OK):
        return [f"--output {folder}: {nearest} may not be written to; give a new folder elsewhere"]
    return []
