"""Where the lines of metrics.jsonl go besides: TensorBoard and Weights & Biases."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from engine.checkpoint.files import write_text
from engine.config.cli import RunStopped
from engine.config.train import TrainConfig

WANDB_RUNS = "wandb.json"  # in a run folder: project -> id of the run there
ID_BYTES = 6
SECONDS_TO_BEGIN, SECONDS_TO_FINISH = 30.0, 120.0  # that a W&B server may take


class Sink(Protocol):
    """Takes lines of figures; rank 0 only."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One line, of finite figures alone."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


def open_sinks(folder: Path, config: TrainConfig, first_step: int, say: Callable[[str], None]) -> list[Sink]:
    """Open what the settings ask for.

    Args:
        folder: of the run, with its config.json.
        config: the loop's settings.
        first_step: of the checkpoint that the run begins with; what lies after it is dropped where that can be done.
        say: tells a line of the log.
    """
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoardSink(folder, first_step))
    if config.wandb is not None:
        sinks.append(WandbSink(folder, config, say))
    return sinks


class TensorBoardSink:
    """Events in the run folder; an OSError of its files (a full disk) is the caller's business."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One event a figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        with contextlib.suppress(OSError):  # a full disk, which the line that did not fit has told
            self._writer.close()


class WandbSink:
    """One W&B run per run folder and project, which every start goes on with.

    Whatever goes wrong there is told once, and training goes on without it. Lines carry their step as a figure of their
    own: W&B's own counter never goes back, as a run does that was killed after its newest checkpoint.
    """

    def __init__(self, folder: Path, config: TrainConfig, say: Callable[[str], None]) -> None:
        self._say = say
        self._run: Any = None
        self._folder, self._seconds = folder, min(SECONDS_TO_FINISH, config.rank_timeout / 2)
        self._guarded(lambda: self._begin(folder, config))

    def _begin(self, folder: Path, config: TrainConfig) -> None:
        import wandb

        assert config.wandb is not None
        entity, _, project = config.wandb.rpartition("/")
        self._run = wandb.init(
            entity=entity or None,
            project=project,
            id=_run_id(folder, config.wandb),
            resume="allow",
            name=folder.resolve().name,
            dir=str(folder),
            config=json.loads((folder / "config.json").read_text(encoding="utf-8")),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                save_code=False,
                silent=True,
                init_timeout=min(SECONDS_TO_BEGIN, config.rank_timeout / 2),  # the other ranks wait meanwhile
                finish_timeout=self._seconds,
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._say(f"W&B: offline; to send it: wandb sync {self._run.sync_dir}" if self._run.offline else self._run.url)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One row of the run's history."""
        if self._run is not None:
            self._guarded(lambda: self._run.log({"step": step, **figures}))

    def close(self) -> None:
        """Wait until all is sent, for two minutes at most; a run that failed is marked as such.

        The other ranks wait meanwhile, and after ``rank_timeout`` they would take this one for lost.
        """
        error = sys.exc_info()[1]
        code = 0 if error is None or isinstance(error, RunStopped) else 1
        run = self._run
        if run is None:
            return
        # its own limit holds for the server's answers alone
        finish = threading.Thread(target=self._guarded, args=(lambda: run.finish(exit_code=code),), daemon=True)
        finish.start()
        finish.join(1.2 * self._seconds)
        if finish.is_alive():
            self._say(
                f"note: W&B has not taken all within {1.2 * self._seconds:.0f} s; what is left stays in "
                f"{self._folder / 'wandb'}"
            )

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # of a library and a server that training does not need
            self._run = None
            self._say(f"note: W&B failed ({type(error).__name__}: {error}); the run goes on without it")


def require_login(project: str | None) -> None:
    """Raise ValueError where W&B would want a key and finds none, or none that can be one; asks no server, nobody."""
    if project is None:
        return
    import wandb

    reason = ""
    try:
        settings = wandb.setup().settings
        if settings.mode not in ("online", "shared", "run") or wandb.login(prompt=False, verify=False):
            return
    except Exception as error:  # of a library that raises its own for a malformed key or a broken settings file
        reason = f" ({error})"
    raise ValueError(
        f"train.wandb: no W&B key that it takes{reason}: set WANDB_API_KEY or run wandb login; WANDB_MODE=offline "
        "needs none and keeps the figures in the run folder for wandb sync; or leave train.wandb out"
    )


def _run_id(folder: Path, project: str) -> str:
    """The id of the folder's run in a project, the same at every start; made up at the first."""
    file = folder / WANDB_RUNS
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if project not in known:
        known[project] = secrets.token_hex(ID_BYTES)
        write_text(file, json.dumps(known, indent=1) + "\n")
    return str(known[project])
