"""A run's folder: its settings, its checkpoints, the link to its newest model, and how another start goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.files import MANIFEST, CheckpointManifest, read_manifest, verify_files, write_text
from engine.checkpoint.metric_lines import read_metric_lines
from engine.train.metrics import say
from preprocess.files import sync_to_disk
from preprocess.locks import lock

CONFIG, METRICS, FINISHED, CHECKPOINTS, MODEL = "config.json", "metrics.jsonl", "FINISHED", "checkpoints", "model"
LOCK = ".lock"
_STEP_FOLDER = re.compile(r"step-(\d+)")
_STAGE_STEPS = re.compile(r"stages\.(\d+)\.steps")
_STAGE_GROUP = re.compile(r"stages\.\d+\.(schedule)\.")  # complete once it is given, as the run's own is

# Settings that another start of the same run may change: they decide where, how fast and how rounded, but not what, the
# run computes, or how far it goes. The steps of the last of several stages may change too.
MAY_CHANGE = (
    "deepspeed",
    "ds_config",
    "backend",
    "local_rank",
    "profile",
    "world_size",
    "data.shards",
    "data.folders",
    "train.output",
    "train.steps",
    "train.save_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.eval_every",
    "train.eval_rows",
    "train.evaluate_with",
    "train.early_stopping",
    "train.peak_tflops",
    "train.tensorboard",
    "train.wandb",
    "train.rank_timeout",
    "train.nonfinite",
    "train.max_skipped_steps",
    "train.activation_checkpointing",
    "train.fixed_shapes",
    "train.compile",
    "train.optimizer.backend",
    "train_file",
    "dev_file",
    "test_file",
    "versions",
    "torch_threads",
)
# What follows from the machine or from other settings is no option.
OPTIONS_THAT_MAY_CHANGE = tuple(
    name
    for name in MAY_CHANGE
    if name not in ("deepspeed", "local_rank", "world_size", "data.folders", "versions", "torch_threads")
)


class RunFolder:
    """Paths of a run, and what is in them."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / CHECKPOINTS
        self.metrics = self.path / METRICS
        self.model = self.path / MODEL
        self.spared: Callable[[], int | None] = lambda: None  # step of a checkpoint that is kept, however old

    def step_folder(self, step: int) -> Path:
        """Where the checkpoint of a step stands."""
        return self.checkpoints / f"step-{step}"

    def temporary_folder(self, step: int, token: str) -> Path:
        """Where a save of a step is written before it is renamed; what names the save keeps others' ranks out."""
        return self.checkpoints / f".step-{step}.{token}.partial"

    def remove_leftovers(self) -> None:
        """Drop what saves that were killed left, half-written or half-deleted."""
        for leftover in self.checkpoints.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def has_checkpoint(self, step: int) -> bool:
        """Whether a finished checkpoint of a step is there."""
        return (self.step_folder(step) / MANIFEST).is_file()

    def set_aside(self, step: int) -> None:
        """Keep what stands in the place of a step's checkpoint under another name, where it is in nobody's way."""
        damaged = self.checkpoints / f"damaged-step-{step}"
        shutil.rmtree(damaged, ignore_errors=True)  # damaged at the same step before: one is enough
        os.rename(self.step_folder(step), damaged)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        if not self.checkpoints.is_dir():
            return []
        found = [_STEP_FOLDER.fullmatch(entry.name) for entry in self.checkpoints.iterdir()]
        return sorted(step for step in (int(match[1]) for match in found if match) if self.has_checkpoint(step))

    def open(self, config: dict[str, Any], defaults: Mapping[str, Any] | None = None) -> bool:
        """Begin a run or go on with one.

        Args:
            config: the resolved settings, a JSON tree.
            defaults: what a setting is that the run's older version did not have yet.

        Returns:
            True where the folder holds this run, which then goes on.

        Raises:
            ValueError: if the folder holds another run or foreign files; the message lists the settings that differ.
        """
        file = self.path / CONFIG
        if not file.is_file() and not self.path.is_file() and not self._holds_files():
            return False
        try:
            earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is damaged ({error}); choose another train.output") from None
        if not isinstance(earlier, dict) or "train" not in earlier:  # a model folder has a config.json too
            raise ValueError(
                f"train.output {self.path} holds files but no {CONFIG} of a run; choose another folder or empty it"
            )
        if not self.steps():  # it failed before its first checkpoint: nothing is lost by beginning again
            return False
        if difference := settings_difference(earlier, config, defaults or {}):
            lines = "\n".join(f"  {key}: {was} there, {now} now" for key, was, now in difference)
            raise ValueError(
                f"train.output {self.path} holds a run with other settings:\n{lines}\n"
                "Give the settings of that run to go on with it (these may change: "
                f"{', '.join(OPTIONS_THAT_MAY_CHANGE)}), or begin another one in another --train.output, from its "
                f"weights if you like (--init_from {self.model})"
            )
        return True

    def _holds_files(self) -> bool:
        return self.path.is_dir() and any(entry.name != LOCK for entry in self.path.iterdir())

    def claim(self) -> None:
        """Keep other runs out of the folder while this object lives; where the file system has no locks, say so.

        The lock goes with the process, however that ends. Its file stays and names the last that had it.

        Raises:
            ValueError: if another run is at work in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = open(self.path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (for the life of this object)
        weakref.finalize(self, file.close)
        file.seek(0)
        if not lock(file, say=say):
            holder = file.read().strip()
            raise ValueError(
                f"another run is at work in train.output {self.path}{f' ({holder})' if holder else ''}; "
                "wait for its end, or choose another folder"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the resolved settings; the newest start's are kept."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(self.path / CONFIG, json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False) + "\n")

    def newest_checkpoint(self) -> tuple[Path, CheckpointManifest, list[str]]:
        """The newest checkpoint that is whole.

        Returns:
            Its folder, its manifest, and what is wrong with newer ones.

        Raises:
            ValueError: if none is whole.
        """
        complaints: list[str] = []
        for step in reversed(self.steps()):
            folder = self.step_folder(step)
            try:
                manifest = read_manifest(folder)
                verify_files(folder, manifest)
            except ValueError as error:
                complaints.append(str(error))
                continue
            return folder, manifest, complaints
        raise ValueError("\n".join([f"{self.checkpoints} holds no whole checkpoint:", *complaints]))

    def return_to(self, step: int) -> None:
        """Drop what lies after a checkpoint: half-written ones, damaged newer ones, later lines of the metrics."""
        self.remove_leftovers()
        for newer in self.steps():
            if newer > step:
                self.set_aside(newer)
        if self.metrics.is_file():
            lines, _ = read_metric_lines(self.metrics)
            write_text(self.metrics, "".join(line.text for line in lines if line.step <= step))
        self.link_model(step)

    def publish(self, written: Path, step: int, keep: int) -> None:
        """Make a written checkpoint count: rename it, point the model link at it, drop the oldest beyond ``keep``."""
        os.rename(written, self.step_folder(step))
        sync_to_disk(self.checkpoints)
        self.link_model(step)
        spared = self.spared()
        for old in [old for old in self.steps()[:-keep] if old != spared] if keep else []:
            hidden = self.checkpoints / f".step-{old}.old"  # what is half-deleted must not count as a checkpoint
            os.rename(self.step_folder(old), hidden)
            shutil.rmtree(hidden, ignore_errors=True)

    def link_model(self, step: int) -> None:
        """Point the model link at a step's checkpoint."""
        link = self.path / f".{MODEL}.partial"
        link.unlink(missing_ok=True)
        link.symlink_to(Path(CHECKPOINTS) / self.step_folder(step).name / MODEL)
        os.replace(link, self.model)
        sync_to_disk(self.path)

    def finish(self) -> None:
        """Mark the run as ended well."""
        write_text(self.path / FINISHED, "")

    def is_finished(self) -> bool:
        """Whether the run ended well."""
        return (self.path / FINISHED).is_file()

    def reopen(self) -> None:
        """Remove the mark, where a finished run goes on to more steps."""
        (self.path / FINISHED).unlink(missing_ok=True)


def settings_difference(
    earlier: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> list[tuple[str, Any, Any]]:
    """Settings that differ and may not.

    Args:
        earlier: the settings of the earlier start, a JSON tree.
        now: those of this start.
        defaults: stand in for what ``earlier`` lacks because its version did not have it.

    Returns:
        Dotted name, value of the earlier run, value now; an item of a list of settings has its number as a name.
    """
    before, after = dict(flatten(earlier)), dict(flatten(now))
    usual = dict(flatten(defaults or {}))
    usual = {**usual, **{key: usual[name] for key in after if (name := _setting_of_stage(key, before)) in usual}}
    before = {**{key: value for key, value in usual.items() if key in after}, **before}
    last_steps = {_last_stage_steps(before), _last_stage_steps(after)}
    free = last_steps if len(last_steps) == 1 else set()
    return [
        (key, before.get(key, "absent"), after.get(key, "absent"))
        for key in sorted(before.keys() | after.keys())
        if before.get(key, "absent") != after.get(key, "absent") and key not in free and not _may_change(key)
    ]


def _setting_of_stage(key: str, before: Mapping[str, Any]) -> str | None:
    """Name of the run's setting that one of a stage's group stands for; None where the stage had no such group."""
    match = _STAGE_GROUP.match(key)
    if match is None or not any(name.startswith(match[0]) for name in before):
        return None
    return f"train.{match[1]}.{key[match.end() :]}"


def _last_stage_steps(settings: Mapping[str, Any]) -> str | None:
    """Name of the steps of the last stage; None where there are no stages."""
    numbers = [int(match[1]) for match in map(_STAGE_STEPS.fullmatch, settings) if match]
    return f"stages.{max(numbers)}.steps" if numbers else None


def _may_change(key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in MAY_CHANGE)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted names; an item of a list of settings has its number as a name."""
    for key, value in tree.items():
        if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(json.dumps(value))
