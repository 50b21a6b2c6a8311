"""Small corpora and tokenizers for the preprocessing tests."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from preprocess.building.build import build_shards
from preprocess.building.settings import ShardSettings
from preprocess.corpus.corpus import CorpusSettings
from preprocess.tokenizer import Tokenizer, load_tokenizer

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# a shell's background job ignores Ctrl-C, and the commands under test would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    *",.!?-'[]中文字人大",
    "the",
    "##ing",
    "token",
    "mask",
]


@pytest.fixture(scope="session")
def vocabulary_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small uncased vocabulary that knows every ASCII word and a few Chinese characters."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(vocabulary_file: Path) -> Tokenizer:
    """The tokenizer of ``vocabulary_file``."""
    return load_tokenizer(vocabulary_file)


def random_document(generator: random.Random, num_sentences: int) -> str:
    """Return lines of random words."""
    words = ["the", "token", "masking", "cat", "dog", "中文", "人", "running", "é", "x"]
    lines = (" ".join(generator.choices(words, k=generator.randint(1, 12))) for _ in range(num_sentences))
    return "\n".join(lines)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files: sentence per line with LF, the same with CRLF and a byte order mark, document per line."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(3)
    blocks = [random_document(generator, generator.randint(1, 9)) for _ in range(120)]
    (folder / "a.txt").write_bytes("\n\n".join(blocks[:60]).encode())
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbf" + "\n\n\n".join(blocks[60:]).replace("\n", "\r\n").encode())
    lines = [random_document(generator, 1) for _ in range(150)]
    (folder / "c.txt").write_bytes("\n".join(lines).encode() + b"\n")
    return folder


@pytest.fixture
def shard_folder(tmp_path: Path, corpus_folder: Path, vocabulary_file: Path) -> Path:
    """A fresh shard folder of ``corpus_folder`` with several shards and held-out documents."""
    output = tmp_path / "shards"
    settings = ShardSettings(
        corpus=CorpusSettings(arguments=[str(corpus_folder)]),
        tokenizer=str(vocabulary_file),
        output=str(output),
        heldout=0.1,
        shard_bytes=8000,
    )
    build_shards(settings, say=lambda line: None)
    return output
