"""The tables of docs/performance.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import performance_table as tables
from benchmarks.model_cases import ON_CPU, ON_GPU
from benchmarks.models import TECHNIQUES

H100 = {"device": "NVIDIA H100 80GB HBM3", "cuda": "13.0", "torch": "2.11.0"}
H200 = {**H100, "device": "NVIDIA H200"}
NOTED = {**H100, "note": "without deepspeed"}
CPU = {"device": "AMD EPYC", "threads": 2}


def of_case(name: str, text: str, **changed: Any) -> dict[str, Any]:
    case = {**ON_CPU, **ON_GPU}[name]
    facts = {"model": case.model, "length": case.length, "rows": case.rows, "attention_dropout": case.attention_dropout}
    return {"name": name, "text": text, **facts, **changed}


def figures(samples: float) -> dict[str, Any]:
    speeds = {"samples_per_second": samples, "tokens_per_second": 128 * samples}
    return {**speeds, "mfu": 0.5, "share_of_matmul": 0.61, "memory_bytes": 32 * 2**30}


def speed(name: str, text: str, samples: float, **changed: Any) -> dict[str, Any]:
    return {"what": "speed", **of_case(name, text, **changed), "sides": {"ours": figures(samples)}, "not_run": {}}


def climbed(text: str, **changed: Any) -> dict[str, Any]:
    names = TECHNIQUES[1:4]
    ratios = {f"{names[1]} / {names[0]}": 1.25, f"{names[2]} / {names[1]}": 2.0, f"{names[2]} / {names[0]}": 2.49}
    sides = {name: {"tokens_per_second": 1000.0 * number} for number, name in enumerate(names, 1)}
    not_run = {TECHNIQUES[4]: "time: no answer | none"}
    facts = of_case("bert-small", text, **changed)
    return {"what": "techniques", **facts, "sides": sides, "ratios": ratios, "not_run": not_run}


def take(folder: Path, machine: dict[str, Any], *results: dict[str, Any]) -> str:
    given = folder / "given.json"
    given.write_text(json.dumps({"machine": machine, "results": results}))
    return tables.take(given, folder).name


def line_of(table: str, case: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {case} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_page_is_what_the_saved_results_give() -> None:
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.page(text, tables.load(tables.RESULTS)) == text


def test_a_technique_a_line(tmp_path: Path) -> None:
    changed = climbed("half", attention_dropout=0.1, rows=8)
    assert take(tmp_path, CPU, climbed("half"), changed) == "models_amd_epyc_2_threads.json"
    table = tables.techniques(tables.load(tmp_path))
    same = "bert-small, 128, half"
    assert table.splitlines()[0] == (
        f"| technique, each with those above it | {same} (AMD EPYC, 2 threads) "
        f"| {same}, attention dropout 0.1, 8 rows (AMD EPYC, 2 threads) |"
    )
    found = [line_of(table, name)[0] for name in TECHNIQUES[:6]]
    assert found == ["", "1,000", "2,000 (1.25)", "3,000 (2.00)", "not run: time: no answer / none", ""]
    assert line_of(table, "all together, of the first") == ["2.5", "2.5"]
    assert "On a CPU:" not in table and table.endswith(f"On a GPU: not measured yet ({tables.BY_TECHNIQUE}).")
    take(tmp_path, H100, climbed("full"))
    table = tables.techniques(tables.load(tmp_path))
    assert "(NVIDIA H100 80GB HBM3) |" in table.splitlines()[0] and "not measured yet" not in table


def test_nothing_is_measured_yet() -> None:
    assert tables.models({}).count(f"| {tables.NOT_YET} |") == len(tables.AIMS)
    assert tables.models({}).startswith("No GPU: not measured yet")
    assert tables.techniques({}).count(tables.NOT_YET) == 2
    assert line_of(tables.models({}), "gpt2-1024, full")[0] == "580,000, then 694,000 tokens/s"
    assert tables.NOT_YET in tables.profiles({})


def test_a_file_of_gpu_bench_replaces_what_is_not_measured_yet(tmp_path: Path) -> None:
    profile = {"what": "profile", **of_case("bert-large-128", "full"), "total_ms": 120.4, "side": "ours",
               "largest": [{"name": "gemm<a|b>", "calls": 96, "ms": 60.2, "share": 0.5}]}  # fmt: skip
    bench = {"machine": H100, "measurements": [
        {**speed("bert-large-128", "full", 1.0), "machine": NOTED},
        {**speed("bert-large-128", "full", 2100.4), "machine": NOTED},
        {**profile, "machine": NOTED},
    ]}  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    assert tables.take(tmp_path / "bench.json", tmp_path).name == "models_nvidia_h100_80gb_hbm3.json"
    results = tables.load(tmp_path)
    table = tables.models(results)
    expected = ["2,050, then 2,470 samples/s", "ours", "2,100", "268,851", "50%", "61%", "32"]
    assert line_of(table, "bert-large-128, full") == expected
    assert table.startswith("NVIDIA H100 80GB HBM3, without deepspeed:\n\n| model, text")
    assert table.count(tables.NOT_YET) == len(tables.AIMS) - 1
    assert "| gemm<a/b> | 96 | 60.20 | 50.0% |" in tables.profiles(results)
    assert tables.profiles(results).startswith("bert-large-128, full: ours, 120 ms in all (NVIDIA H100")


def test_a_case_keeps_its_line_beside_other_runs_of_it(tmp_path: Path) -> None:
    """Another dropout, other rows and another device, each later than the case itself."""
    own = speed("bert-large-128", "full", 2000)
    take(tmp_path, H100, own, speed("bert-large-128-dropout", "full", 1700))
    others = [{"attention_dropout": 0.1}, {"rows": 8}]
    take(tmp_path, H100, *(speed("bert-large-128", "full", 5, **changed) for changed in others))
    take(tmp_path, H200, speed("bert-large-128", "full", 2400))
    of_h100, of_h200 = tables.models(tables.load(tmp_path)).split("NVIDIA H200:")
    assert line_of(of_h100, "bert-large-128, full")[1:4] == ["ours", "2,000", "256,000"]
    assert line_of(of_h100, "bert-large-128-dropout, full")[2] == "1,700"
    assert line_of(of_h200, "bert-large-128, full")[2] == "2,400"
    saved = [result for file in tables.load(tmp_path).values() for result in file["results"]]
    assert len(saved) == 5  # all are kept
    take(tmp_path, H100, {**own, "sides": {"ours": figures(2050)}})
    of_h100, _ = tables.models(tables.load(tmp_path)).split("NVIDIA H200:")
    assert line_of(of_h100, "bert-large-128, full")[2] == "2,050"


def test_what_was_not_run_has_its_reason(tmp_path: Path) -> None:
    sides = {"transformers": figures(1000), "ours": {**figures(2000), "mfu": None}}
    reasons = {"ours, torch's operators": "out of memory: tried", "transformers": "ended after its first turns"}
    late = {"what": "not run", "names": "gpt2-1024, bert-base-128", "reason": "the 250 s were over"}
    take(tmp_path, H100, {**speed("bert-large-512", "half", 1), "sides": sides, "not_run": reasons}, late)
    table = tables.models(tables.load(tmp_path))
    lines = table.splitlines()
    first = lines.index("| bert-large-512, half | 940 samples/s | ours | 2,000 | 256,000 | peak not known | 61% | 32 |")
    assert lines[first + 1] == "|  |  | ours, torch's operators: not run: out of memory: tried |  |  |  |  |  |"
    assert lines[first + 2].startswith("|  |  | transformers (ended after its first turns) | 1,000 | 128,000 | 50% |")
    assert "ours, compiled" not in table  # a side that this run did not have
    assert line_of(table, "bert-base-128, half")[1] == "not run: the 250 s were over"
    assert line_of(table, "gpt2-medium-1024, full")[1] == tables.NOT_YET


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
