"""What a benchmark consists of, as its YAML file in finetune/suites says. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from engine.config.cli import UsageError, nearest
from finetune.drivers.public_files import PublicFile

SUITES = Path(__file__).resolve().parent.parent / "suites"
ROLES = ("train", "dev", "test")


@dataclass(frozen=True, kw_only=True)
class MoreFile:
    """A further file that the fine-tuned model predicts.

    Attributes:
        files: its layouts.
        title: its row in the table, where it has labels: accuracy is measured.
        submission: file of the submission that takes the predictions.
    """

    files: Sequence[PublicFile]
    title: str = ""
    submission: str = ""


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """A task of a benchmark.

    Attributes:
        name: of its folder.
        title: as the benchmark calls it.
        task: its kind.
        train: layouts of the training file, of which one must be there.
        dev: of the file to measure on; a part of the training file where there is none.
        test: of the file whose answers are submitted, or which is measured too where it has labels.
        more: further files, by name.
        metrics: the benchmark's; the task's score is their mean.
        submission: file of the submission.
        settings: of finetune/run.py.
    """

    name: str
    title: str
    task: str = "classification"
    train: Sequence[PublicFile]
    dev: Sequence[PublicFile] = ()
    test: Sequence[PublicFile] = ()
    more: Mapping[str, MoreFile] = field(default_factory=dict)
    metrics: Sequence[str] = ("accuracy",)
    submission: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SuiteSpec:
    """A benchmark.

    Attributes:
        title: its name.
        submission: format of the submission: glue (index and prediction in a TSV), clue (JSON Lines), or none.
        tasks: in the order of its table.
        settings: of finetune/run.py, for all tasks.
    """

    title: str
    submission: str = ""
    tasks: Sequence[SuiteTask]
    settings: Mapping[str, Any] = field(default_factory=dict)


def suite_names() -> list[str]:
    """The benchmarks that come with this package."""
    return sorted(file.stem for file in SUITES.glob("*.yaml"))


def read_suite(name: str) -> SuiteSpec:
    """Read a benchmark by its name or by its file.

    Raises:
        UsageError: if there is none of this name, or the file is none.
    """
    file = SUITES / f"{name}.yaml" if name in suite_names() else Path(name)
    if not file.is_file():
        known = suite_names()
        raise UsageError(f"--suite {name}: no such file, and the suites are {', '.join(known)}{nearest(name, known)}")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--suite {name} is not a YAML file: {error}") from None
    where = f"--suite {name}: "
    if not isinstance(tree, dict) or not isinstance(tree.get("tasks"), dict):
        raise UsageError(f"{where}it must hold title, and tasks by name")
    tasks = [_task(key, value, f"{where}{key}: ") for key, value in tree["tasks"].items()]
    return _made(SuiteSpec, {**tree, "tasks": tasks}, where)


def _task(name: str, tree: Any, where: str) -> SuiteTask:
    if not isinstance(tree, dict):
        raise UsageError(f"{where}must hold keys and values")
    given = {"name": name, "title": name, **tree}
    for role in ROLES:
        if role in given:
            given[role] = _files(given[role], f"{where}{role}: ")
    more = given.get("more", {})
    given["more"] = {
        key: _made(MoreFile, {**value, "files": _files(value.get("files"), f"{where}{key}: ")}, f"{where}{key}: ")
        for key, value in more.items()
    }
    return _made(SuiteTask, given, where)


def _files(given: Any, where: str) -> list[PublicFile]:
    layouts = given if isinstance(given, list) else [given]
    return [_made(PublicFile, {"path": item} if isinstance(item, str) else item, where) for item in layouts]


def _made(kind: Any, tree: Any, where: str) -> Any:
    """A dataclass of a tree's keys; UsageError where one is unknown or missing."""
    names = [item.name for item in fields(kind)]
    if not isinstance(tree, dict):
        raise UsageError(f"{where}must hold keys and values, found {tree!r}")
    for key in tree:
        if key not in names:
            raise UsageError(f"{where}unknown key {key}{nearest(str(key), names)}")
    try:
        return kind(**tree)
    except TypeError:
        raise UsageError(f"{where}a key is missing; it has {', '.join(tree)} of {', '.join(names)}") from None
