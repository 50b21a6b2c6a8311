"""What a checkpoint costs training: ours, written by a thread, beside DeepSpeed's own ``save_checkpoint``, A B C D.

    OMP_NUM_THREADS=2 python benchmarks/checkpoint.py --output results.json

One engine, one process. A window is a save followed by ``--steps`` optimizer steps; the sides take turns, window by
window, and every figure is a median over the rounds:
- none: no save, the steps alone;
- ours: the state is copied, a thread writes; what is left to write after the steps is waited for within the window;
- ours waited for: the same, waited for at once;
- deepspeed: ``save_checkpoint`` of the same engine.
The stall is the time of the call that saves. The share is what a window takes above the one without a save. Ours also
digests and fsyncs all files and writes a Hugging Face model folder; DeepSpeed's does neither.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.model_cases import ON_CPU, SEED, make_objective, make_rows
from engine.checkpoint.run_folder import RunFolder
from engine.checkpoint.save import CheckpointWriter
from engine.config.deepspeed_json import complete_deepspeed_config
from engine.config.optimizer import OptimizerConfig
from engine.config.train import BatchShape
from engine.convert.huggingface import to_huggingface
from engine.convert.model_folder import write_model_folder
from engine.data.batch import PackedBatch
from engine.models.model import build_model
from engine.optim.build import build_optimizer
from engine.train.distributed import describe_device, init_distributed
from engine.train.zero import ZeroEngine

SPECIAL_IDS = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
SIDES = ("none", "ours", "ours waited for", "deepspeed")


@dataclass(frozen=True)
class Window:
    """Seconds of one window: of the call that saves, and of all together; and what is on disk in bytes."""

    stall: float
    whole: float
    size: int


class Bench:
    """An engine, a batch that it is trained on over and over, and the ways to save it."""

    def __init__(self, model: str, batch_size: int, stage: int, folder: Path) -> None:
        device = init_distributed()
        case = ON_CPU[model]
        objective, arch = make_objective(case)
        shape = BatchShape(batch_size, batch_size, 1)
        tree: dict[str, Any] = {"gradient_clipping": 1.0, "zero_optimization": {"stage": stage}}
        settings = complete_deepspeed_config(tree, shape, describe_device())
        self.model = build_model(arch, objective.make_heads(arch), SEED)
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        optimizer = build_optimizer(self.model, OptimizerConfig(), settings, device.type)
        self.engine = ZeroEngine(self.model, objective, optimizer, settings)
        rows = make_rows(case, "full", 1, objective.sequence_layout.per_sequence, together=False)[0][:batch_size]
        self.batch: PackedBatch = objective.collate(rows).to(device)
        self.counts = {name: torch.tensor(float(n), device=device) for name, n in self.batch.counts.items()}
        self.folder, self.device, self.saves = folder, device, 0

        def export(target: Path, weights: dict[str, torch.Tensor]) -> None:
            write_model_folder(target, *to_huggingface(weights, arch, [objective.name], SPECIAL_IDS))

        self.writer = CheckpointWriter(RunFolder(str(folder / "run")), export, keep=1)
        self.writer.run.checkpoints.mkdir(parents=True)

    def train(self, steps: int) -> None:
        """Take optimizer steps."""
        for _ in range(steps):
            self.engine.micro_step(self.batch, self.counts, last=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def save(self, side: str) -> None:
        """Save as one of the sides does."""
        self.saves += 1
        if side.startswith("ours"):
            self.writer.save(self.engine.deepspeed, self.model, self.saves, {})
            if side != "ours":
                self.writer.wait()
        elif side == "deepspeed":
            with contextlib.redirect_stdout(io.StringIO()):
                self.engine.deepspeed.save_checkpoint(str(self.folder / side), tag=str(self.saves))

    def window(self, side: str, steps: int) -> Window:
        """One save and the steps after it; its files are removed again."""
        os.sync()  # what an earlier window wrote is not to be paid by this one
        begun = time.perf_counter()
        self.save(side)
        stall = time.perf_counter() - begun
        self.train(steps)
        self.writer.wait()
        whole = time.perf_counter() - begun
        size = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file() and not file.is_symlink())
        shutil.rmtree(self.folder / "deepspeed", ignore_errors=True)
        for old in self.writer.run.steps():
            shutil.rmtree(self.writer.run.step_folder(old))
        return Window(stall, whole, size)


def measure(run_window: Callable[[str], Window], rounds: int) -> dict[str, Any]:
    """Medians of windows that take turns; the share of a side is taken round by round."""
    found: dict[str, list[Window]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES:
            found[side].append(run_window(side))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return {side: summary(windows, found["none"]) for side, windows in found.items()}


def summary(windows: Sequence[Window], without: Sequence[Window]) -> dict[str, Any]:
    """Median seconds of a side, its share of time, and all that was measured."""
    return {
        "stall_seconds": statistics.median(window.stall for window in windows),
        "window_seconds": statistics.median(window.whole for window in windows),
        "share_of_time": statistics.median(
            (window.whole - other.whole) / window.whole for window, other in zip(windows, without, strict=True)
        ),
        "megabytes": windows[0].size / 2**20,
        "windows": [asdict(window) for window in windows],
    }


def describe_machine() -> dict[str, Any]:
    """Hardware and versions, for the results."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else names[0]
        if names
        else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "deepspeed", "safetensors")},
        "command": " ".join(sys.argv),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-small", choices=ON_CPU)
    parser.add_argument("--stage", type=int, default=1, choices=[0, 1, 2, 3])
    parser.add_argument("--batch_size", type=int, default=8, help="rows of a step")
    parser.add_argument("--steps", type=int, default=10, help="steps after each save")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; a temporary folder if not given")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="JSON file of the result")
    arguments = parser.parse_args(argv)
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        bench = Bench(arguments.model, arguments.batch_size, arguments.stage, Path(folder))
        bench.train(2)
        for side in SIDES:
            bench.window(side, 1)  # first allocations
        sides = measure(lambda side: bench.window(side, arguments.steps), arguments.rounds)
    settings = {name: getattr(arguments, name) for name in ("model", "stage", "batch_size", "steps", "rounds")}
    result = {**settings, "num_parameters": bench.num_parameters, "sides": sides, **describe_machine()}
    print(
        json.dumps({**result, "sides": {s: {k: v for k, v in f.items() if k != "windows"} for s, f in sides.items()}})
    )
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
