"""The tables of docs/performance.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import performance_table as tables
from benchmarks.models import TECHNIQUES

H100 = {"device": "NVIDIA H100 80GB HBM3", "cuda": "13.0", "torch": "2.11.0"}
NOTED = {**H100, "note": "without deepspeed"}
CPU = {"device": "AMD EPYC", "threads": 2}


def speed(name: str, text: str, samples: float) -> dict[str, Any]:
    side = {"samples_per_second": samples, "tokens_per_second": 128 * samples, "mfu": 0.5, "share_of_matmul": 0.61}
    sides = {"ours": {**side, "memory_bytes": 32 * 2**30}}
    return {"what": "speed", "name": name, "text": text, "attention_dropout": 0.0, "sides": sides}


def climbed(text: str) -> dict[str, Any]:
    names = TECHNIQUES[1:4]
    ratios = {f"{names[1]} / {names[0]}": 1.25, f"{names[2]} / {names[1]}": 2.0, f"{names[2]} / {names[0]}": 2.49}
    sides = {name: {"tokens_per_second": 1000.0 * number} for number, name in enumerate(names, 1)}
    facts = {"what": "techniques", "name": "bert-small", "model": "bert-small", "length": 128, "text": text}
    return {**facts, "attention_dropout": 0.0, "sides": sides, "ratios": ratios}


def test_the_page_is_what_the_saved_results_give() -> None:
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.page(text, tables.load(tables.RESULTS)) == text


def test_a_technique_a_line(tmp_path: Path) -> None:
    lines = tables.techniques({"models_cpu.json": {"machine": CPU, "results": [climbed("half")]}}).splitlines()
    assert lines[0] == (
        "| technique, each with those above it | bert-small, 128, half (CPU, 2 threads) | GPU |"
    )  # fmt: skip
    assert lines[2:6] == [
        f"| {TECHNIQUES[0]} |  |  |",
        f"| {TECHNIQUES[1]} | 1,000 | not measured yet |",
        f"| {TECHNIQUES[2]} | 2,000 (1.25) | not measured yet |",
        f"| {TECHNIQUES[3]} | 3,000 (2.00) | not measured yet |",
    ]
    assert lines[-1] == "| all together, of the first | 2.5 |  |"


def test_results_of_a_gpu_replace_what_is_not_measured_yet(tmp_path: Path) -> None:
    nothing = tables.models({})
    assert nothing.count(tables.NOT_YET) == len(tables.AIMS)
    profile = {"what": "profile", "name": "bert-large-128", "text": "full", "total_ms": 120.4, "side": "ours",
               "largest": [{"name": "gemm<a|b>", "calls": 96, "ms": 60.2, "share": 0.5}]}  # fmt: skip
    bench = {"machine": H100, "measurements": [
        {**speed("bert-large-128", "full", 1.0), "machine": NOTED},
        {**speed("bert-large-128", "full", 2100.4), "machine": NOTED},
        {**profile, "machine": NOTED},
    ]}  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    (tmp_path / "later.json").write_text(json.dumps({"machine": NOTED, "results": [climbed("full")]}))
    for name in ("bench.json", "later.json"):
        assert tables.take(tmp_path / name, tmp_path).name == "models_nvidia_h100_80gb_hbm3.json"
    results = tables.load(tmp_path)
    assert "| bert-large-128, full | samples/s | 2,050, 2,470 | 2,100 |  |  |  | 50%, 61% | 32 |" in tables.models(
        results
    )
    assert tables.models(results).endswith("Measured on: NVIDIA H100 80GB HBM3, without deepspeed.")
    assert tables.models(results).count(tables.NOT_YET) == len(tables.AIMS) - 1
    assert "| gemm<a/b> | 96 | 60.20 | 50.0% |" in tables.profiles(results)
    assert "(NVIDIA H100 80GB HBM3) |" in tables.techniques(results).splitlines()[0]


def test_the_page_is_written_between_its_marks(tmp_path: Path) -> None:
    marks = "".join(f"<!-- {name} -->\nold\n<!-- end of {name} -->\n" for name in ("techniques", "models", "profiles"))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{marks}after\n")
    tables.main(["--folder", str(tmp_path), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("before\n<!-- techniques -->\n\n| technique") and text.endswith("profiles -->\nafter\n")
    assert "old" not in text
    with pytest.raises(ValueError, match="the page lacks <!-- techniques -->"):
        tables.page("nothing", {})


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"machine": {}}')
    with pytest.raises(ValueError, match=r"has no results of benchmarks/models\.py"):
        tables.read(tmp_path / "other.json")
