"""The runner of the GPU benchmarks, with commands that need no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu_bench
from benchmarks.gpu_bench import Benchmark

MACHINE = {"device": "a made-up device", "torch": "2.13.0", "cuda": "13.0"}


def test_measurements_and_output_are_kept() -> None:
    script = "print('warming up'); print('{\"tokens_per_second\": 12}'); print('{broken')"
    result = gpu_bench.run_benchmark(Benchmark("fine", ("-c", script)), limit=60)
    assert (result.status, result.measurements) == ("ok", [{"tokens_per_second": 12}])
    assert result.output == ["warming up", '{"tokens_per_second": 12}', "{broken"]


def test_a_benchmark_is_stopped_at_its_limit() -> None:
    script = "import time; print('{\"step\": 1}', flush=True); time.sleep(600)"
    result = gpu_bench.run_benchmark(Benchmark("slow", ("-c", script)), limit=2)
    assert (result.status, result.measurements) == ("stopped", [{"step": 1}])


def test_results_are_saved_and_a_failure_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmarks = (
        Benchmark("fails", ("benchmarks/gpu_bench.py", "--nonsense")),
        Benchmark("needs", ("benchmarks/gpu_bench.py",), needs=("no_such_library",)),
        Benchmark("later", ("benchmarks/none.py",)),
    )
    monkeypatch.setattr(gpu_bench, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(gpu_bench, "BUILD", Benchmark("build", ("-c", "import time; time.sleep(1.5); print('built')")))
    monkeypatch.setattr(gpu_bench, "describe_machine", lambda: MACHINE)
    assert gpu_bench.main(["--output", str(tmp_path)]) == 1
    saved = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*/*.json")}
    assert {name: result["status"] for name, result in saved.items()} == {
        "build": "ok",
        "fails": "failed",
        "needs": "not run",
        "later": "not run",
    }
    assert saved["fails"]["machine"] == MACHINE
    assert saved["build"]["output"] == ["built"] and saved["build"]["seconds"] >= 1.5
    printed = capsys.readouterr().out
    assert "cannot import no_such_library" in printed
    assert "benchmarks/none.py is not in this version" in printed


def test_no_clock_runs_while_the_kernels_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "print('{\"tokens_per_second\": 12}')"
    build = Benchmark("build", ("-c", "import time; time.sleep(3)"), limit=60)
    monkeypatch.setattr(gpu_bench, "BUILD", build)
    monkeypatch.setattr(gpu_bench, "BENCHMARKS", (Benchmark("models", ("-c", script)),))
    monkeypatch.setattr(gpu_bench, "why_not", lambda benchmark: "")
    monkeypatch.setattr(gpu_bench, "describe_machine", lambda: MACHINE)
    assert gpu_bench.main(["--output", str(tmp_path), "--limit", "12.5"]) == 0  # 10 s are the least of a benchmark
    printed = capsys.readouterr().out
    assert "gpu-bench: build: 3 s" in printed and "gpu-bench: models: ok" in printed
    assert f"performance_table.py {tmp_path}" in printed


def test_no_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="sees no CUDA device"):
        gpu_bench.main([])
