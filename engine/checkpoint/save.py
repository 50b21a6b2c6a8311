"""Write one checkpoint: every rank its fragments, rank 0 the model folder and the manifest."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from engine.checkpoint.files import (
    WEIGHTS,
    CheckpointManifest,
    FragmentReader,
    as_os_error,
    rank_file,
    write_manifest,
    write_tensors,
)
from engine.checkpoint.run_folder import MODEL, RunFolder
from engine.checkpoint.state import model_shapes, model_snapshot, snapshot
from engine.train.distributed import broadcast_object, gather_objects, global_rank, raise_together
from preprocess.files import sync_to_disk

ModelExporter = Callable[[Path, dict[str, Tensor]], None]


@dataclass(frozen=True)
class CheckpointWriter:
    """Saves checkpoints of one run.

    Attributes:
        run: the run's folder.
        export: writes whole fp32 weights, by our names, as a Hugging Face folder.
        keep: newest checkpoints to keep, 0 for all.
    """

    run: RunFolder
    export: ModelExporter
    keep: int = 0

    def save(self, engine: Any, model: nn.Module, step: int, trainer: dict[str, Any]) -> None:
        """Save the state after ``step`` optimizer steps; all ranks must call it.

        Raises:
            ValueError: on every rank, if a rank could not write (a full disk); earlier checkpoints stay whole.
        """
        if broadcast_object(self.run.step_folder(step).exists()):
            return  # resumed at the last step: it is there
        tensors, optimizer = snapshot(engine, model)
        self._save(tensors, model_shapes(model), step, optimizer, trainer)

    def save_initial(self, model: nn.Module, trainer: dict[str, Any]) -> None:
        """Save a model that has taken no step; rank 0 writes it alone, all ranks must call it."""
        tensors = model_snapshot(model) if global_rank() == 0 else {}
        self._save(tensors, model_shapes(model), 0, {}, trainer)

    def _save(
        self, tensors: Mapping[str, Tensor], shapes: dict[str, list[int]], step: int, optimizer: Any, trainer: Any
    ) -> None:
        folder = self.run.temporary_folder(step)
        self._together(folder, lambda: _fresh_folder(folder) if global_rank() == 0 else None)
        written: dict[str, Any] = {}

        def write() -> None:
            if tensors:
                name = rank_file(global_rank())
                written[name] = write_tensors(folder / name, tensors)

        self._together(folder, write)
        files = {name: entry for part in gather_objects(written) for name, entry in part.items()}

        def commit() -> None:
            if global_rank() == 0:
                reader = FragmentReader([folder / name for name in sorted(files)])
                self.export(folder / MODEL, reader.full(WEIGHTS, shapes))
                write_manifest(folder, CheckpointManifest(step, shapes, optimizer, trainer, files))
                self.run.publish(step, self.keep)

        self._together(folder, commit)

    def _together(self, folder: Path, work: Callable[[], None]) -> None:
        """Do a part of the work on every rank; a failure on one is an error on all, and the leftovers go."""
        problem = None
        try:
            work()
        except (OSError, SafetensorError) as error:
            problem = explain_write_error(as_os_error(error), folder)
        try:
            raise_together(problem)
        except ValueError:
            if global_rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _fresh_folder(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    sync_to_disk(folder.parent)


def explain_write_error(error: OSError, folder: Path) -> str:
    """A message for a checkpoint that could not be written."""
    text = f"the checkpoint {folder} could not be written: {error.strerror}"
    if error.errno == errno.ENOSPC:
        existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
        free = shutil.disk_usage(existing).free
        text += f" ({free / 2**20:.0f} MiB free); make room (train.keep_checkpoints limits how many are kept)"
    return text + ". Earlier checkpoints are whole; the same command goes on from the newest"
