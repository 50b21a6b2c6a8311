"""The rule of tests/conftest.py that no test may be skipped where all are required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPING = """
import pytest

def test_skips():
    pytest.skip("no sshd")

@pytest.mark.gpu
def test_needs_a_gpu():
    pytest.skip("no CUDA device")

@pytest.mark.xfail
def test_expected():
    raise AssertionError
"""
SKIPPING_FILE = 'import pytest\n\npytest.importorskip("no_such_library")\n'


@pytest.mark.parametrize(
    ("required", "lines"),
    [
        (
            "1",
            ["Skipped: no sshd (skipped, and REQUIRE_ALL_TESTS=1 allows no skip)", "1 failed, 1 skipped"],
        ),
        ("0", ["SKIPPED [1]", "2 skipped, 1 xfailed"]),
    ],
)
def test_skips_fail_only_where_all_are_required(
    repository: Path, tmp_path: Path, required: str, lines: list[str]
) -> None:
    (tmp_path / "test_file.py").write_text(SKIPPING)
    output = run_pytest(repository, tmp_path, required)
    assert all(line in output for line in lines), output


def test_a_skipped_file_fails_where_all_are_required(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "test_file.py").write_text(SKIPPING_FILE)
    assert "could not import 'no_such_library'" in (output := run_pytest(repository, tmp_path, "1"))
    assert "1 error" in output
    (tmp_path / "test_file.py").write_text(f"{SKIPPING_FILE}pytestmark = pytest.mark.gpu\n")
    assert "1 error" not in run_pytest(repository, tmp_path, "1")


def run_pytest(repository: Path, folder: Path, required: str) -> str:
    """Run pytest under the project's conftest over the files of a folder and return what it prints."""
    shutil.copy(repository / "tests" / "conftest.py", folder)
    options = ["-ra", "-p", "no:cacheprovider", "--override-ini=addopts=", f"--rootdir={folder}", "-W", "ignore"]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    environment = {**os.environ, "REQUIRE_ALL_TESTS": required}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60).stdout
