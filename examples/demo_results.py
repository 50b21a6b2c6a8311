"""What came out of the demo: its numbers as tables, its loss curves as a picture, its first predictions."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOO_SMALL = """A minute on 600 kB of text is far too little for pretraining to pay off in a classifier: a tiny BERT has
hardly left the word frequencies behind by then. These accuracies show that every step of the way runs, no more."""


@dataclass(frozen=True)
class Metrics:
    """A run's metrics.jsonl; where a resumed run logged a step again, the later line counts.

    Args:
        steps: step -> training line.
        heldout: step -> held-out loss.
    """

    steps: dict[int, dict[str, Any]]
    heldout: dict[int, float]

    @property
    def tokens_per_second(self) -> float:
        """Median over the run."""
        return statistics.median(line["tokens_per_second"] for line in self.steps.values())

    def curve(self) -> tuple[list[int], list[float]]:
        """Steps and training losses, in order."""
        steps = sorted(self.steps)
        return steps, [self.steps[step]["loss"] for step in steps]


def read_metrics(path: Path) -> Metrics:
    """Read a metrics.jsonl; a missing file is an empty one, and a line that is still being written is left out."""
    steps: dict[int, dict[str, Any]] = {}
    heldout: dict[int, float] = {}
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        record = json.loads(line)
        if "heldout_loss" in record:
            heldout[record["step"]] = record["heldout_loss"]
        if "loss" in record:
            steps[record["step"]] = record
    return Metrics(steps, heldout)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a header; the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *others = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def summarize(output: Path, seconds: dict[str, float]) -> str:
    """Return the demo's numbers as text: both pretraining runs, both classifiers, the time of each stage."""
    pretraining = []
    for name in ("bert", "gpt2"):
        metrics = read_metrics(output / name / "metrics.jsonl")
        losses = metrics.curve()[1]
        heldout = f"{metrics.heldout[max(metrics.heldout)]:.3f}" if metrics.heldout else "none"
        cells = [f"{metrics.tokens_per_second:,.0f}", f"{losses[0]:.3f}", f"{losses[-1]:.3f}", heldout]
        pretraining.append([f"{name}-tiny", *cells])
    classifiers = []
    for label, name in (("with pretraining", "classifier"), ("from random weights", "classifier-random-init")):
        results = json.loads((output / name / "results.json").read_text(encoding="utf-8"))
        classifiers.append([label, *(f"{results[key]:.1%}" for key in ("dev_accuracy", "test_accuracy"))])
    times = [[title, f"{value:.0f} s"] for title, value in seconds.items()]
    times.append(["all", f"{sum(seconds.values()):.0f} s"])
    return "\n\n".join(
        [
            format_table(["pretraining", "tokens/s", "first loss", "last loss", "held-out loss"], pretraining),
            format_table(["review classifier", "dev accuracy", "test accuracy"], classifiers),
            TOO_SMALL,
            format_table(["stage", "time"], times),
        ]
    )


def plot_losses(output: Path) -> Path:
    """Draw the training and held-out losses of both models into loss.png and return its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, label, color in (("bert", "BERT, masked words", "tab:blue"), ("gpt2", "GPT-2, next word", "tab:orange")):
        metrics = read_metrics(output / name / "metrics.jsonl")
        axes.plot(*metrics.curve(), color=color, linewidth=1, alpha=0.6, label=f"{label}: training")
        steps = sorted(metrics.heldout)
        held_out = [metrics.heldout[step] for step in steps]
        axes.plot(steps, held_out, color=color, linewidth=2, marker="o", markersize=4, label=f"{label}: held-out")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per target)", title="Pretraining on examples/corpus")
    axes.grid(alpha=0.3)
    axes.legend()
    path = output / "loss.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a tab-separated file under a header line."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def show_predictions(reviews: Path, predictions: Path, count: int = 5) -> str:
    """Return the first predictions beside the true labels and the texts."""
    rows = list(zip(read_table(reviews), read_table(predictions), strict=True))[:count]
    lines = [f"{row['label']:>4}  {found['label']:>9}  {row['text_a'][:60]}" for row, found in rows]
    return "\n".join(["true  predicted  review", *lines])
