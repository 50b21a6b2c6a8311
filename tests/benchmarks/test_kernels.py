"""The benchmark of the kernels on tiny sizes: every operation has a case, and each is right before it is timed."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import attention_cases
from benchmarks import kernels as benchmark
from benchmarks.kernel_cases import Setting, dropout_add_cases
from kernels import build, dispatch, overview

SMALL = ["--rows", "24", "--width", "32", "--rounds", "2"]
pytestmark = pytest.mark.skipif(build.missing("cpu") is not None, reason=str(build.missing("cpu")))


@pytest.fixture(autouse=True)
def automatic(monkeypatch):
    monkeypatch.delenv("KERNELS_BACKEND", raising=False)


def test_every_operation_has_cases():
    assert set(benchmark.CASES) == {operation.name for operation in overview.OPERATIONS}


@pytest.mark.parametrize("operation", benchmark.CASES)
def test_operations(operation, tmp_path, capsys):
    output = tmp_path / "results.json"
    assert benchmark.main([*SMALL, "--operations", operation, "--output", str(output)]) == 0
    printed = capsys.readouterr().out.splitlines()
    results = [json.loads(line) for line in printed if line.startswith("{")]
    assert json.loads(output.read_text())["results"] == results and len(results) >= 1
    for result in results:
        assert result["operation"] == operation and result["speed"]["torch"] > 0
        assert ("share_of_copy" in result) == (operation != "linear_cross_entropy") == ("memory" not in result)
    assert sum(line.startswith(f"| {operation} |") for line in printed) == len(results)


def test_measurements_are_written_for_dispatch(tmp_path, monkeypatch):
    table = tmp_path / "measured.json"
    table.write_text('{"cpu": {"norm": {"speed": 9.0}, "lamb": {"speed": 3.0}}}')
    monkeypatch.setattr(dispatch, "MEASURED", table)
    results = [
        {"operation": "norm", "speed": {"torch": speed, "apex": 2.0}, "memory": 0.25} for speed in (2.0, 8.0)
    ] + [{"operation": "gated", "speed": {}}, {"operation": "attention", "speed": {"torch": 3.0, "flash_attn": 2.0}}]
    benchmark.write_gains("cpu", benchmark.gains(results))
    benchmark.write_gains("NVIDIA Test", {"norm": {"speed": 1.5}})
    assert json.loads(table.read_text()) == {
        "NVIDIA Test": {"norm": {"speed": 1.5}},
        "cpu": {
            "attention": {"speed": 3.0, "flash_attn": 1.5},
            "lamb": {"speed": 3.0},
            "norm": {"speed": 4.0, "memory": 0.25, "apex": 2.0},
        },
    }


@pytest.mark.parametrize("causal", [False, True])
def test_all_ways_of_attention_do_the_same(causal):
    setting, batch = Setting("cpu", 50, 64, torch.float64), attention_cases.Batch(19, 3, causal)
    qkv, layout = setting.draw(50, 3, 64).requires_grad_(), batch.layout(setting)
    dout = setting.draw(50, 1, 64)
    assert sum(layout.lengths) == 50 and layout.max_length <= 19 and len(set(layout.lengths)) > 1
    mask = "causal" if causal else "full"
    ours = attention_cases.packed_attention(qkv, layout.cu_seqlens, 1, layout.max_length, mask=mask)
    expected = torch.autograd.grad(ours, qkv, dout)[0]
    ways = list(attention_cases.torch_ways(qkv, 0.0))
    assert len(ways) == 2
    for way in ways:
        out = way(qkv.unflatten(1, (3, 1)), layout, causal, 0.0)
        torch.testing.assert_close(out, ours)
        torch.testing.assert_close(torch.autograd.grad(out, qkv, dout)[0], expected)


def test_the_fastest_way_is_timed():
    def slow():
        time.sleep(0.05)
        return [torch.zeros(1)]

    def quick():
        return [torch.ones(1)]

    assert attention_cases.fastest([slow, quick]) is quick


def test_a_wrong_result_is_not_timed():
    case = next(iter(dropout_add_cases(Setting("cpu", 4, 8, torch.float32))))
    calls = iter(range(9))
    wrong = replace(case, sides={**case.sides, "kernels": lambda: [torch.full((2,), float(next(calls)))]})
    with pytest.raises(ValueError, match=r"dropout_add, .*: off the reference by"):
        benchmark.error_of(wrong, "cpu")
    assert benchmark.error_of(case, "cpu") < 1e-6


def test_the_share_of_a_copy_is_of_as_many_bytes():
    case = next(iter(dropout_add_cases(Setting("cpu", 4, 8, torch.float32))))
    figures = benchmark._figures(replace(case, moved=1 << 30), {"kernels": [2.0], "torch": [4.0], "copy": [1.0]})
    assert figures["speed"] == {"torch": 2.0} and figures["share_of_copy"] == {"kernels": 0.5, "torch": 0.25}
    assert math.isclose(figures["gigabytes_per_second"], (1 << 30) / 2e9)
    assert sum(tensor.numel() for tensor in benchmark.copy_of(1 << 24, "cpu")()) == 1 << 23


def test_the_worse_of_the_ratios_with_and_without_a_graph_counts():
    case = next(iter(dropout_add_cases(Setting("cpu", 4, 8, torch.float32))))
    times = {"kernels": [2.0], "torch": [4.0], "copy": [1.0], "kernels eager": [10.0], "torch eager": [8.0]}
    figures = benchmark._figures(case, times)
    assert figures["speed"] == {"torch": 2.0, "torch eager": 0.8}
    assert set(figures["share_of_copy"]) == {"kernels", "torch"}
    assert benchmark.gains([{"operation": "norm", **figures}]) == {"norm": {"speed": 0.8}}


def test_time_that_is_over(capsys):
    assert benchmark.main([*SMALL, "--operations", "norm", "--limit", "-1"]) == 0
    assert "stopped after -1 s; not run: norm 24 x 32 and later" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_no_gpu():
    with pytest.raises(SystemExit, match="sees no CUDA device"):
        benchmark.main(["--device", "cuda"])
