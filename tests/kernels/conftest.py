"""Backends that can be built here, and a way to say which one runs."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from kernels import build, dispatch


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Force a backend for the rest of a test; skips where it cannot be built."""

    def force(name: str) -> None:
        if name in ("cpu", "cuda", "emulator") and (reason := build.missing(name)):
            pytest.skip(f"the {name} backend cannot be built: {reason}")
        monkeypatch.setenv("KERNELS_BACKEND", name)

    return force


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends that calls went to, as they ran."""
    seen: list[str] = []
    choose = dispatch.choose

    def noting(*args, **sizes):
        seen.append(choose(*args, **sizes))
        return seen[-1]

    for module in (
        name for name in sys.modules if name.startswith("kernels.") and hasattr(sys.modules[name], "choose")
    ):
        monkeypatch.setattr(f"{module}.choose", noting)
    return seen
