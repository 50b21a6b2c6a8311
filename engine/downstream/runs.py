"""Fine-tunings of a run's checkpoints: one at a time, in the background of rank 0, in the order of the steps."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from engine.checkpoint.run_folder import CHECKPOINTS, MODEL, RunFolder
from engine.downstream.plan import DownstreamPlan
from engine.downstream.process import FinetuneProcess, write_settings
from engine.downstream.scores import Score, ScoreFolder, read_figures
from engine.train.metrics import say

SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_LINES = 0.2, 60.0
RESULTS_OF_A_RUN = "results.json"
Line = tuple[int, dict[str, float | int | None]]
Writer = Callable[[int, dict[str, float | int | None]], None]


class DownstreamRuns:
    """The fine-tunings that a plan asks for; used by rank 0 alone, from its main thread where nothing else is said."""

    def __init__(self, run: RunFolder, plan: DownstreamPlan, last_step: int) -> None:
        """Begin with nothing under way.

        Args:
            run: the pretraining run.
            plan: which of its checkpoints, on what.
            last_step: of the run.
        """
        self.folder, self._plan, self._last_step = ScoreFolder(run), plan, last_step
        self._jobs: deque[tuple[int, str]] = deque()
        self._failed: list[str] = []
        self._lines: deque[Score] = deque()
        self._running: str | None = None
        self._process: FinetuneProcess | None = None
        self._closing = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="downstream", daemon=True)

    def start(self, step: int) -> None:
        """Check the tasks, then take up what a run at a step lacks.

        Args:
            step: where the run stands; scores of later steps are of a part that it takes again.

        Raises:
            ValueError: if a task has other settings than its earlier scores, or finetune/run.py refuses it.
        """
        self.refuse_other_settings()
        self._check_tasks(step)
        shown = self.folder.shown()
        for score in self.folder.scores():
            if score.step <= step and any((score.step, key) not in shown for key in score.line()):
                self._lines.append(score)
        for kept in self.folder.kept_steps():
            if kept <= step and self._plan.chooses(kept, self._last_step):
                self._offer(kept, anew=False)
        self._thread.start()

    def checkpoint(self, step: int) -> None:
        """Take up a checkpoint that has just been written; called in the thread that wrote it."""
        if not self._plan.chooses(step, self._last_step):
            return
        try:
            shown = self.folder.shown()
            scores = [score for score in self.folder.scores() if score.step == step]
            self._lines.extend(s for s in scores if any((step, key) not in shown for key in s.line()))
            self._offer(step, anew=True)
        except OSError as error:  # the checkpoint itself is whole
            say(f"note: the model of step {step} could not be kept for fine-tuning: {error.strerror}")

    def _offer(self, step: int, *, anew: bool) -> None:
        """Queue what a checkpoint lacks, with its model kept."""
        missing = self._missing(step)
        if not missing:
            self._drop_kept_model(step)  # of a start that was killed before it could
            return
        if self.folder.keep_model(step, anew=anew) is None:
            say(f"note: step {step} is left out of {', '.join(missing)}: its model is no longer there")
            return
        with self._change:
            self._jobs.extend((step, task) for task in missing)
            self._change.notify_all()

    def _missing(self, step: int) -> list[str]:
        """Tasks without a score of a step."""
        done = {score.task for score in self.folder.scores() if score.step == step}
        return [task for task in self._plan.tasks if task not in done]

    def lines(self) -> list[Line]:
        """What has been scored since the last call, for metrics.jsonl."""
        found = []
        while self._lines:
            score = self._lines.popleft()
            found.append((score.step, score.line()))
        return found

    def wait(self, write: Writer, stopped: Callable[[], str | None]) -> str | None:
        """Return when all is done; progress is told.

        Args:
            write: takes the lines that come up.
            stopped: why to stop waiting; None while there is no reason.

        Returns:
            Why the waiting was stopped, if it was.
        """
        told = time.monotonic() - SECONDS_BETWEEN_LINES
        while True:
            with self._change:
                left, running = len(self._jobs), self._running
            for step, figures in self.lines():
                write(step, figures)
            if not left and running is None:
                break
            if reason := stopped():
                return reason
            if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                say(f"waiting for fine-tuning: {running or 'about to start'}, {left} more to come")
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._tell_end()
        return None

    def _tell_end(self) -> None:
        if self._failed:
            failed = ", ".join(self._failed)
            say(f"note: {len(self._failed)} fine-tuning(s) failed: {failed}; python -m engine.downstream tries again")
        try:
            picture = self.folder.draw()
        except ValueError as error:
            say(f"note: {error}")
        else:
            if picture is not None:
                say(f"scores: {self.folder.path}, drawn in {picture}")

    def close(self) -> None:
        """End what is running, at once; what is left is taken up by the next start."""
        with self._change:
            self._closing = True
            self._jobs.clear()
            process = self._process
            self._change.notify_all()
        if process is not None:
            process.close()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def failed(self) -> list[str]:
        """Fine-tunings that failed in this start."""
        return list(self._failed)

    def refuse_other_settings(self) -> None:
        """Raise ValueError if a task has other settings than its earlier scores; changes nothing."""
        for score in self.folder.scores():
            if score.task in self._plan.tasks and score.settings != self._plan.digest(score.task):
                raise ValueError(
                    f"evaluate_with: task {score.task} has other settings now than at step {score.step}, so its scores "
                    f"cannot be compared; give it another name, or move {self.folder.path} away"
                )

    def _check_tasks(self, step: int) -> None:
        """Let finetune/run.py check the settings of each task that a run at a step lacks a score of."""
        model = self.folder.run.model
        checks = self.folder.path / "check"
        there = {kept for kept in self.folder.kept_steps() if kept <= step}
        wanted = {chosen for chosen in self._plan.chosen(self._last_step) if chosen > step or chosen in there}
        done = {(score.step, score.task) for score in self.folder.scores()}
        for name, settings in self._plan.tasks.items():
            if all((chosen, name) in done for chosen in wanted):
                continue
            checks.mkdir(parents=True, exist_ok=True)
            write_settings(checks / f"{name}.yaml", settings)
            options = ["--model", str(model), "--output", str(checks / name), "--dry_run", "true"]
            process = self._begin(checks / f"{name}.yaml", options, checks / f"{name}.log")
            try:
                refused = process is not None and process.wait(self._plan.timeout) != 0
            except TimeoutError as error:
                raise ValueError(f"evaluate_with: the check of task {name}: {error}") from None
            if process is not None and refused:
                raise ValueError(f"evaluate_with: task {name} is refused:\n{process.last_lines()}")
        shutil.rmtree(checks, ignore_errors=True)

    def _begin(self, settings: Path, options: list[str], log: Path) -> FinetuneProcess | None:
        """Start a process, unless all are being ended."""
        with self._change:
            if self._closing:
                return None
            self._process = FinetuneProcess(settings, options, log, self._plan.environment)
            return self._process

    def _work(self) -> None:
        """The thread."""
        while True:
            with self._change:
                self._running = None
                self._change.wait_for(lambda: self._jobs or self._closing)
                if self._closing:
                    return
                step, task = self._jobs.popleft()
                self._running = f"{task} of step {step}"
            try:
                self._fine_tune(step, task)
            except Exception as error:  # whatever it is, the run must not wait for this thread for ever
                known = isinstance(error, (OSError, ValueError))
                self._fail(step, task, str(error) if known else repr(error))

    def _fine_tune(self, step: int, task: str) -> None:
        folder = self.folder.step_folder(step)
        output, settings, log = folder / task, folder / f"{task}.yaml", folder / f"{task}.log"
        shutil.rmtree(output, ignore_errors=True)  # of a start that was ended
        write_settings(settings, self._plan.tasks[task])
        say(f"fine-tuning the model of step {step}: {task} ({log})")
        process = self._begin(settings, ["--model", str(folder / MODEL), "--output", str(output)], log)
        code = process.wait(self._plan.timeout) if process is not None else 0
        if self._closing:
            return
        assert process is not None
        if code:
            self._fail(step, task, f"exit code {code}; the end of {log}:\n{process.last_lines()}")
            return
        score = Score(step, task, self._plan.digest(task), read_figures(output / RESULTS_OF_A_RUN))
        self.folder.add(score)
        self._lines.append(score)
        self._drop_models(step, task)

    def _fail(self, step: int, task: str, why: str) -> None:
        if self._closing:
            return
        self._failed.append(f"{task} of step {step}")
        say(f"note: fine-tuning {task} of step {step} failed: {why}")

    def _drop_models(self, step: int, task: str) -> None:
        """Remove a fine-tuning's checkpoints, and the model that it began with where no task needs that any more."""
        if self._plan.keep_models:
            return
        output = self.folder.step_folder(step) / task
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
        with contextlib.suppress(OSError):
            (output / MODEL).unlink()
        if not self._missing(step):
            self._drop_kept_model(step)

    def _drop_kept_model(self, step: int) -> None:
        if not self._plan.keep_models:
            shutil.rmtree(self.folder.step_folder(step) / MODEL, ignore_errors=True)
