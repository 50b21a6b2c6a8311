"""A plugin of pytest (-p tools.json_lines): each test's outcome goes to the file JSON_LINES names, when it ends."""

from __future__ import annotations

import json
import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append a line for a test that ran, was skipped, or failed in its setup or teardown."""
    if report.when != "call" and report.outcome == "passed":
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
    if report.outcome != "passed":
        line["text"] = str(report.longrepr)
    with open(os.environ["JSON_LINES"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
