"""A benchmark: a fine-tuning for each task whose files are there, the table, the average, and what is submitted."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.config.cli import UsageError, nearest
from engine.downstream.process import write_settings
from finetune.drivers.checking import settings_problems
from finetune.drivers.config import SuiteConfig
from finetune.drivers.processes import RUN, Done, FinetuneJobs, claim_folder, deviations_of, figures_of, slots_for
from finetune.drivers.public_files import Converted, PublicFile, convert, find, source_digest
from finetune.drivers.report import write_tables
from finetune.drivers.submission import accuracy_of, best_run, predict, runs_of, write_submission
from finetune.drivers.suite_spec import ROLES, SuiteTask, read_suite
from finetune.drivers.sweeping import DONE, FAILED, drop_models, say
from preprocess.files import write_atomically

RECORD, TABLE, DATA, PREDICTIONS = "task.json", "suite", "data", "predictions"
COLUMNS = ("task", "metrics", "dev", "test", "train_examples", "seconds", "state")


@dataclass(frozen=True)
class TaskRecord:
    """What came of a task.

    Attributes:
        state: done, failed or skipped.
        digest: of its settings and files.
        figures: of dev and test; of several seeds their means.
        deviations: of several seeds.
        more: accuracy on the further files that have labels, by their titles; of several seeds the means.
        more_deviations: of several seeds.
        num_examples: of the training file.
        seconds: of its last start.
        problem: why it failed or was skipped.
    """

    state: str
    digest: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    deviations: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, float] = field(default_factory=dict)
    more_deviations: Mapping[str, float] = field(default_factory=dict)
    num_examples: int = 0
    seconds: float = 0.0
    problem: str = ""


class Suite:
    """The runs of a benchmark, in their folder."""

    def __init__(self, config: SuiteConfig) -> None:
        """Find the files, and take up what an earlier start left.

        Raises:
            UsageError: all that is wrong with the settings; or no task's files are there.
        """
        self.config, self.output, self.data = config, Path(config.output), Path(config.data)
        if problems := config.problems():
            raise UsageError("\n".join(problems))
        self.spec = read_suite(config.suite)
        self.tasks = {task.name: task for task in self.spec.tasks}
        problems = [
            f"{where}: the suite has no task {name!r}; it has {', '.join(self.tasks)}{nearest(name, self.tasks)}"
            for where, names in (("tasks", config.tasks), ("task_settings", config.task_settings))
            for name in names
            if name not in self.tasks
        ]
        if not self.data.is_dir():
            problems.append(f"--data {self.data}: no such folder")
        if problems:
            raise UsageError("\n".join(problems))
        self.tasks = {name: task for name, task in self.tasks.items() if not config.tasks or name in config.tasks}
        self._digests: dict[str, str] = {}
        self.records = {name: self._record_of(task) for name, task in self.tasks.items()}
        if all(record.state == "skipped" for record in self.records.values()):
            missing = "; ".join(record.problem for record in self.records.values())
            raise UsageError(f"--data {self.data} has the files of no task: {missing}")
        found = [name for name, record in self.records.items() if record.state != "skipped"]
        problems = [f"{name}: {text}" for name in found for text in settings_problems(self.settings(name), "the suite")]
        if problems:
            raise UsageError("\n".join(problems))
        self.lock = claim_folder(self.output)
        self.records = {
            name: self._record_of(task) for name, task in self.tasks.items()
        }  # others were at work till now

    def _record_of(self, task: SuiteTask) -> TaskRecord:
        """What is known of a task before this start; refuses other settings than those of its earlier figures."""
        if find(self.data, task.train) is None:
            looked = " or ".join(file.path for file in task.train)
            return TaskRecord("skipped", problem=f"{looked} is not there")
        file = self.output / task.name / RECORD
        if not file.is_file():
            return TaskRecord("waiting")
        record = TaskRecord(**json.loads(file.read_text(encoding="utf-8")))
        if record.state == DONE and record.digest != self._digest(task.name):
            raise UsageError(
                f"--output {self.output}: {task.name} was measured with other settings or files ({file.parent}); give "
                "another folder, or move this one away"
            )
        return record

    def folder(self, name: str) -> Path:
        """Of a task."""
        return self.output / name

    def settings(self, name: str) -> dict[str, Any]:
        """Those of a task's fine-tuning; its files are named as they will be written."""
        task = self.tasks[name]
        tree = merged(self.spec.settings, task.settings, self.config.settings, self.config.task_settings.get(name, {}))
        files = {}
        for role in ROLES:
            if (file := find(self.data, getattr(task, role))) is not None:
                path = self.folder(name) / DATA / f"{role}.jsonl" if file.columns else self.data / file.path
                files[f"{role}_file"] = str(path)
        return {**tree, **files, "task": task.task, "model": self.config.model, "ds_config": self.config.ds_config}

    def _digest(self, name: str) -> str:
        task = self.tasks[name]
        layouts = {role: getattr(task, role) for role in ROLES} | {role: more.files for role, more in task.more.items()}
        files = {role: self._source(file) for role, given in layouts.items() if (file := find(self.data, given))}
        text = json.dumps([self.settings(name), files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _source(self, file: PublicFile) -> str:
        """Digest of a public file, and of how it is read."""
        key = json.dumps(asdict(file), sort_keys=True)
        if key not in self._digests:
            self._digests[key] = source_digest(self.data, file)
        return self._digests[key]

    def run(self) -> None:
        """Make the runs that are missing, several at once, and write the table after each.

        Raises:
            ValueError: if any failed; the others are made all the same.
        """
        for name, record in self.records.items():
            if record.state == "skipped":
                say(f"{name} is skipped: {record.problem}")
        waiting = [name for name, record in self.records.items() if record.state not in (DONE, "skipped")]
        with self.lock:
            with FinetuneJobs(slots_for(self.config.jobs), self.config.timeout) as jobs:
                while waiting or jobs.running:
                    while waiting and jobs.has_room:
                        self._begin(jobs, waiting.pop(0))
                    if jobs.running:
                        self._ended(jobs.next_done())
            self.write_table()
            if self.spec.submission and self.config.submission:
                self._write_submission()
        say(f"{self.output / TABLE}.md:\n{(self.output / TABLE).with_suffix('.md').read_text(encoding='utf-8')}")
        if failed := [name for name, record in self.records.items() if record.state == FAILED]:
            raise ValueError(f"{', '.join(failed)} failed; the same command tries again")

    def _begin(self, jobs: FinetuneJobs, name: str) -> None:
        try:
            for role in ROLES:
                self.converted(name, role)
        except ValueError as error:
            self._keep(name, TaskRecord(FAILED, problem=str(error)))
            return
        say(f"{name}: fine-tuning ({self.folder(name)})")
        jobs.begin(name, self.folder(name), self.settings(name))

    def converted(self, name: str, role: str) -> Converted | None:
        """A file of a task as the task reads it; written unless it was made of the same file in the same way."""
        task = self.tasks[name]
        layouts = getattr(task, role) if role in ROLES else task.more[role].files
        file = find(self.data, layouts)
        if file is None:
            return None
        output = self.folder(name) / DATA / f"{role}.jsonl"
        made_of, source = output.with_suffix(".source"), self._source(file)
        if file.columns and output.is_file() and made_of.is_file() and made_of.read_text(encoding="utf-8") == source:
            return Converted(output)
        made = convert(self.data, file, output)
        if file.columns:
            write_atomically(made_of, source.encode())
        for note in made.notes:
            say(f"{name}: {note}")
        return made

    def _ended(self, done: Done) -> None:
        """Take in what a run reached, and predict its further files."""
        name, seconds = done.name, round(done.seconds, 1)
        if done.results is None:
            self._keep(name, TaskRecord(FAILED, problem=done.problem, seconds=seconds))
            return
        figures = figures_of(done.results)
        task = self.tasks[name]
        one = json.loads((best_run(self.folder(name) / RUN) / "results.json").read_text(encoding="utf-8"))
        record = TaskRecord(
            DONE,
            self._digest(name),
            figures,
            deviations=deviations_of(done.results),
            num_examples=int(one["num_examples"]["train"]),
            seconds=seconds,
        )
        try:
            if missing := [metric for metric in task.metrics if f"dev_{metric}" not in figures]:
                raise ValueError(f"its run has no dev_{missing[0]}, but {', '.join(figures)}")
            more = self._predict_more(name)
            record = replace(
                record,
                more={title: statistics.fmean(values) for title, values in more.items()},
                more_deviations={title: statistics.stdev(v) for title, v in more.items() if len(v) > 1},
            )
        except ValueError as error:
            record = replace(record, state=FAILED, problem=str(error))
        self._keep(name, record)
        if not self.config.keep_models and record.state == DONE:
            drop_models(self.folder(name) / RUN)

    def _predict_more(self, name: str) -> dict[str, list[float]]:
        """Predict the further files of a task; of those with labels, the accuracy of each seed, else by the best."""
        task, best = self.tasks[name], best_run(self.folder(name) / RUN)
        found = {}
        for role, more in task.more.items():
            if (more.submission and not self.config.submission) or (file := self.converted(name, role)) is None:
                continue
            folder, accuracies = self.folder(name) / PREDICTIONS, []
            for run in runs_of(self.folder(name) / RUN) if more.title else [best]:
                output = (folder if run == best else folder / run.name) / f"{role}.tsv"
                predict(run, file.path, output)
                if more.title:
                    accuracies.append(accuracy_of(output, file.path))
            if more.title:
                found[more.title] = accuracies
        return found

    def _keep(self, name: str, record: TaskRecord) -> None:
        self.records[name] = record
        self.folder(name).mkdir(parents=True, exist_ok=True)
        write_settings(self.folder(name) / RECORD, asdict(record))
        if record.state == FAILED:
            say(f"{name} failed: {record.problem}")
        self.write_table()

    def score(self, name: str) -> float | None:
        """A task's share of the average: the mean of its metrics on its dev files, times 100."""
        record, task = self.records[name], self.tasks[name]
        if record.state != DONE:
            return None
        own = sum(record.figures[f"dev_{metric}"] for metric in task.metrics) / len(task.metrics)
        return 100 * sum([own, *record.more.values()]) / (1 + len(record.more))

    def write_table(self) -> None:
        """Write suite.tsv and suite.md: a row for each task, and the average of those that were measured."""
        rows: list[dict[str, Any]] = []
        for name, task in self.tasks.items():
            record = self.records[name]
            why = f": {record.problem.splitlines()[0]}" if record.problem else ""
            rows.append(
                {
                    "task": task.title,
                    "metrics": " / ".join(task.metrics),
                    "dev": _cell(record, "dev", task),
                    "test": _cell(record, "test", task),
                    "train_examples": record.num_examples or None,
                    "seconds": record.seconds or None,
                    "state": record.state + why,
                }
            )
            rows += [
                {
                    "task": title,
                    "metrics": "accuracy",
                    "dev": _figure(value, record.more_deviations.get(title)),
                    "state": record.state,
                }
                for title, value in record.more.items()
            ]
        scores = [score for name in self.tasks if (score := self.score(name)) is not None]
        if scores:
            mean = f"{sum(scores) / len(scores):.2f}"
            rows.append({"task": "average", "dev": mean, "state": f"of {len(scores)} of {len(self.tasks)} tasks"})
        above = f"# {self.spec.title}: {self.config.model}\n\nTimes 100; a task's score is the mean of its metrics.\n\n"
        self.output.mkdir(parents=True, exist_ok=True)
        write_tables(self.output / TABLE, COLUMNS, rows, above)

    def _write_submission(self) -> None:
        """Write the predictions of the tests without answers as the benchmark takes them."""
        files: dict[str, tuple[Path, Path]] = {}
        for name, task in self.tasks.items():
            if self.records[name].state != DONE:
                continue
            own = best_run(self.folder(name) / RUN) / "test_predictions.tsv"
            test = self.converted(name, "test") if task.submission and own.is_file() else None
            if test is not None:
                files[task.submission] = own, test.path
            for role, more in task.more.items():
                predicted = self.folder(name) / PREDICTIONS / f"{role}.tsv"
                if more.submission and predicted.is_file() and (asked := self.converted(name, role)) is not None:
                    files[more.submission] = predicted, asked.path
        wanted = [
            file
            for task in self.spec.tasks
            for file in (task.submission, *(more.submission for more in task.more.values()))
            if file
        ]
        if files:
            write_submission(self.output / "submission", self.spec.submission, files)
        missing = [file for file in wanted if file not in files]
        say(f"submission: {len(files)} files" + (f"; not there: {', '.join(missing)}" if missing else ""))


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Trees of settings one over the other; the later win."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            there = result.get(key)
            both = isinstance(there, Mapping) and isinstance(value, Mapping)
            result[key] = merged(there, value) if both and isinstance(there, Mapping) else value
    return result


def _cell(record: TaskRecord, role: str, task: SuiteTask) -> str | None:
    """The metrics of a file, times 100, with the standard deviation where there were several seeds."""
    names = [f"{role}_{metric}" for metric in task.metrics]
    if not any(name in record.figures for name in names):
        return None
    return " / ".join(_figure(record.figures.get(name), record.deviations.get(name)) for name in names)


def _figure(value: float | None, deviation: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")
