"""Write checkpoints beside training: every rank its fragments, rank 0 the model folder and the manifest.

A save holds training for the time of a copy to host memory; a thread of each rank writes. The threads never
communicate through the process group, which training uses meanwhile, but through small files (``reports.py``).

Memory on the host, beside what training needs: each rank its share of weights and optimizer state (12 bytes per
parameter for AdamW, divided by the ranks), kept from save to save. Rank 0 needs the whole model in fp32, twice, while
it exports: 8 bytes per parameter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
from engine.checkpoint.reports import Report, collect_reports, publish_report, remove_reports
from engine.checkpoint.run_folder import MODEL, RunFolder
from engine.checkpoint.state import model_shapes, model_snapshot, snapshot
from engine.config.cli import SharedError
from engine.train.distributed import (
    from_rank_zero,
    gather_objects,
    global_rank,
    raise_together,
    wait_for_rank_zero,
    world_size,
)
from engine.train.metrics import say
from preprocess.files import sync_to_disk

ModelExporter = Callable[[Path, dict[str, Tensor]], None]
ModelDescriber = Callable[[Path, CheckpointManifest], None]
# Seconds that a rank may take to write its part: fewer than the ranks wait for each other in a collective, so that one
# whose disk hangs is named. That a rank died, training notices long before.
REPORT_TIMEOUT = 1200.0
SECONDS_TO_CANCEL = 60.0


@dataclass(eq=False)
class Save:
    """One checkpoint on its way to the disk, as one rank sees it.

    Attributes:
        folder: where it is written before it is renamed.
        token: names this save on all ranks.
        tensors: this rank's fragments by label; none where it has nothing to write.
        manifest: all but the files.
        deadline: on the monotonic clock, when this rank's part must be written.
        written: set when this rank's part is written or has failed.
        cancelled: set where rank 0 need not wait for the others any more, and must not let the checkpoint count.
        problem: why this rank could not write, in the user's words.
        error: what stopped this rank and is no fault of the disk.
    """

    folder: Path
    token: str
    tensors: Mapping[str, Tensor]
    manifest: CheckpointManifest
    deadline: float = field(default_factory=lambda: time.monotonic() + REPORT_TIMEOUT)
    written: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    problem: str | None = None
    error: Exception | None = None


class CheckpointWriter:
    """Saves checkpoints of one run, one at a time."""

    def __init__(
        self, run: RunFolder, export: ModelExporter, keep: int = 0, describe: ModelDescriber | None = None
    ) -> None:
        """Begin with nothing under way.

        Args:
            run: the run's folder, which all ranks see.
            export: writes whole fp32 weights, by our names, as a Hugging Face folder; called in a thread of rank 0.
            keep: newest checkpoints to keep, 0 for all.
            describe: writes a model card into an exported folder; called in the same thread.
        """
        self.run, self.export, self.keep, self.describe = run, export, keep, describe
        self.published: Callable[[int], None] = lambda step: None  # called in rank 0's thread for each new checkpoint
        self._buffers: dict[str, Tensor] = {}
        self._save: Save | None = None
        self._thread = threading.Thread()

    def save(self, engine: Any, model: nn.Module, step: int, trainer: dict[str, Any]) -> None:
        """Copy the state after ``step`` optimizer steps and write it in a thread; all ranks must call it.

        It returns when the state is copied. Where an earlier save is still being written it waits for that first.

        Raises:
            SharedError: on every rank, if the earlier save failed or this one's folder cannot be made.
        """
        token = self._prepare(step)
        if token is not None:
            tensors, optimizer = snapshot(engine, model, self._buffers)
            self._begin(token, tensors, CheckpointManifest(step, model_shapes(model), optimizer, trainer, {}))

    def save_initial(self, model: nn.Module, trainer: dict[str, Any]) -> None:
        """Save a model that has taken no step; rank 0 writes it alone, all ranks must call it and wait for it.

        Raises:
            SharedError: on every rank, if it cannot be written.
        """
        token = self._prepare(0)
        if token is not None:
            tensors = model_snapshot(model) if global_rank() == 0 else {}
            self._begin(token, tensors, CheckpointManifest(0, model_shapes(model), {}, trainer, {}))
            self.wait()

    def problem(self) -> str | None:
        """Why this rank could not write its part of the last save, as far as that is known by now."""
        return self._save.problem if self._save else None

    def wait(self) -> None:
        """Return when the last save is on the disk; all ranks must call it.

        Raises:
            SharedError: on every rank, if one could not write (a full disk); earlier checkpoints stay whole, and
                nothing is left of this one.
        """
        save, rank = self._save, global_rank()
        if save is None:
            return
        if not save.written.wait(max(0.0, save.deadline - time.monotonic())):
            slow = TimeoutError(errno.ETIMEDOUT, f"its disk took more than {REPORT_TIMEOUT:.0f} s")
            save.problem = explain_write_error(slow, save.folder)
        failed = any(gather_objects(save.problem is not None))  # rank 0 may still be at work: the others have ended
        if rank == 0:
            if failed:
                save.cancelled.set()
            self._thread.join(SECONDS_TO_CANCEL if failed else None)
        self._save = None
        wait_for_rank_zero()
        try:
            raise_together(save.problem)
        except SharedError:
            if rank == 0:
                shutil.rmtree(save.folder, ignore_errors=True)
            if save.error is not None:
                raise save.error from None
            raise

    def _prepare(self, step: int) -> str | None:
        """Make the folder of a save when the one before it has ended; None where the checkpoint is there already."""
        self.wait()
        return from_rank_zero(lambda: self._make_place(step))

    def _make_place(self, step: int) -> str | None:
        """On rank 0: clear what killed saves left and make this one's folder; its token, or None as ``_prepare``."""
        if self.run.has_checkpoint(step):
            return None  # resumed at the last step
        token = os.urandom(8).hex()
        folder = self.run.temporary_folder(step, token)
        try:
            self.run.remove_leftovers()
            if self.run.step_folder(step).exists():
                self.run.set_aside(step)  # a copy or a deletion that was cut off: no checkpoint
            _make_folder(folder)
        except OSError as error:
            raise ValueError(explain_write_error(error, folder)) from error
        return token

    def _begin(self, token: str, tensors: Mapping[str, Tensor], manifest: CheckpointManifest) -> None:
        save = Save(self.run.temporary_folder(manifest.step, token), token, tensors, manifest)
        self._save = save
        self._thread = threading.Thread(target=self._write, args=(save,), name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self, save: Save) -> None:
        """The thread: this rank's part, then on rank 0 what needs all parts. What goes wrong is kept for ``wait``."""
        rank = global_rank()
        try:
            files = {}
            if save.tensors:
                files[rank_file(rank)] = write_tensors(save.folder / rank_file(rank), save.tensors)
            publish_report(save.folder, rank, Report(save.token, files))
            if rank == 0:
                save.written.set()
                self._finish(save)
        except Exception as error:  # a thread must not take a mistake of ours to its grave
            self._give_up(save, error)
        finally:
            save.written.set()

    def _finish(self, save: Save) -> None:
        """When all ranks have written: export the model, write the manifest, let the checkpoint count."""
        ranks, folder, shapes = world_size(), save.folder, save.manifest.shapes
        files = collect_reports(folder, ranks, save.token, save.cancelled, REPORT_TIMEOUT)
        if files is None:  # the rank that failed tells why
            return
        reader = FragmentReader([folder / name for name in sorted(files)])
        self.export(folder / MODEL, reader.full(WEIGHTS, shapes))
        if self.describe is not None:
            self._describe(self.describe, save)
        remove_reports(folder, ranks)
        write_manifest(folder, replace(save.manifest, files=files))
        if not save.cancelled.is_set():
            self.run.publish(folder, save.manifest.step, self.keep)
            try:
                self.published(save.manifest.step)
            except Exception as error:  # the checkpoint counts, whatever comes of it
                say(f"note: what follows the checkpoint of step {save.manifest.step} failed: {error!r}")

    def _describe(self, describe: ModelDescriber, save: Save) -> None:
        """The model card; what goes wrong with it is a note, since no run needs it."""
        try:
            describe(save.folder / MODEL, save.manifest)
        except Exception as error:
            say(f"note: the model card of step {save.manifest.step} could not be made: {error!r}")

    def _give_up(self, save: Save, error: Exception) -> None:
        """Keep the reason for ``wait``, which takes the folder away when all ranks have ended, and tell rank 0."""
        rank, folder = global_rank(), save.folder
        try:
            known = as_os_error(error) if isinstance(error, (OSError, SafetensorError)) else None
        except SafetensorError:
            known = None
        if known is not None and not folder.exists():
            text = f"its folder is not on {platform.node()} (all hosts must share the run folder)"
            known = OSError(errno.ENOENT, text)
        problem = explain_write_error(known or OSError(0, repr(error)), folder)
        with contextlib.suppress(OSError):
            (folder / rank_file(rank)).unlink(missing_ok=True)  # on a full disk the report needs its room
            publish_report(folder, rank, Report(save.token, {}, failed=True))
        save.error = error if known is None else None
        save.problem = problem  # last: the run may end as soon as it is there


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True)
    sync_to_disk(folder.parent)


def explain_write_error(error: OSError, folder: Path) -> str:
    """A message for a checkpoint that could not be written."""
    text = f"the checkpoint {folder} could not be written: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
        free = shutil.disk_usage(existing).free
        text += f" ({free / 2**20:.0f} MiB free); make room (train.keep_checkpoints limits how many are kept)"
    return text + ". Earlier checkpoints are whole; the same command goes on from the newest"
