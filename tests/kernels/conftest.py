"""Backends that can be built here, and a way to say which one runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from kernels import build, dispatch


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What dispatch found in a test is not for the next."""
    yield
    dispatch._candidates.cache_clear()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, ran: list[str]) -> Iterator[Callable[..., None]]:
    """Force a backend for the rest of a test; skips where it cannot be built.

    All calls from there on must run on it, and there must be one; or on the backends that the test gives as ``runs``.
    """
    spans: list[tuple[set[str], int]] = []

    def force(name: str, runs: tuple[str, ...] | None = None) -> None:
        if name in ("cpu", "cuda", "emulator") and (reason := build.missing(name)):
            pytest.skip(f"the {name} backend cannot be built: {reason}")
        monkeypatch.setenv("KERNELS_BACKEND", name)
        spans.append(({name} if runs is None else set(runs), len(ran)))

    dispatch._say_once.cache_clear()
    yield force
    ends = [*(start for _, start in spans[1:]), len(ran)]
    for (expected, start), end in zip(spans, ends, strict=True):
        assert set(ran[start:end]) == expected, "not the backends that the test is for"


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
