"""Tiny model folders, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.finetune import tiny


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a masked-language-model head."""
    return tiny.write_pretrained(tmp_path_factory.mktemp("bert") / "model", tiny.BERT)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2."""
    return tiny.write_pretrained(tmp_path_factory.mktemp("gpt2") / "model", tiny.GPT2)
