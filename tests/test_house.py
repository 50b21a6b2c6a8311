"""Rules of the house: which package may import which, and what must not be needed at run time."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# package -> what it may import of us and of what others made
MAY_IMPORT = {
    "kernels": {"kernels"},
    "preprocess": {"preprocess"},
    "engine": {"engine", "kernels", "preprocess"},
    "finetune": {"finetune", "engine", "kernels", "preprocess"},
}
OURS = {*MAY_IMPORT, "benchmarks", "examples", "tests", "tools"}
FORBIDDEN = {"preprocess": {"torch", "deepspeed", "transformers"}, "kernels": {"deepspeed", "transformers"}}
FORBIDDEN_DEFAULT = {"transformers"}
IMPORT_ALL = """
import importlib, pkgutil, sys
for package in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def imported_packages(path: Path) -> Iterator[str]:
    """Top-level package of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").partition(".")[0]


def sources(repository: Path, package: str) -> list[Path]:
    """The package's Python files."""
    return sorted((repository / package).rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(repository: Path, package: str) -> None:
    forbidden = (OURS - MAY_IMPORT[package]) | FORBIDDEN.get(package, FORBIDDEN_DEFAULT)
    found = {
        f"{path.relative_to(repository)} imports {name}"
        for path in sources(repository, package)
        for name in imported_packages(path)
        if name in forbidden
    }
    assert not found


def test_no_module_hides_one_of_the_standard_library(repository: Path) -> None:
    hidden = {
        str(path.relative_to(repository))
        for package in MAY_IMPORT
        for path in sources(repository, package)
        if path.stem in sys.stdlib_module_names
    }
    assert not hidden


@pytest.mark.runtime
def test_every_module_imports_without_transformers(repository: Path) -> None:
    packages = [package for package in MAY_IMPORT if (repository / package / "__init__.py").is_file()]
    path = os.pathsep.join([str(repository / "tests" / "without"), str(repository)])
    environment = {**os.environ, "PYTHONPATH": path, "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-c", IMPORT_ALL, *packages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_stand_in_hides_transformers(repository: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repository / "tests" / "without")}
    command = [sys.executable, "-c", "import transformers"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert "ModuleNotFoundError: transformers is hidden" in done.stderr
