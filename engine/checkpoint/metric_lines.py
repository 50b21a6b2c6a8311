"""The lines of a run's metrics.jsonl, also while another thread or process appends to it, or after a kill."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MetricLine:
    """A line of metrics.jsonl.

    Attributes:
        text: as it stands there, with its end.
        step: that it tells of.
        figures: the others by name: numbers, or None where they are not known.
    """

    text: str
    step: int
    figures: dict[str, Any]


def read_metric_lines(file: Path) -> tuple[list[MetricLine], int]:
    """Read what can be read of a metrics.jsonl.

    Returns:
        The lines in their order, none where there is no file, and how many could not be read; a last one without its
        end, which is being written or was torn, counts as neither.
    """
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    whole, end, _ = text.rpartition("\n")
    found = [_read(line) for line in (whole + end).splitlines(keepends=True)]
    lines = [line for line in found if line is not None]
    return lines, len(found) - len(lines)


def end_last_line(file: Path) -> None:
    """End a last line that a kill cut off, so that the next one stands by itself."""
    if file.is_file() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        with file.open("ab") as opened:
            opened.write(b"\n")


def _read(text: str) -> MetricLine | None:
    try:
        figures = json.loads(text)
    except ValueError:
        return None
    step = figures.pop("step", None) if isinstance(figures, dict) else None
    if isinstance(step, bool) or not isinstance(step, int | float) or not math.isfinite(step):
        return None
    return MetricLine(text, int(step), figures)
