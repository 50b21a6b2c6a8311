"""What make gpu-test and gpu-sanitize run, as far as that shows without a GPU; every driver goes through nvcc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import build
from tools import gpu_sanitize, gpu_test

REPOSITORY = Path(gpu_test.ROOT)
DRIVER = "#!/bin/sh\necho case 1234\n"
CLEAN = "#!/bin/sh\nfor last; do :; done; sh $last || exit 3; echo ========= no errors\n"


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.skipif(build.missing("cuda") is not None, reason=str(build.missing("cuda")))
@pytest.mark.parametrize("operation", gpu_sanitize.OPERATIONS)
def test_drivers_compile_for_a_gpu(operation, tmp_path):
    assert gpu_sanitize.compile_driver(operation, tmp_path).is_file()


def test_what_is_missing_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(build, "cuda_compiler", lambda: None)
    assert gpu_sanitize.main(["--compile"]) == 2
    assert "gpu-sanitize: not possible here: there is no nvcc" in capsys.readouterr().err
    monkeypatch.setattr(build, "missing", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_sanitize.main([]) == 2
    assert "there is no compute-sanitizer (part of the CUDA toolkit)" in capsys.readouterr().err
    program(tmp_path / "compute-sanitizer", CLEAN)
    assert gpu_sanitize.main([]) == 2
    assert "nvidia-smi lists no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tool", "driver", "statuses"),
    [
        (CLEAN, DRIVER, ["ok"] * 4),
        ("#!/bin/sh\necho ========= Invalid read; exit 7\n", DRIVER, ["ok", "ok", "found", "found"]),
        (CLEAN, "#!/bin/sh\nexit 3\n", ["failed"] * 4),
        (CLEAN, "#!/bin/sh\necho case $$\n", ["ok", *["differs"] * 3]),
        ("#!/bin/sh\nexec sleep 60\n", DRIVER, ["ok", "ok", "stopped", "stopped"]),
    ],
    ids=["clean", "found", "failed", "differs", "stopped"],
)
def test_what_is_found_decides_the_exit_code(tool, driver, statuses, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path / "compute-sanitizer", tool)
    monkeypatch.setattr(gpu_sanitize, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_sanitize, "LIMIT_SECONDS", 2)
    monkeypatch.setattr(gpu_sanitize, "missing", lambda only_compile: None)
    monkeypatch.setattr(gpu_sanitize, "compile_driver", lambda name, folder, _: program(folder / name, driver))
    assert gpu_sanitize.main(["--operations", "norm"]) == int(statuses != ["ok"] * 4)
    (results,) = (tmp_path / "runs" / "gpu-sanitize").iterdir()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["status"] for line in lines] == statuses
    assert [line["tool"] for line in lines] == ["plain", "plain", "memcheck", "racecheck"]


def test_tests_of_the_kernels_come_first():
    files = gpu_test.gpu_test_files()
    first = [path.parent.name == "kernels" for path in files]
    assert first[0] and first == sorted(first, reverse=True) and any(path.name == "test_norm.py" for path in files)


def test_outcomes_are_kept_as_they_come(tmp_path):
    tests = tmp_path / "test_three.py"
    tests.write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='not now')\ndef test_left(): pass\n"
        "def test_crash(): os._exit(3)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "tools.json_lines", "-p", "no:cacheprovider", str(tests)]
    env = {**os.environ, "JSON_LINES": str(tmp_path / "lines"), "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [(line["test"].partition("::")[2], line["outcome"]) for line in lines] == [
        ("test_good", "passed"), ("test_bad", "failed"), ("test_left", "skipped")
    ]  # fmt: skip
    assert "assert 1 == 2" in lines[1]["text"]
