"""The scores of a run's checkpoints: results.jsonl, the models kept for them, lines for the metrics, a picture."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.files import write_text
from engine.checkpoint.metric_lines import MetricLine, read_metric_lines
from engine.checkpoint.run_folder import MODEL, RunFolder

FOLDER, RESULTS, PICTURE, PREFIX = "downstream", "results.jsonl", "scores.svg", "downstream_"
PALETTE = ("#2563a8", "#d4570a", "#2b8a3e", "#9c36b5", "#c2255c", "#0b7285")


@dataclass(frozen=True)
class Score:
    """What a fine-tuning of a checkpoint came to.

    Attributes:
        step: of the checkpoint.
        task: name in the plan.
        settings: digest of the task's settings.
        figures: such as dev_accuracy.
    """

    step: int
    task: str
    settings: str
    figures: Mapping[str, float]

    def line(self) -> dict[str, float | int | None]:
        """The same as figures for metrics.jsonl."""
        return {f"{PREFIX}{self.task}_{name}": value for name, value in self.figures.items()}


class ScoreFolder:
    """``downstream/`` in a run folder."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.path = run.path / FOLDER

    def step_folder(self, step: int) -> Path:
        """Where the fine-tunings of a checkpoint stand."""
        return self.path / f"step-{step}"

    def scores(self) -> list[Score]:
        """All that is known; a torn last line of a run that was killed is none."""
        file, found = self.path / RESULTS, []
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            try:
                tree = json.loads(line)
                step, task, settings = tree.pop("step"), tree.pop("task"), tree.pop("settings")
                found.append(Score(step, task, settings, tree))
            except (json.JSONDecodeError, KeyError, AttributeError):
                continue
        return found

    def add(self, score: Score) -> None:
        """Keep a score; the file is written anew, and appears whole or not at all."""
        lines = [{"step": s.step, "task": s.task, "settings": s.settings, **s.figures} for s in [*self.scores(), score]]
        write_text(self.path / RESULTS, "".join(json.dumps(line) + "\n" for line in lines))

    def keep_model(self, step: int, *, anew: bool = False) -> Path | None:
        """Keep the model of a checkpoint beyond the checkpoint's life, without a copy where the disk can.

        Args:
            step: of the checkpoint.
            anew: replace the one that is kept, since the run has come to this step again.

        Returns:
            Its folder; None where neither that nor the checkpoint is there.
        """
        kept, source = self.step_folder(step) / MODEL, self.run.step_folder(step) / MODEL
        if not source.is_dir() or (kept.is_dir() and not anew):
            return kept if kept.is_dir() else None
        written = kept.with_name(f".{MODEL}.partial")
        for leftover in (written, kept):
            shutil.rmtree(leftover, ignore_errors=True)
        written.mkdir(parents=True)
        for file in sorted(source.iterdir()):
            try:
                os.link(file, written / file.name)
            except OSError:  # a file system without hard links
                shutil.copyfile(file, written / file.name)
        written.rename(kept)
        return kept

    def kept_steps(self) -> list[int]:
        """Steps whose model is kept or whose checkpoint is on disk, ascending."""
        names = [folder.parent.name.removeprefix("step-") for folder in self.path.glob(f"step-*/{MODEL}")]
        return sorted({*self.run.steps(), *(int(name) for name in names if name.isdecimal())})

    def shown(self) -> set[tuple[int, str]]:
        """Step and key of every figure of ours in the metrics."""
        return {(line.step, key) for line in self._metrics() for key in line.figures if key.startswith(PREFIX)}

    def _metrics(self) -> list[MetricLine]:
        return read_metric_lines(self.run.metrics)[0]

    def draw(self) -> Path | None:
        """Draw scores and loss over the steps; None where there is nothing to draw.

        Raises:
            ValueError: if matplotlib is missing.
        """
        from preprocess.drawing import draw_svg, require_matplotlib

        scores = self.scores()
        if not scores:
            return None
        require_matplotlib(f"{PICTURE} is drawn with matplotlib: pip install matplotlib; all scores are in {RESULTS}")
        svg = draw_svg("downstream", "loss and scores of fine-tunings", self._draw, size=(9.0, 5.2))
        colours = "<style>svg { color: #1c2024; background: #fff; --accent: #2563a8; --line: #e0e3e8 }</style>"
        svg = svg.replace(">", f' xmlns="http://www.w3.org/2000/svg">{colours}', 1)
        write_text(self.path / PICTURE, svg + "\n")
        return self.path / PICTURE

    def _draw(self, figure: Any) -> None:
        from preprocess.drawing import ACCENT

        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "frameon": False, "fontsize": 8}
        above, below = figure.subplots(2, sharex=True)
        for key, style in (("loss", ":"), ("heldout_loss", "-")):
            points = self._curve(key)
            if points:
                above.plot(*zip(*points, strict=True), color=ACCENT, linestyle=style, label=key, linewidth=1.6)
        above.set_ylabel("loss")
        if above.lines:
            above.legend(**beside)
        curves: dict[str, list[tuple[int, float]]] = {}
        for score in sorted(self.scores(), key=lambda score: score.step):
            for name, value in score.figures.items():
                if not name.endswith("loss"):
                    curves.setdefault(f"{score.task} {name}", []).append((score.step, value))
        for number, (name, points) in enumerate(curves.items()):
            look: dict[str, Any] = {
                "color": PALETTE[number % len(PALETTE)],
                "marker": "os^Dv"[number // len(PALETTE) % 5],
            }
            below.plot(*zip(*points, strict=True), **look, markersize=4, label=name, linewidth=1.4)
        below.set_xlabel("step")
        below.set_ylabel("score")
        below.legend(**beside)

    def _curve(self, key: str) -> list[tuple[int, float]]:
        return [(line.step, line.figures[key]) for line in self._metrics() if line.figures.get(key) is not None]


def read_figures(results: Path) -> dict[str, float]:
    """What a fine-tuning's results.json says of its dev and test files.

    Raises:
        ValueError: if it is not what finetune/run.py writes.
    """
    tree = json.loads(results.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise ValueError(f"{results} holds no object but {type(tree).__name__}")
    return {
        name: value
        for name, value in tree.items()
        if name.startswith(("dev_", "test_")) and isinstance(value, int | float) and math.isfinite(value)
    }
