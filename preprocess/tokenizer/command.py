"""The ``tokenizer`` command: a corpus to a trained tokenizer folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.corpus.detection import BYTE_ORDER_MARK
from preprocess.corpus.inputs import Corpus, open_corpus
from preprocess.corpus.text_errors import check_no_nul, invalid_utf8
from preprocess.progress import progress_bar
from preprocess.tokenizer import TOKENIZER_FILES, Tokenizer, train_wordpiece


@dataclass(frozen=True)
class CorpusLines:
    """The lines of a corpus that are not blank; can be iterated any number of times."""

    corpus: Corpus
    progress: Callable[[int], None] = lambda _: None

    def __iter__(self) -> Iterator[str]:
        for file in self.corpus.files:
            position = 0
            with open(file.path, "rb") as stream:
                for line in stream:
                    check_no_nul(file.path, position, line)
                    try:
                        text = (line.removeprefix(BYTE_ORDER_MARK) if position == 0 else line).decode()
                    except UnicodeDecodeError as error:
                        mark = len(BYTE_ORDER_MARK) if position == 0 and line.startswith(BYTE_ORDER_MARK) else 0
                        raise invalid_utf8(file.path, position + mark + error.start) from None
                    position += len(line)
                    self.progress(len(line))
                    if text.strip():
                        yield text


def train_tokenizer(
    corpus: Sequence[str],
    output: str,
    vocab_size: int,
    lowercase: bool,
    min_frequency: int,
    say: Callable[[str], None] = print,
) -> Tokenizer:
    """Train a WordPiece tokenizer on a corpus and save it in a folder.

    Raises:
        ValueError: if ``output`` holds a tokenizer already or something else, or for bad input.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds a tokenizer already" if (folder / TOKENIZER_FILES[0]).is_file() else "is not an empty folder"
        raise ValueError(f"--output {folder} {what}; give a new folder, or delete it first")
    opened, reports = open_corpus(corpus)
    for line in reports:
        say(line)
    with progress_bar("reading twice", 2 * opened.num_bytes) as progress:
        tokenizer = train_wordpiece(CorpusLines(opened, progress), vocab_size, lowercase, min_frequency)
    tokenizer.save(folder)
    say(f"{folder}: WordPiece, {tokenizer.vocab_size:,} tokens, {'lower-cased' if lowercase else 'cased'}")
    if tokenizer.vocab_size < vocab_size:
        say(
            f"note: {vocab_size:,} tokens were asked for, and the corpus gives {tokenizer.vocab_size:,} that occur "
            f"{min_frequency} times or more"
        )
    return tokenizer
