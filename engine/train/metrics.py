"""What a run says of itself: metrics.jsonl, what reads it along, the progress bar and the log line."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from engine.config.train import TrainConfig
from engine.objectives.base import LossTerm, perplexity_of
from engine.train.distributed import global_rank
from engine.train.sinks import Sink, open_sinks

LOGGED_FIGURES = ("loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "memory_bytes", "data_wait", "eta")


def say(text: str) -> None:
    """A line of the log, from rank 0, on stderr and clear of the progress bar."""
    if global_rank() == 0:
        tqdm.write(text, file=sys.stderr)


def memory_bytes(device: torch.device) -> int:
    """Peak memory of this rank: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class Window:
    """Sums since the last log line, on this rank.

    Attributes:
        loss_sums: per term: tensors on the device, so that adding to them waits for nothing.
        correct: per term that tells it: targets predicted right, likewise.
        counts: targets per term, over all ranks: tensors on the device.
        weights: weight of each term.
        tokens: real tokens of this rank.
        filler: tokens of this rank that are none, computed so that shapes stay fixed.
        flops: operations of this rank.
        waited: seconds spent waiting for data.
        steps: optimizer steps.
        begun: clock at the window's begin.
    """

    loss_sums: dict[str, Tensor] = field(default_factory=dict)
    correct: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    filler: int = 0
    flops: float = 0.0
    waited: float = 0.0
    steps: int = 0
    begun: float = field(default_factory=time.perf_counter)

    def add(self, name: str, term: LossTerm) -> None:
        """Add one term of the loss of a micro-batch."""
        _add(self.loss_sums, name, term.loss_sum.detach().double())
        self.weights[name] = term.weight
        if term.correct is not None:
            _add(self.correct, name, term.correct.double())

    def count(self, totals: dict[str, Tensor]) -> None:
        """Add the targets of a step, over all ranks."""
        for name, total in totals.items():
            _add(self.counts, name, total)

    def sums(self) -> dict[tuple[str, str], Tensor]:
        """What must be summed over the ranks, the same entries on each."""
        losses = {("loss", name): value for name, value in self.loss_sums.items()}
        return losses | {("accuracy", name): value for name, value in self.correct.items()}

    def means(self, summed: dict[tuple[str, str], float]) -> dict[str, float]:
        """Means over targets from sums over all ranks: the weighted whole as ``loss``, each term, the perplexity."""
        means = {(what, name): value / max(float(self.counts[name]), 1.0) for (what, name), value in summed.items()}
        whole = sum(self.weights[name] * mean for (what, name), mean in means.items() if what == "loss")
        several = len(self.loss_sums) > 1
        parts = {f"{what}_{name}": mean for (what, name), mean in means.items() if several}
        losses = {name: mean for (what, name), mean in means.items() if what == "loss"}
        return {"loss": whole, **parts, **perplexity_of(losses)}


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


class MetricsLog:
    """Writes each line of figures to metrics.jsonl, the sinks (TensorBoard, W&B) and the log; rank 0 only."""

    def __init__(self, file: Path, config: TrainConfig, steps: int, first_step: int) -> None:
        self._active = global_rank() == 0
        self._file = file
        self._sinks: list[Sink] = []
        self._bar: Any = None
        if not self._active:
            return
        self._sinks = open_sinks(file.parent, config, first_step, say)
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(total=steps, initial=first_step, unit="step", file=sys.stderr, mininterval=interval)

    def advance(self) -> None:
        """One step more on the progress bar."""
        if self._active:
            self._bar.update()

    def write(self, step: int, figures: dict[str, float | int | None]) -> None:
        """One line: every figure that is not finite or not known is null in the file.

        Raises:
            ValueError: if it could not be written (a full disk).
        """
        if not self._active:
            return
        clean = {k: v if v is None or math.isfinite(v) else None for k, v in figures.items()}
        try:
            self._write(step, clean)
        except OSError as error:
            raise ValueError(
                f"the metrics of {self._file.parent} could not be written: {error.strerror}; mend that, and the same "
                "command goes on from the newest checkpoint"
            ) from None  # TensorBoard raises the same object again when it is closed: no circle of causes
        say(f"step {step}: " + ", ".join(_shown(name, value) for name, value in clean.items() if value is not None))

    def _write(self, step: int, clean: dict[str, float | int | None]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **clean}) + "\n")
        known = {name: value for name, value in clean.items() if value is not None}
        for sink in self._sinks:
            sink.write(step, known)

    def close(self) -> None:
        """Flush and close."""
        if self._bar is not None:
            self._bar.close()
        for sink in self._sinks:
            sink.close()


def _shown(name: str, value: float | int) -> str:
    if name == "memory_bytes":
        return f"memory {value / 2**30:.2f} GiB"
    if name in ("mfu", "data_wait", "filler") or "accuracy" in name:
        return f"{name} {value:.1%}"
    if name == "eta":
        return f"eta {int(value) // 3600}:{int(value) % 3600 // 60:02d}:{int(value) % 60:02d}"
    if name == "lr":
        return f"lr {value:.3g}"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{name} {value:,.0f}"
    return f"{name} {value:.4f}"
