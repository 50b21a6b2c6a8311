"""Small shards of the sample text, made once by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import commands


@pytest.fixture(scope="session")
def corpus(repository: Path) -> list[Path]:
    """The sample text that ships."""
    return sorted((repository / "examples" / "corpus").glob("*.txt"))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, corpus: list[Path]) -> Path:
    """A WordPiece tokenizer folder of 2,000 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    options = ["--type", "wordpiece", "--vocab_size", "2000", "--output", folder]
    done = commands.preprocess("tokenizer", "--corpus", *corpus, *options)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, corpus: list[Path], tokenizer: Path) -> Path:
    """Several shards with held-out documents."""
    folder = tmp_path_factory.mktemp("shards") / "shards"
    options = ["--tokenizer", tokenizer, "--output", folder, "--heldout", "0.1", "--shard_bytes", "150000"]
    done = commands.preprocess("shards", "--corpus", *corpus, *options)
    assert done.returncode == 0, done.stdout
    return folder
