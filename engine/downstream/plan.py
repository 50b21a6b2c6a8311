"""The file of ``--train.evaluate_with``: which checkpoints are fine-tuned, on what. Never imports torch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from engine.config.cli import UsageError, nearest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
FILES = ("ds_config", "train_file", "dev_file", "test_file")
REQUIRED = FILES[:3]
A_DAY = 86400.0
OURS = ("model", "output", "config", "dry_run", "local_rank", "random_init")  # what a task may not say of itself


@dataclass(frozen=True, kw_only=True)
class DownstreamPlan:
    """Which checkpoints of a run are fine-tuned, and on what.

    Attributes:
        every: steps between them; 0 where ``at`` names them.
        at: single steps.
        last: whether the run's last step is one of them in any case.
        keep_models: whether the fine-tuned models stay on disk, and the pretrained ones that they began with.
        timeout: seconds after which a fine-tuning is ended and counts as failed.
        environment: variables of the fine-tuning processes, such as CUDA_VISIBLE_DEVICES.
        tasks: name -> settings of finetune/run.py.
    """

    every: int = 0
    at: tuple[int, ...] = ()
    last: bool = True
    keep_models: bool = False
    timeout: float = A_DAY
    environment: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def chooses(self, step: int, last_step: int) -> bool:
        """Whether the checkpoint of a step is fine-tuned."""
        regular = step > 0 and self.every > 0 and step % self.every == 0
        return regular or step in self.at or (self.last and step == last_step)

    def chosen(self, last_step: int) -> list[int]:
        """The chosen steps of a run, ascending."""
        regular = range(self.every, last_step + 1, self.every) if self.every else ()
        single = [step for step in self.at if step <= last_step]
        return sorted({*regular, *single, *([last_step] if self.last else [])})

    def problems(self, save_every: int, last_step: int) -> list[str]:
        """Chosen steps at which a run has no checkpoint, in the user's words."""
        chosen = [*self.at, *([self.every] if self.every else [])]
        return [
            f"evaluate_with: step {step} has no checkpoint: train.save_every is {save_every} and the last step is "
            f"{last_step}; choose multiples of it, or the last step"
            for step in chosen
            if step and step != last_step and (step > last_step or not save_every or step % save_every)
        ]

    def refuse_absent_files(self) -> None:
        """Raise UsageError where files of the tasks are not on this host: rank 0's, which alone uses them."""
        given = [
            (task, key, settings[key]) for task, settings in self.tasks.items() for key in FILES if key in settings
        ]
        absent = [(task, key, file) for task, key, file in given if not Path(file).is_file()]
        if absent:
            raise UsageError(
                "\n".join(f"evaluate_with: tasks.{task}: {key} {file}: no such file" for task, key, file in absent)
            )

    def digest(self, task: str) -> str:
        """Tells whether two scores of a task come from the same settings."""
        return hashlib.sha256(json.dumps(self.tasks[task], sort_keys=True).encode()).hexdigest()[:16]


def read_plan(path: str) -> DownstreamPlan:
    """Read a file and check all but whether the files that it names are there.

    Raises:
        UsageError: everything that is wrong with it.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"evaluate_with {path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"evaluate_with {path} is not a YAML file: {error}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"evaluate_with {path}: expected keys and values at the top, found {type(tree).__name__}")
    if problems := [*_problems(tree)]:
        raise UsageError("\n".join(f"evaluate_with {path}: {text}" for text in problems))
    given = {**tree, "at": tuple(tree.get("at", ()))}
    return DownstreamPlan(**{item.name: given[item.name] for item in fields(DownstreamPlan) if item.name in given})


def _problems(tree: Mapping[str, Any]) -> Iterator[str]:
    names = [item.name for item in fields(DownstreamPlan)]
    for key in tree:
        if key not in names:
            yield f"unknown key {key}{nearest(str(key), names) or '; the keys are ' + ', '.join(names)}"
    every, at = tree.get("every", 0), tree.get("at", [])
    if not _is_whole(every) or (every < 1 and "every" in tree):
        yield f"every is {every!r}; it must be a number of steps, at least 1"
    if not isinstance(at, list) or not all(_is_whole(step) and step >= 0 for step in at):
        yield f"at is {at!r}; it must be a list of steps, such as [1000, 5000]"
    if bool(every) == bool(at):
        yield "give either every, as every: 1000, or at, as at: [1000, 5000]"
    for key in ("last", "keep_models"):
        if not isinstance(tree.get(key, True), bool):
            yield f"{key} is {tree[key]!r}; it must be true or false"
    timeout = tree.get("timeout", A_DAY)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        yield f"timeout is {timeout!r}; it must be a number of seconds above 0"
    environment = tree.get("environment", {})
    if not isinstance(environment, dict) or not all(
        isinstance(part, str) for item in environment.items() for part in item
    ):
        yield 'environment must map names to texts, such as CUDA_VISIBLE_DEVICES: "7"'
    tasks = tree.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        yield "tasks must map names to settings of finetune/run.py"
        return
    for name, settings in tasks.items():
        yield from (f"tasks.{name}: {text}" for text in _task_problems(name, settings))


def _task_problems(name: Any, settings: Any) -> Iterator[str]:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        yield "its name must be of letters, digits, _ and -, at most 64"
    if not isinstance(settings, dict):
        yield "expected settings of finetune/run.py, one a line below it"
        return
    for key in OURS:
        if key in settings:
            yield f"{key} is given; the run sets it"
    train = settings.get("train")
    if isinstance(train, dict) and "output" in train:
        yield "train.output is given; the run sets it"
    for key in REQUIRED:
        if key not in settings:
            yield f"{key} is missing"
    for key in FILES:
        if not isinstance(settings.get(key, ""), str):
            yield f"{key} is {settings[key]!r}; it must be the path of a file"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
