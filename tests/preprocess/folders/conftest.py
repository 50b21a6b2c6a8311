"""Shard folders of known documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from preprocess.tokenizer import Tokenizer
from tests.preprocess.folders.shard_documents import Doc, write_docs


@pytest.fixture
def make_folder(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Path]:
    """Write a shard folder by name; see ``write_docs`` for the other arguments."""

    def make(name: str, docs: Sequence[Doc], *arguments: object, **settings: object) -> Path:
        return write_docs(tmp_path / name, tokenizer, docs, *arguments, **settings)  # type: ignore[arg-type]

    return make
