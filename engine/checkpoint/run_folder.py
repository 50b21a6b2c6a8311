"""A run's folder: its settings, its checkpoints, the link to its newest model, and how another start goes on."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.files import MANIFEST, CheckpointManifest, read_manifest, verify_files, write_text
from preprocess.files import sync_to_disk

CONFIG, METRICS, FINISHED, CHECKPOINTS, MODEL = "config.json", "metrics.jsonl", "FINISHED", "checkpoints", "model"
_STEP_FOLDER = re.compile(r"step-(\d+)")

# Settings that another start of the same run may change. All others decide what the run computes.
MAY_CHANGE = (
    "deepspeed",
    "ds_config",
    "local_rank",
    "world_size",
    "data.shards",
    "train.output",
    "train.steps",
    "train.save_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.eval_every",
    "train.eval_rows",
    "train.peak_tflops",
    "train.tensorboard",
    "train_file",
    "dev_file",
    "test_file",
    "versions",
    "torch_threads",
)


class RunFolder:
    """Paths of a run, and what is in them."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / CHECKPOINTS
        self.metrics = self.path / METRICS
        self.model = self.path / MODEL

    def step_folder(self, step: int) -> Path:
        """Where the checkpoint of a step stands."""
        return self.checkpoints / f"step-{step}"

    def temporary_folder(self, step: int) -> Path:
        """Where the checkpoint of a step is written before it is renamed."""
        return self.checkpoints / f".step-{step}.partial"

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        if not self.checkpoints.is_dir():
            return []
        found = [_STEP_FOLDER.fullmatch(entry.name) for entry in self.checkpoints.iterdir()]
        return sorted(int(match[1]) for match in found if match and (self.checkpoints / match[0] / MANIFEST).is_file())

    def open(self, config: dict[str, Any]) -> bool:
        """Begin a run or go on with one.

        Args:
            config: the resolved settings, a JSON tree.

        Returns:
            True where the folder holds this run, which then goes on.

        Raises:
            ValueError: if the folder holds another run or foreign files; the message lists the settings that differ.
        """
        file = self.path / CONFIG
        if not file.is_file() and not self.path.is_file() and not (self.path.is_dir() and any(self.path.iterdir())):
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
        if difference := settings_difference(earlier, config):
            lines = "\n".join(f"  {key}: {was} there, {now} now" for key, was, now in difference)
            raise ValueError(
                f"train.output {self.path} holds a run with other settings:\n{lines}\n"
                "Choose another --train.output, or give the settings of that run to go on with it "
                f"(these may change: {', '.join(MAY_CHANGE)})"
            )
        return True

    def claim(self) -> None:
        """Keep other runs out of the folder while this object lives, where the file system has locks.

        Raises:
            ValueError: if another run is at work in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is at work in train.output {self.path}; wait for its end, or choose another folder"
            ) from None
        except OSError:
            pass

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
        for leftover in self.checkpoints.glob(".step-*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        for newer in self.steps():
            if newer > step:
                damaged = self.checkpoints / f"damaged-step-{newer}"
                shutil.rmtree(damaged, ignore_errors=True)  # damaged at the same step before: one is enough
                os.rename(self.step_folder(newer), damaged)
        if self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self.metrics, "".join(line for line in lines if _step_of(line) <= step))
        self._link_model(step)

    def publish(self, step: int, keep: int) -> None:
        """Make a written checkpoint count: rename it, point the model link at it, drop the oldest beyond ``keep``."""
        final = self.step_folder(step)
        os.rename(self.temporary_folder(step), final)
        sync_to_disk(self.checkpoints)
        self._link_model(step)
        for old in self.steps()[:-keep] if keep else []:
            shutil.rmtree(self.step_folder(old), ignore_errors=True)

    def _link_model(self, step: int) -> None:
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


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):  # the torn last line of a run that was killed
        return float("inf")


def settings_difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that differ and may not: (dotted name, value of the earlier run, value now)."""
    before, after = _flatten(earlier), _flatten(now)
    return [
        (key, before.get(key, "absent"), after.get(key, "absent"))
        for key in sorted(before.keys() | after.keys())
        if before.get(key, "absent") != after.get(key, "absent") and not _may_change(key)
    ]


def _may_change(key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in MAY_CHANGE)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = json.loads(json.dumps(value))
    return flat
