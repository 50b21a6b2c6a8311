"""What run folders hold, read for looking at: a run may be at work, stopped, or killed in the middle of a line."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.checkpoint.metric_lines import MetricLine, read_metric_lines
from engine.checkpoint.run_folder import CHECKPOINTS, CONFIG, FINISHED, METRICS, MODEL, RunFolder

HOLDS = f"{CONFIG} (settings), {METRICS}, {CHECKPOINTS}/, {MODEL} and, when it ended well, {FINISHED}"
HELD_OUT = "heldout_"


@dataclass(frozen=True)
class Point:
    """A figure at a step."""

    step: float
    value: float


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        name: unlike those of the other runs of a report.
        folder: as it was given.
        config: the resolved settings.
        lines: of the metrics, by step; finite figures alone.
        finished: whether the run ended well.
        checkpoints: steps of the finished checkpoints.
        num_unreadable: lines that could not be read, one that is being written aside.
        written: when the last line was written; None where there is none.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    lines: tuple[dict[str, float], ...]
    finished: bool
    checkpoints: tuple[int, ...]
    num_unreadable: int = 0
    written: datetime | None = None
    _points: dict[str, list[Point]] = field(default_factory=dict, repr=False)

    def keys(self) -> list[str]:
        """Names of all figures, in the order of their first line."""
        return list(dict.fromkeys(key for line in self.lines for key in line if key != "step"))

    def points(self, key: str) -> list[Point]:
        """A figure at the steps that have it, in order."""
        if key not in self._points:
            self._points[key] = [Point(line["step"], line[key]) for line in self.lines if key in line]
        return self._points[key]

    def last(self, key: str) -> float | None:
        """A figure's newest value."""
        points = self.points(key)
        return points[-1].value if points else None

    @property
    def step(self) -> int:
        """The newest step of a line."""
        return int(max((line["step"] for line in self.lines), default=0))

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, where its settings tell."""
        steps = self.config["train"].get("steps")
        return steps if isinstance(steps, int) else None

    def status(self) -> str:
        """Where the run is."""
        if self.finished:
            return f"finished at step {self.step:,}"
        if not self.lines or self.written is None:
            return "no figures yet"
        whole = f" of {self.steps:,}" if self.steps else ""
        return f"at step {self.step:,}{whole}; last line written {self.written:%Y-%m-%d %H:%M} UTC"

    def median_speed(self) -> float | None:
        """Median of the real tokens per second."""
        values = [point.value for point in self.points("tokens_per_second")]
        return statistics.median(values) if values else None

    def training_seconds(self) -> float | None:
        """Seconds spent in training, without evaluations, saves, starts and steps that were lost.

        Each line tells the tokens until then and the speed since the line before.
        """
        seconds, before = 0.0, 0.0
        for line in self.lines:
            if line.get("tokens_per_second", 0.0) > 0 and "tokens" in line:
                seconds += (line["tokens"] - before) / line["tokens_per_second"]
                before = line["tokens"]
        return seconds if before else None


def load_runs(paths: Sequence[str]) -> list[Run]:
    """Read run folders.

    Raises:
        ValueError: naming every path that is no run folder, and what one holds.
    """
    wrong = [problem for path in dict.fromkeys(paths) if (problem := _problem(Path(path)))]
    if wrong:
        raise ValueError("\n".join([*wrong, f"a run folder is what --train.output names; it holds {HOLDS}"]))
    folders = list({Path(path).resolve(): Path(path) for path in paths}.values())
    return [_load(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]


def run_names(folders: Sequence[Path]) -> list[str]:
    """Shortest ends of the folders' paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _problem(folder: Path) -> str | None:
    if not folder.exists():
        return f"{folder} does not exist"
    if not folder.is_dir():
        return f"{folder} is a file, no run folder"
    if not (folder / CONFIG).is_file():
        return f"{folder} is no run folder: it holds no {CONFIG}"
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:  # of UTF-8 or of JSON
        return f"{folder / CONFIG} is damaged: {error}"
    if not isinstance(config, dict) or not isinstance(config.get("train"), dict):
        return f"{folder} is no run folder: its {CONFIG} is not that of a run (a model folder has a {CONFIG} too)"
    return None


def _load(folder: Path, name: str) -> Run:
    run, metrics = RunFolder(str(folder)), folder / METRICS
    read, num_unreadable = read_metric_lines(metrics)
    lines = sorted(map(_finite, read), key=lambda line: line["step"])
    written = datetime.fromtimestamp(metrics.stat().st_mtime, UTC) if lines else None
    return Run(
        name=name,
        folder=folder,
        config=json.loads((folder / CONFIG).read_text(encoding="utf-8")),
        lines=tuple(lines),
        finished=run.is_finished(),
        checkpoints=tuple(run.steps()),
        num_unreadable=num_unreadable,
        written=written,
    )


def _finite(line: MetricLine) -> dict[str, float]:
    """The step and the finite figures of a line."""
    numbers = {
        key: value
        for key, value in line.figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return {"step": line.step, **numbers}
