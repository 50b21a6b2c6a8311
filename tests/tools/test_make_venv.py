"""What tools/make_venv.sh says on a machine that lacks something; the install itself is CI's first step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A folder with what the script reads, so that no real .venv is touched."""
    (tmp_path / "tools").mkdir()
    for name in ("tools/make_venv.sh", "requirements.txt", "pyproject.toml", "setup.py"):
        shutil.copy(repository / name, tmp_path / name)
    return tmp_path


def make_venv(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(checkout / "tools" / "make_venv.sh")]
    everything = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=everything, capture_output=True, text=True, check=False, timeout=60)


def test_an_old_python_is_named(checkout: Path) -> None:
    old = checkout / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.8.18"; exit 1\n')
    old.chmod(0o755)
    done = make_venv(checkout, PYTHON=str(old))
    assert done.returncode == 1
    assert f"Python 3.11 or later ({old} is Python 3.8.18)" in done.stderr
    assert not (checkout / ".venv").exists()


def test_all_that_is_missing_is_named_at_once(checkout: Path) -> None:
    blind = checkout / "blind"  # a Python without ensurepip and headers, as Debian's is without two packages
    blind.mkdir()
    (blind / "ensurepip.py").write_text("raise ImportError\n")
    (blind / "sitecustomize.py").write_text("import sysconfig\nsysconfig.get_path = lambda name: '/nowhere'\n")
    done = make_venv(checkout, PYTHONPATH=str(blind), CXX="no-such-compiler")
    assert done.returncode == 1
    assert f"the venv module of {sys.executable}: " in done.stderr
    assert f"the headers of {sys.executable} (Python.h): " in done.stderr
    assert "a C++ compiler (no-such-compiler does not compile): " in done.stderr
    assert not (checkout / ".venv").exists()
