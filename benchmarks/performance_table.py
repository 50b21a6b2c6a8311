"""Write the tables of docs/performance.md from what models.py measured.

    python benchmarks/performance_table.py [RESULTS...]

Without arguments the tables are made anew from benchmarks/results/models_*.json. RESULTS are more files of models.py
(--output) or of gpu_bench.py (runs/gpu-bench/*/models.json): they are taken into that folder first, under the name of
their device; what they do not have stays as it was there. On a GPU the table of models has a case as model_cases.py has
it: what was measured with other rows or another dropout is kept in the folder and not shown.
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

from benchmarks.model_cases import ON_CPU, ON_GPU
from benchmarks.models import COMPILED, MAIN, PLAIN, TECHNIQUES, TORCH

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
NOT_YET = "not measured yet"
BY_TECHNIQUE = "`benchmarks/models.py --techniques`, then `benchmarks/performance_table.py`"
BY_MODEL = "`make gpu-bench`, then `benchmarks/performance_table.py`"
SIDES = (MAIN, COMPILED, TORCH, PLAIN)
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
    """What a result of a device is of; of two alike the later one counts."""
    return tuple(str(result.get(part, "")) for part in ("what", "name", "text", "attention_dropout", "rows"))


def differences(result: Mapping[str, Any]) -> str:
    """What a run changed in its case, in words behind a comma; empty where nothing."""
    case = {**ON_CPU, **ON_GPU}[result["name"]]
    dropout, rows = result["attention_dropout"], result["rows"]
    changed = [f"attention dropout {dropout}"] * (dropout != case.attention_dropout)
    changed += [f"{rows} rows"] * (rows != case.rows)
    return "".join(f", {change}" for change in changed)


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
    target = folder / f"models_{re.sub('[^a-z0-9]+', '_', where(found['machine']).lower()).strip('_')}.json"
    before = read(target)["results"] if target.is_file() else []
    merged = {key_of(result): result for result in [*before, *found["results"]]}
    content = {"machine": found["machine"], "results": list(merged.values())}
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return target


def where(machine: Mapping[str, Any]) -> str:
    """A device by name, a CPU with its threads."""
    return machine["device"] if machine.get("cuda") else f"{machine['device']}, {machine['threads']} threads"


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
    head, *rest = ([cell.replace("|", "/") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest])


def techniques(results: Results) -> str:
    """What each technique gave: real tokens a second, and times as many as with the one before."""
    heads, cells, lacking = [], [], []
    for on_gpu, device in ((False, "a CPU"), (True, "a GPU")):
        found = list(of_kind(results, "techniques", on_gpu))
        for machine, result in found:
            what = f"{result['model']}, {result['length']}, {result['text']}{differences(result)}"
            heads.append(f"{what} ({where(machine)})")
            cells.append(_ladder(result))
        if not found:
            lacking.append(f"On {device}: {NOT_YET} ({BY_TECHNIQUE}).")
    lines = [[name, *(column.get(name, "") for column in cells)] for name in TECHNIQUES]
    if cells:
        lines.append(["all together, of the first", *(column.get("all", "") for column in cells)])
    return "\n\n".join([markdown([["technique, each with those above it", *heads], *lines]), *lacking])


def _ladder(result: Mapping[str, Any]) -> dict[str, str]:
    names, sides, ratios = list(result["sides"]), result["sides"], result["ratios"]
    found = {name: f"not run: {reason}" for name, reason in result["not_run"].items()}
    found[names[0]] = f"{sides[names[0]]['tokens_per_second']:,.0f}"
    for before, name in pairwise(names):
        gain = ratios[f"{name} / {before}"]
        found[name] = f"{sides[name]['tokens_per_second']:,.0f} ({gain:.2f})"
    total = ratios.get(f"{names[-1]} / {names[0]}")
    return found if total is None else {**found, "all": f"{total:.1f}"}


def models(results: Results) -> str:
    """Speeds beside what we aim at, a table for each GPU."""
    files = [file for file in results.values() if file["machine"].get("cuda")]
    files = [file for file in files if any(result["what"] == "speed" for result in file["results"])]
    parts = [f"No GPU: {NOT_YET} ({BY_MODEL})."] if not files else []
    for file in files or [{"machine": {}, "results": []}]:
        title = ", ".join(filter(None, (file["machine"].get("device"), file["machine"].get("note"))))
        parts += [f"{title}:"] * bool(title)
        parts.append(_table_of_models(file["results"]))
    return "\n\n".join(parts)


def _table_of_models(results: Sequence[Mapping[str, Any]]) -> str:
    """A GPU's results of the cases as they are; a side a line."""
    head = ["model, text", "aims on one H100", "side", "samples/s", "real tokens/s", "MFU", "of a product", "GiB"]
    speeds = [result for result in results if result["what"] == "speed" and not differences(result)]
    found = {(result["name"], result["text"]): result for result in speeds}
    late = {name: result["reason"] for result in results if result["what"] == "not run"
            for name in result["names"].split(", ")}  # fmt: skip
    lines = []
    for name, text, unit, *aims in AIMS:
        first = [f"{name}, {text}", " ".join([", then ".join(f"{aim:,}" for aim in aims if aim), unit] * any(aims))]
        result = found.get((name, text))
        sides = _sides(result) if result else [[f"not run: {late[name]}" if name in late else NOT_YET, *[""] * 5]]
        lines += [[*(first if number == 0 else ("", "")), *side] for number, side in enumerate(sides)]
    return markdown([head, *lines])


def _sides(result: Mapping[str, Any]) -> list[list[str]]:
    """Cells of each side that was timed, or why it was not."""
    lines = []
    for side in SIDES:
        reason, figures = result["not_run"].get(side), result["sides"].get(side)
        if figures is None:
            lines += [[f"{side}: not run: {reason}", *[""] * 5]] * (reason is not None)
            continue
        mfu = "peak not known" if figures["mfu"] is None else f"{figures['mfu']:.0%}"
        speeds = (f"{figures['samples_per_second']:,.0f}", f"{figures['tokens_per_second']:,.0f}")
        memory = f"{figures['memory_bytes'] / 2**30:.0f}"
        name = f"{side} ({reason})" if reason else side
        lines.append([name, *speeds, mfu, f"{figures['share_of_matmul']:.0%}", memory])
    return lines


def profiles(results: Results) -> str:
    """The largest kernels of a step on a GPU."""
    parts = []
    for machine, result in of_kind(results, "profile", True):
        lines = [[e["name"][:80], str(e["calls"]), f"{e['ms']:.2f}", f"{e['share']:.1%}"]
                 for e in result["largest"]]  # fmt: skip
        title = f"{result['name']}, {result['text']}{differences(result)}: {result['side']}"
        title += f", {result['total_ms']:.0f} ms in all ({machine['device']}):"
        parts.append(f"{title}\n\n{markdown([['kernel', 'calls', 'ms', 'share'], *lines])}")
    return "\n\n".join(parts) or f"A profile of one step: {NOT_YET} ({BY_MODEL})."


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
