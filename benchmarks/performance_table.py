"""Write the tables of docs/performance.md from what models.py measured.

    python benchmarks/performance_table.py [RESULTS...]

Without arguments the tables are made anew from benchmarks/results/models_*.json. RESULTS are more files of models.py
(--output) or of gpu_bench.py (runs/gpu-bench/*/models.json): they are taken into that folder first, under the name of
their device; what they do not have stays as it was there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import COMPILED, MAIN, PLAIN, TECHNIQUES, TORCH, ladder

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
NOT_YET = "not measured yet: `make gpu-bench` writes it"
# case, text, unit, what we aim at on one H100 first and then
AIMS = (
    ("bert-large-128", "full", "samples/s", 2050, 2470),
    ("bert-large-128", "half", "samples/s", None, None),
    ("bert-large-512", "full", "samples/s", 485, 581),
    ("bert-large-512", "half", "samples/s", 940, None),
    ("bert-large-128-dropout", "full", "samples/s", None, None),
    ("bert-base-128", "full", "samples/s", None, None),
    ("bert-base-128", "half", "samples/s", None, None),
    ("gpt2-1024", "full", "tokens/s", 580_000, 694_000),
    ("gpt2-medium-1024", "full", "tokens/s", None, None),
)
Results = dict[str, dict[str, Any]]  # by file name: machine, results


def key_of(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What a result is of; of two alike the later one counts."""
    return tuple(str(result.get(part, "")) for part in ("what", "name", "text", "attention_dropout"))


def read(path: Path) -> dict[str, Any]:
    """Machine and results of a file of models.py or gpu_bench.py.

    Raises:
        ValueError: if it is neither's.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    results = content.get("results") or content.get("measurements") if isinstance(content, dict) else None
    if not results:
        raise ValueError(f"{path} has no results of benchmarks/models.py")
    machine = {key: value for key, value in {**results[-1].get("machine", {}), **content["machine"]}.items() if value}
    last = {key_of(result): {k: v for k, v in result.items() if k != "machine"} for result in results}
    return {"machine": machine, "results": list(last.values())}


def take(path: Path, folder: Path) -> Path:
    """Take a file's results into the folder; returns where they are now."""
    found = read(path)
    target = folder / f"models_{re.sub('[^a-z0-9]+', '_', found['machine']['device'].lower()).strip('_')}.json"
    before = read(target)["results"] if target.is_file() else []
    merged = {key_of(result): result for result in [*before, *found["results"]]}
    content = {"machine": found["machine"], "results": list(merged.values())}
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return target


def load(folder: Path) -> Results:
    """All results by file name."""
    return {path.name: read(path) for path in sorted(folder.glob("models_*.json"))}


def of_kind(results: Results, what: str, on_gpu: bool) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Machines and results of a kind."""
    for file in results.values():
        for result in file["results"]:
            if result["what"] == what and bool(file["machine"].get("cuda")) == on_gpu:
                yield file["machine"], result


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; the first line is its head."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest])


def techniques(results: Results) -> str:
    """What each technique gave: real tokens a second, and times as many as with the one before."""
    columns = [*of_kind(results, "techniques", False), *of_kind(results, "techniques", True)]
    heads, cells = [], []
    for machine, result in columns:
        where = machine["device"] if machine.get("cuda") else f"CPU, {machine['threads']} threads"
        dropout = f", attention dropout {result['attention_dropout']}" if result["attention_dropout"] else ""
        heads.append(f"{result['model']}, {result['length']}, {result['text']}{dropout} ({where})")
        cells.append(_ladder(result))
    if not any(machine.get("cuda") for machine, _ in columns):
        heads.append("GPU")
        cells.append({side.name: "not measured yet" for side in ladder("cuda")})
    lines = [[name, *(column.get(name, "") for column in cells)] for name in TECHNIQUES]
    lines.append(["all together, of the first", *(column.get("all", "") for column in cells)])
    return markdown([["technique, each with those above it", *heads], *lines])


def _ladder(result: Mapping[str, Any]) -> dict[str, str]:
    names, sides, ratios = list(result["sides"]), result["sides"], result["ratios"]
    found = {names[0]: f"{sides[names[0]]['tokens_per_second']:,.0f}"}
    for before, name in pairwise(names):
        gain = ratios[f"{name} / {before}"]
        found[name] = f"{sides[name]['tokens_per_second']:,.0f} ({gain:.2f})"
    total = ratios.get(f"{names[-1]} / {names[0]}")
    return found if total is None else {**found, "all": f"{total:.1f}"}


def models(results: Results) -> str:
    """Speeds on GPUs beside what we aim at."""
    sides = (MAIN, COMPILED, TORCH, PLAIN)
    head = ["model, text", "unit", "aims on one H100", *sides, "MFU, of a product", "GiB"]
    found = {(result["name"], result["text"]): (machine, result) for machine, result in of_kind(results, "speed", True)}
    lines = []
    for name, text, unit, first, then in AIMS:
        aims = ", ".join(f"{aim:,}" for aim in (first, then) if aim)
        if (name, text) not in found:
            lines.append([f"{name}, {text}", unit, aims, NOT_YET, *[""] * 5])
            continue
        _, result = found[name, text]
        figure = "samples_per_second" if unit == "samples/s" else "tokens_per_second"
        cells = [f"{result['sides'][side][figure]:,.0f}" if side in result["sides"] else "" for side in sides]
        best = max((result["sides"][side] for side in (MAIN, COMPILED) if side in result["sides"]),
                   key=lambda each: each["mfu"], default=None)  # fmt: skip
        shares = "" if best is None else f"{best['mfu']:.0%}, {best['share_of_matmul']:.0%}"
        memory = "" if best is None else f"{best['memory_bytes'] / 2**30:.0f}"
        lines.append([f"{name}, {text}", unit, aims, *cells, shares, memory])
    machines = sorted({", ".join(filter(None, (m["device"], m.get("note")))) for m, _ in found.values()})
    return markdown([head, *lines]) + (f"\n\nMeasured on: {'; '.join(machines)}." if machines else "")


def profiles(results: Results) -> str:
    """The largest kernels of a step on a GPU."""
    parts = []
    for machine, result in of_kind(results, "profile", True):
        lines = [[e["name"][:80].replace("|", "/"), str(e["calls"]), f"{e['ms']:.2f}", f"{e['share']:.1%}"]
                 for e in result["largest"]]  # fmt: skip
        title = f"{result['name']}, {result['text']}, {result['total_ms']:.0f} ms in all ({machine['device']}):"
        parts.append(f"{title}\n\n{markdown([['kernel', 'calls', 'ms', 'share'], *lines])}")
    return "\n\n".join(parts) or f"A profile of one step: {NOT_YET}."


def page(text: str, results: Results) -> str:
    """The page with its tables between their marks made anew.

    Raises:
        ValueError: if a mark is not there.
    """
    for name, table in (("techniques", techniques), ("models", models), ("profiles", profiles)):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"the page lacks {begin} or {end}")
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n\n{table(results)}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Take results in, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    for path in options.results:
        print(f"taken: {take(path, options.folder)}")
    options.page.write_text(page(options.page.read_text(encoding="utf-8"), load(options.folder)), encoding="utf-8")
    print(f"written: {options.page}")


if __name__ == "__main__":
    main()
