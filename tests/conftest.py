"""Fixtures and rules shared by all tests.

With REQUIRE_ALL_TESTS=1 in the environment a skipped test fails, those marked gpu excepted: CI has all that tests need.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.launch import two_nodes

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
REQUIRE_ALL = os.environ.get("REQUIRE_ALL_TESTS", "0") not in ("", "0")


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


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[two_nodes.TwoNodes]:
    """Two hosts on this machine: `nodes.run(["--num_nodes", "2", script, ...], cwd=..., env=...)`."""
    pytest.importorskip("deepspeed", reason="the launcher tests need deepspeed")
    reason = two_nodes.missing()
    if reason:
        pytest.skip(reason)
    with two_nodes.two_nodes(tmp_path_factory.mktemp("two-nodes")) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where all tests are required."""
    report = yield
    expected = hasattr(report, "wasxfail") or item.get_closest_marker("gpu")
    if REQUIRE_ALL and report.skipped and not expected:
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole file into a failure where all tests are required."""
    report = yield
    if REQUIRE_ALL and report.skipped and "mark.gpu" not in collector.path.read_text(encoding="utf-8"):
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: {reason} (skipped, and REQUIRE_ALL_TESTS=1 allows no skip)"
