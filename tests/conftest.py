"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development corpora beside the checkout; tests that need them are skipped elsewhere."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the development data folder ../shared/data beside the checkout")
    return SHARED_DATA
