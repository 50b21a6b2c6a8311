"""Settings of sweeps and suites. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from finetune.config.tasks import choice_problem
from finetune.drivers.search import METHODS, search_problems

KEPT_MODELS = ("best", "all", "none")
DIRECTIONS = ("maximize", "minimize")
A_DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class JobsConfig:
    """How several fine-tunings run.

    Args:
        output: folder of all of them; the same command goes on where an earlier one stopped.
        jobs: fine-tunings at once, a GPU each where there are GPUs; 0: one for each GPU, or one where there is none.
        timeout: seconds after which a fine-tuning is ended and counts as failed.
    """

    output: str
    jobs: int = 0
    timeout: float = A_DAY

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        found = []
        if self.jobs < 0:
            found.append(f"jobs is {self.jobs}; it must be at least 1, or 0 for one for each GPU")
        if self.timeout <= 0:
            found.append(f"timeout is {self.timeout}; it must be a number of seconds above 0")
        return found


@dataclass(frozen=True, kw_only=True)
class SweepConfig(JobsConfig):
    """Fine-tune with settings that differ from run to run, and say which are best.

    Args:
        output: folder of the sweep; the same command goes on where an earlier one stopped.
        settings: of finetune/run.py, as a tree; the same in every run.
        search: setting -> its values, such as [1e-5, 3e-5], or its range, such as {low: 1e-5, high: 1e-4, log: true}.
        method: grid takes every combination of values; optuna draws from values and ranges, guided by what came before.
        trials: runs of optuna; 0: of grid, all combinations.
        figure: what decides, such as dev_accuracy; the task's main figure on the dev file where not given.
        direction: maximize or minimize; by the figure where not given: losses are minimized.
        jobs: runs at once, a GPU each where there are GPUs; 0: one for each GPU, or one where there is none.
        timeout: seconds after which a run is ended and counts as failed.
        keep_models: whose checkpoints stay on disk: best, all or none.
        seed: of what optuna draws.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    method: str = METHODS[0]
    trials: int = 0
    figure: str | None = None
    direction: str | None = None
    keep_models: str = KEPT_MODELS[0]
    seed: int = 1

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        found = super().problems()
        found += choice_problem("method", self.method, METHODS)
        found += choice_problem("direction", self.direction, DIRECTIONS)
        found += choice_problem("keep_models", self.keep_models, KEPT_MODELS)
        if self.trials < 0 or (self.method == "optuna" and not self.trials):
            found.append(f"trials is {self.trials}; optuna needs to know how many runs to make, such as --trials 20")
        return found + search_problems(self.search, self.method)

    def maximizes(self, figure: str) -> bool:
        """Whether more of a figure is better."""
        return self.direction == "maximize" if self.direction else not figure.endswith("loss")


@dataclass(frozen=True, kw_only=True)
class SuiteConfig(JobsConfig):
    """Fine-tune a model on all tasks of a benchmark whose files are there; make its table, average and submission.

    Args:
        suite: glue, clue, or a YAML file like those in finetune/suites.
        data: folder of the benchmark's public files, as they unpack.
        model: model folder or run folder to begin with.
        ds_config: DeepSpeed JSON file.
        output: folder of the suite; the same command goes on where an earlier one stopped.
        tasks: only these, by name.
        settings: further ones of finetune/run.py, as a tree, for all tasks.
        task_settings: the same for single tasks, by name; they win.
        submission: predict the tests that are without answers, and write the files to submit.
        jobs: fine-tunings at once, a GPU each where there are GPUs; 0: one for each GPU, or one where there is none.
        timeout: seconds after which a fine-tuning is ended and counts as failed.
        keep_models: whether the fine-tuned models stay on disk.
    """

    suite: str
    data: str
    model: str
    ds_config: str
    tasks: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    task_settings: dict[str, Any] = field(default_factory=dict)
    submission: bool = True
    keep_models: bool = True

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        found = super().problems()
        wrong = [name for name, settings in self.task_settings.items() if not isinstance(settings, dict)]
        found += [f"task_settings.{name} must hold settings of finetune/run.py" for name in wrong]
        ours = ("model", "ds_config", "task", "train_file", "dev_file", "test_file", "columns", "format")
        for where, settings in {"settings": self.settings, **self.task_settings}.items():
            if isinstance(settings, dict):
                found += [f"{where}: {key} is given; the suite sets it" for key in ours if key in settings]
        return found
