"""What an installation carries of the kernels, and what others take the package for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kernels import build

REPOSITORY = Path(build.__file__).resolve().parent.parent
REFUSES = "#!/bin/sh\necho 'x.cpp:1: error: no'\nexit 1\n"
needs_cpu = pytest.mark.skipif(build.missing("cpu") is not None, reason=str(build.missing("cpu")))


def make_wheel(folder: Path, **environment: str) -> tuple[list[str], str]:
    """The files of a wheel of this checkout, whose other packages are left out; and what pip said."""
    checkout = folder / "checkout"
    shutil.copytree(REPOSITORY / "kernels", checkout / "kernels", ignore=shutil.ignore_patterns("built", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, checkout / name)
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", folder, checkout]
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    assert "py3-none-linux" in wheel.name
    return zipfile.ZipFile(wheel).namelist(), done.stdout + done.stderr


@needs_cpu
def test_a_wheel_carries_sources_and_libraries(tmp_path):
    libraries = [build.build(name) for name in build.FOR_RUNS if build.missing(name) is None]
    files, said = make_wheel(tmp_path, KERNELS_BUILD_FOLDER=str(libraries[0].parent.parent))
    built = {f"kernels/built/{library.parent.name}/{library.name}" for library in libraries}
    assert built == {name for name in files if name.endswith(".so")}, said
    sources = {f"kernels/csrc/{path.relative_to(build.SOURCES)}" for path in build.SOURCES.glob("*/*")}
    assert sources and sources <= set(files) and "kernels/measured.json" in files


@needs_cpu
def test_a_compiler_that_fails_fails_no_installation(tmp_path):
    for place in ("cxx", "cuda/bin/nvcc"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(REFUSES)
        (tmp_path / place).chmod(0o755)
    built = tmp_path / "built"
    files, said = make_wheel(
        tmp_path, CXX=str(tmp_path / "cxx"), CUDA_HOME=str(tmp_path / "cuda"), KERNELS_BUILD_FOLDER=str(built)
    )
    assert not any(name.endswith(".so") for name in files)
    for name in build.FOR_RUNS:
        log = built / f"{name}.failed.log"
        assert "NOT BUILT, torch's own operators run" in said
        assert f"the {name} library could not be built: x.cpp:1: error: no (all of it: {log})" in said
        assert "x.cpp:1: error: no" in log.read_text()


def test_transformers_does_not_take_it_for_its_kernels(tmp_path):
    """Its optional package of that name is told from ours by the version, of the distribution or of the module."""
    pytest.importorskip("transformers")
    info = tmp_path / "pretraining_engine-0.1.0.dist-info"
    info.mkdir()
    version = next(line for line in (REPOSITORY / "pyproject.toml").read_text().splitlines() if "version =" in line)
    number = version.split('"')[1]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pretraining-engine\nVersion: {number}\n")
    (info / "top_level.txt").write_text("engine\nkernels\n")
    script = (
        "import importlib.metadata, transformers.utils.import_utils as u\n"
        "assert u.is_kernels_available() is False\n"
        "print(u._is_package_available('kernels', return_version=True)[1])"
    )
    found = {}
    for name, path in (("checkout", [REPOSITORY]), ("installed", [tmp_path, REPOSITORY])):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
        found[name] = done.stdout.strip()
    assert found["installed"] == number and found["checkout"] in ("N/A", number)
