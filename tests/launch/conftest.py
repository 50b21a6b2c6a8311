"""Fixtures of the launcher tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.launch import two_nodes


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[two_nodes.TwoNodes]:
    """Two hosts on this machine: `nodes.run(["--num_nodes", "2", script, ...], cwd=..., env=...)`."""
    pytest.importorskip("deepspeed", reason="the launcher tests need deepspeed")
    reason = two_nodes.missing()
    if reason:
        pytest.skip(reason)
    with two_nodes.two_nodes(tmp_path_factory.mktemp("two-nodes")) as made:
        yield made
