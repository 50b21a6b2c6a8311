"""Write the tables of docs/experiments.md from what finetuning.py measured.

python -m benchmarks.experiments_page
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "experiments.md"
PERCENT = 100.0


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *(["---:"] * (len(header) - 1))], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def mean_and_deviation(entries: Sequence[Mapping[str, float]], figure: str) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds, of 100."""
    values = [PERCENT * entry[figure] for entry in entries]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def shown(entries: Sequence[Mapping[str, float]], figure: str) -> str:
    """Mean and deviation in a cell; the mean alone of one seed."""
    mean, deviation = mean_and_deviation(entries, figure)
    return f"{mean:.1f} ± {deviation:.1f}" if len(entries) > 1 else f"{mean:.1f}"


def scores_table(found: Mapping[str, Any]) -> str:
    """Both sides of each dataset, and how far apart they are in deviations."""
    rows = []
    for name, entry in found.items():
        figure = entry["figure"]
        (ours, our_sd), (theirs, their_sd) = (mean_and_deviation(entry[side], figure) for side in ("ours", "plain"))
        larger = max(our_sd, their_sd)
        apart = f"{ours - theirs:+.1f}" + (f" ({abs(ours - theirs) / larger:.1f} sd)" if larger else "")
        cells = (shown(entry["ours"], figure), shown(entry["plain"], figure), apart)
        rows.append([name, figure, str(entry["epochs"]), str(len(entry["ours"])), *cells])
    return table(["dataset", "figure", "epochs", "seeds", "this engine", "plain transformers", "difference"], rows)


def speed_table(found: Mapping[str, Any]) -> str:
    """Real tokens a second, the median of the ratios of each round, and what padding adds on the plain side."""
    rows = []
    for name, entry in found.items():
        speeds = [f"{statistics.median(entry['tokens_per_second'][side]):,.0f}" for side in ("ours", "plain")]
        rows.append([name, f"{entry['padding']:.2f}", *speeds, f"{entry['ratio']:.2f}"])
    return table(["dataset", "padded / real", "this engine", "plain transformers", "times"], rows)


def chinese_table(all_found: Sequence[Mapping[str, Any]]) -> str:
    """Fine-tuned from pretrained and from random weights; ``all_found`` has the shortest pretraining first."""
    first = all_found[0]["scores"]
    rows = []
    for name, entry in first.items():
        same = [found["scores"].get(name) for found in all_found]
        cells = [shown(one["pretrained"], entry["figure"]) if one else "-" for one in same]
        rows.append([name, entry["figure"], str(entry["epochs"]), shown(entry["random"], entry["figure"]), *cells])
    header = [f"{steps_of(found):,} steps" for found in all_found]
    made = table(["dataset", "figure", "epochs", "random weights", *header], rows)
    return "\n\n".join([made, *map(pretraining_line, all_found)])


def steps_of(found: Mapping[str, Any]) -> int:
    """Steps of a pretraining."""
    return int(found["pretraining"]["settings"]["train.steps"])


def pretraining_line(found: Mapping[str, Any]) -> str:
    """What a pretraining came to."""
    pretraining = found["pretraining"]
    settings, accuracy = pretraining["settings"], PERCENT * pretraining["heldout_accuracy"]
    return (
        f"{steps_of(found):,} steps of {settings['train.batch_size']} rows of {settings['data.seq_length']} tokens are "
        f"{pretraining['tokens']:,} tokens: held-out loss {pretraining['heldout_loss']:.2f}, {accuracy:.1f} % of "
        "masked tokens right."
    )


TABLES = {"scores": scores_table, "speed": speed_table}


def put(page: str, part: str, made: str, machine: Mapping[str, Any]) -> str:
    """The page with a part's table between its two marks."""
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    text = f"<!-- {part} -->\n\n{made}\n\n{machine['device']}, {threads}, torch {machine['torch']}.\n\n"
    page, count = re.subn(
        f"<!-- {part} -->.*<!-- end of {part} -->", lambda _: f"{text}<!-- end of {part} -->", page, flags=re.DOTALL
    )
    assert count == 1, f"{PAGE}: there must be one <!-- {part} --> ... <!-- end of {part} -->"
    return page


def read(file: Path) -> dict[str, Any]:
    """The results of a part."""
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return results


def main() -> None:
    """Write each table that was measured."""
    page = PAGE.read_text(encoding="utf-8")
    for part, make in TABLES.items():
        results = read(RESULTS / f"finetuning_{part}.json")
        page = put(page, part, make(results["results"]), results["machine"])
    chinese = sorted(map(read, RESULTS.glob("finetuning_chinese_*.json")), key=lambda one: steps_of(one["results"]))
    page = put(page, "chinese", chinese_table([one["results"] for one in chinese]), chinese[0]["machine"])
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
