"""A sweep: fine-tunings that differ in some settings, their table, their plot, and the best of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.checkpoint.run_folder import CHECKPOINTS, MODEL
from engine.config.cli import UsageError
from engine.downstream.process import write_settings
from finetune.drivers.checking import settings_problems
from finetune.drivers.config import SweepConfig
from finetune.drivers.processes import RUN, Done, FinetuneJobs, claim_folder, figures_of, slots_for
from finetune.drivers.report import draw_sweep, shown, write_tables
from finetune.drivers.search import Changes, Drawing, grid, parse_search, with_changes

SWEEP, RECORD, BEST, TABLE, PICTURE = "sweep.json", "trial.json", "best.yaml", "sweep", "sweep.png"
RUNNING, DONE, FAILED = "running", "done", "failed"
FAILURES_TO_STOP = 3  # before anything went well


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: from 0.
        changes: what it sets otherwise.
        state: running, done or failed.
        figures: what it reached.
        main_figure: of its task, on the dev file.
        seconds: of its last start.
        problem: why it failed.
    """

    number: int
    changes: Changes
    state: str = RUNNING
    figures: Mapping[str, float] | None = None
    main_figure: str = ""
    seconds: float = 0.0
    problem: str = ""


class Sweep:
    """The runs of a sweep, in its folder."""

    def __init__(self, config: SweepConfig) -> None:
        """Take up what an earlier start left.

        Raises:
            UsageError: all that is wrong with the settings, those of every combination of a grid included; or a folder
                of another sweep.
        """
        self.config, self.output = config, Path(config.output)
        if problems := config.problems():
            raise UsageError("\n".join(problems))
        self.space = parse_search(config.search)
        self.combinations = grid(self.space) if config.method == "grid" else []
        if problems := self._problems_of_runs():
            raise UsageError("\n".join(problems))
        self._claim_folder()
        self.trials: dict[int, Trial] = {}
        for file in sorted(self.output.glob(f"trial-*/{RECORD}")):
            trial = Trial(**json.loads(file.read_text(encoding="utf-8")))
            self.trials[trial.number] = trial

    def _problems_of_runs(self) -> list[str]:
        """What finetune/run.py would refuse: of the first combination, and of each further value beside it."""
        values = {name: c if isinstance(c, list) else [c.low, c.high] for name, c in self.space.items()}
        first = {name: choices[0] for name, choices in values.items()}
        if problems := settings_problems(with_changes(self.config.settings, first), "the sweep"):
            return problems
        return [
            f"{text} (with {_told({name: value})})"
            for name, choices in values.items()
            for value in choices[1:]
            for text in settings_problems(with_changes(self.config.settings, {**first, name: value}), "the sweep")
        ]

    def _claim_folder(self) -> None:
        """Write what all runs share, or refuse a folder where they share something else."""
        shared = {"settings": self.config.settings}
        digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
        file = self.output / SWEEP
        if file.is_file():
            there = json.loads(file.read_text(encoding="utf-8"))
            if sorted(there["search"]) != sorted(self.space):
                raise UsageError(
                    f"--output {self.output} is of a sweep that searches {', '.join(there['search'])}, and not "
                    f"{', '.join(self.space)}; only their values may change: give another folder"
                )
            if there["digest"] != digest:
                raise UsageError(
                    f"--output {self.output} is of a sweep with other settings ({file}), whose figures cannot be "
                    "compared with these; give another folder"
                )
        self.lock = claim_folder(self.output)
        write_settings(file, {"digest": digest, **asdict(self.config)})

    def folder(self, number: int) -> Path:
        """Of a run."""
        return self.output / f"trial-{number:04d}"

    def run(self) -> None:
        """Make the runs that are missing, several at once, and write the tables after each.

        Raises:
            ValueError: if the first runs all fail, or any failed in the end.
        """
        config = self.config
        slots = slots_for(config.jobs)
        with self.lock, FinetuneJobs(slots, config.timeout) as jobs:
            self._make_runs(
                jobs, Drawing(self.space, self._maximizes(), config.seed) if not self.combinations else None
            )
            self._write()
        self._tell_end()

    def _make_runs(self, jobs: FinetuneJobs, drawing: Drawing | None) -> None:
        if drawing is not None:
            for known in self.trials.values():
                if (figure := self.figure_of(known)) is not None:
                    drawing.learn(known.changes, figure)
        tried: set[int] = set()
        failures = 0
        while True:
            while jobs.has_room and (trial := self._next(tried, drawing)) is not None:
                tried.add(trial.number)
                self._keep(trial)
                settings = with_changes(self.config.settings, trial.changes)
                jobs.begin(str(trial.number), self.folder(trial.number), settings)
                say(f"run {trial.number}: {_told(trial.changes)}")
            if not jobs.running:
                return
            ended = self._ended(jobs.next_done())
            if drawing is not None:
                drawing.tell(ended.number, ended.changes, self.figure_of(ended))
            failures += ended.state == FAILED
            if failures >= FAILURES_TO_STOP and failures == len(tried) - len(jobs.running):
                raise ValueError(f"the first {failures} runs failed; the last of them: {ended.problem}")

    def _next(self, tried: set[int], drawing: Drawing | None) -> Trial | None:
        """The next run to make: first those that an earlier start left or that failed there, then new ones."""
        there = {_key(trial.changes): trial for trial in self.trials.values()}
        if drawing is None:
            for changes in self.combinations:
                made = there.get(_key(changes))
                if made is None:
                    return Trial(len(self.trials), changes)
                if made.state != DONE and made.number not in tried:
                    return replace(made, state=RUNNING)
            return None
        for trial in self.trials.values():
            if trial.state != DONE and trial.number not in tried:
                return replace(trial, state=RUNNING)
        number = len(self.trials)
        return Trial(number, drawing.draw(number)) if number < self.config.trials else None

    def _ended(self, done: Done) -> Trial:
        """Take in what a run reached."""
        trial = self.trials[int(done.name)]
        seconds = round(done.seconds, 1)
        if done.results is None:
            trial = replace(trial, state=FAILED, problem=done.problem, seconds=seconds)
            say(f"run {trial.number} failed: {done.problem}")
        else:
            main = f"dev_{done.results['main_figure']}"
            figures = figures_of(done.results)
            trial = replace(trial, state=DONE, figures=figures, main_figure=main, seconds=seconds, problem="")
        self._keep(trial)
        if trial.state == DONE:
            figure, value = self.figure_name(trial), self.figure_of(trial)
            say(f"run {trial.number}: {figure} {shown(value)} ({_told(trial.changes)}; {seconds:.0f} s)")
        self._write()
        return trial

    def _keep(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        folder = self.folder(trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(folder / RECORD, asdict(trial))

    def figure_name(self, trial: Trial) -> str:
        """What decides."""
        return self.config.figure or trial.main_figure

    def figure_of(self, trial: Trial) -> float | None:
        """The figure that decides; None where a run has none.

        Raises:
            ValueError: if a run that went well has no such figure.
        """
        if trial.state != DONE or trial.figures is None:
            return None
        name = self.figure_name(trial)
        if name not in trial.figures:
            raise ValueError(f"figure is {name!r}, but the runs have {', '.join(trial.figures)}")
        return trial.figures[name]

    def _maximizes(self) -> bool:
        return self.config.maximizes(self.config.figure or "")

    def ranked(self) -> list[Trial]:
        """The runs, the best first; those without a finite figure last."""

        def key(trial: Trial) -> tuple[bool, float, int]:
            figure = self.figure_of(trial)
            bad = figure is None or not math.isfinite(figure)
            return bad, 0.0 if bad or figure is None else -figure if self._maximizes() else figure, trial.number

        return sorted(self.trials.values(), key=key)

    def best(self) -> Trial | None:
        """The best run; None where none has a figure."""
        return next((trial for trial in self.ranked()[:1] if trial.state == DONE), None)

    def _write(self) -> None:
        """Write the tables and the best run's settings, and remove the checkpoints of the others."""
        ranked, best = self.ranked(), self.best()
        columns = ["run", "state", *self.space]
        figures = list(dict.fromkeys(name for trial in ranked for name in trial.figures or ()))
        if best is not None:
            decides = self.figure_name(best)
            columns += [decides, *(name for name in figures if name != decides)]
            write_settings(self.output / BEST, with_changes(self.config.settings, best.changes))
        rows = [
            {"run": t.number, "state": t.state, "seconds": t.seconds, **t.changes, **(t.figures or {})} for t in ranked
        ]
        write_tables(self.output / TABLE, [*columns, "seconds"], rows)
        for trial in ranked:
            kept = self.config.keep_models
            if trial.state == DONE and kept != "all" and (kept == "none" or trial != best):
                drop_models(self.folder(trial.number) / RUN)

    def _tell_end(self) -> None:
        points = [(trial.changes, figure) for trial in self.ranked() if (figure := self.figure_of(trial)) is not None]
        best = self.best()
        if best is not None:
            try:
                draw_sweep(self.output / PICTURE, list(self.space), self.figure_name(best), points)
            except ValueError as error:
                say(f"note: {error}")
            say(
                f"best: run {best.number}, {self.figure_name(best)} {shown(self.figure_of(best))} "
                f"({_told(best.changes)}); {self.output / TABLE}.md has all {len(self.trials)}, "
                f"{self.output / BEST} its settings"
            )
        if failed := [trial.number for trial in self.trials.values() if trial.state == FAILED]:
            raise ValueError(f"run(s) {', '.join(map(str, failed))} failed; the same command tries them again")


def drop_models(run: Path) -> None:
    """Remove the checkpoints of a finished run, of all its seeds and folds; its figures stay."""
    for folder in (run, *run.glob("seed-*"), *run.glob("fold-*")):
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        with contextlib.suppress(OSError):
            (folder / MODEL).unlink()


def _key(changes: Mapping[str, Any]) -> str:
    return json.dumps(changes, sort_keys=True)


def _told(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value if isinstance(value, float) else shown(value)}" for name, value in changes.items())


def say(text: str) -> None:
    """Tell the user."""
    print(text, file=sys.stderr, flush=True)
