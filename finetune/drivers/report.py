"""Tables, as TSV and as Markdown, and the plot of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocess.files import write_atomically

PALETTE = ("#2563a8", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490")
LOG_RATIO = 9.0  # values that span more than this are drawn on a logarithmic axis
Row = Mapping[str, Any]


def shown(value: Any) -> str:
    """A value as the text of a cell: four digits of a share, the shortest text of another number, "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tsv_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A first line with the columns' names, then a line for each row; texts without tabs and line ends."""
    lines = [columns, *([shown(row.get(column)) for column in columns] for row in rows)]
    return "".join("\t".join(" ".join(cell.split()) for cell in line) + "\n" for line in lines)


def markdown_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A table as GitHub shows it: texts to the left, numbers to the right."""
    numeric = [any(isinstance(row.get(column), int | float) for row in rows) for column in columns]
    lines = [columns, ["---:" if number else "---" for number in numeric]]
    lines += [[" ".join(shown(row.get(column)).split()).replace("|", "\\|") for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_tables(stem: Path, columns: Sequence[str], rows: Sequence[Row], above: str = "") -> None:
    """Write ``stem``.tsv and ``stem``.md, the latter below some lines of text."""
    write_atomically(stem.with_suffix(".tsv"), tsv_table(columns, rows).encode())
    write_atomically(stem.with_suffix(".md"), (above + markdown_table(columns, rows)).encode())


def draw_sweep(path: Path, names: Sequence[str], figure: str, points: Sequence[tuple[Row, float]]) -> None:
    """Draw a figure over each setting that was searched.

    Args:
        path: of the picture, by its suffix PNG, SVG or PDF.
        names: the settings.
        figure: its name.
        points: the settings of each run, and its figure.

    Raises:
        ValueError: if matplotlib is missing.
    """
    from preprocess.drawing import require_matplotlib

    require_matplotlib(f"{path.name} is drawn with matplotlib: pip install matplotlib; the table has all figures")
    from matplotlib.figure import Figure

    wide = min(3, len(names))
    high = -(-len(names) // wide)
    drawing = Figure(figsize=(4.2 * wide, 3.2 * high), layout="tight")
    for number, name in enumerate(names):
        axes = drawing.add_subplot(high, wide, number + 1)
        values = [changes[name] for changes, _ in points]
        _scatter(axes, values, [value for _, value in points], PALETTE[number % len(PALETTE)])
        axes.set_xlabel(name)
        if number % wide == 0:
            axes.set_ylabel(figure)
        axes.grid(alpha=0.3)
    drawing.savefig(path, dpi=120)


def _scatter(axes: Any, values: Sequence[Any], figures: Sequence[float], colour: str) -> None:
    """Points of one setting: numbers where all are, else its values side by side."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if min(values) > 0 and max(values) / min(values) > LOG_RATIO:
            axes.set_xscale("log")
        axes.scatter(values, figures, color=colour, s=22)
        return
    texts = [shown(value) for value in values]
    kinds = list(dict.fromkeys(texts))
    axes.scatter([kinds.index(text) for text in texts], figures, color=colour, s=22)
    axes.set_xticks(range(len(kinds)), kinds)
