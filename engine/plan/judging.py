"""DeepSpeed files with micro-batches: what they need, and whether that fits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from engine.config.cli import UsageError
from engine.config.deepspeed_json import (
    DeepSpeedSettings,
    Device,
    complete_deepspeed_config,
    deepspeed_problems,
    read_deepspeed_json,
)
from engine.config.train import BatchShape
from engine.plan.config import BEFORE_BF16
from engine.plan.memory import MemoryEstimate, estimate_phase
from engine.plan.setting_up import Setup, Unit
from engine.train.timeline import StepSettings


@dataclass(frozen=True)
class Candidate:
    """A DeepSpeed file with micro-batches, and what they need.

    Attributes:
        file: name or path.
        micro_batches: rows of a forward pass of one rank, by the setting that gives them.
        memory: where in the run it is most.
        divides: whether the micro-batches divide the rows of a rank; a run with others is refused.
        fits: whether they do, and it fits into what may be planned with.
        checkpointing: whether layers are computed again in the backward pass.
        precision: fp32, bf16 or fp16.
    """

    file: str
    micro_batches: dict[str, int]
    memory: MemoryEstimate
    divides: bool
    fits: bool
    checkpointing: bool
    precision: str


def judge(setup: Setup, file: str, checkpointing: bool | None = None, asked: bool = False) -> Candidate:
    """The largest micro-batches with which a file fits; those of one row where none does.

    Args:
        setup: what is planned.
        file: DeepSpeed JSON.
        checkpointing: whether layers are computed again; the run's own setting where not given.
        asked: take the micro-batches that the run asks for, whether they fit or not.
    """
    again = setup.config.train.activation_checkpointing if checkpointing is None else checkpointing
    sizes: dict[str, int] = {}
    needs: list[MemoryEstimate] = []
    divides = True
    for unit in setup.units():
        if asked:
            size, memory = unit.asked, _unit_memory(setup, file, unit, unit.asked, again)
            divides = divides and rows_of_rank(setup, unit) % size == 0
        else:
            size, memory = _largest(setup, file, unit, again)
        sizes[unit.setting] = size
        needs.append(memory)
    worst = max(needs, key=lambda memory: memory.total)
    precision = read_settings(setup, file, BatchShape(setup.config.gpus, 1, setup.config.gpus)).precision
    return Candidate(file, sizes, worst, divides, divides and worst.total <= setup.room, again, precision)


def rows_of_rank(setup: Setup, unit: Unit) -> int:
    """What a micro-batch of these steps must divide: the rows of a rank, of all their batches."""
    return math.gcd(*(first.batch_size // setup.config.gpus for first, _ in unit.phases))


def _largest(setup: Setup, file: str, unit: Unit, checkpointing: bool) -> tuple[int, MemoryEstimate]:
    """The largest micro-batch with which all steps of a unit fit, by bisection over those that divide their rows."""
    rows = rows_of_rank(setup, unit)
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]

    def memory(size: int) -> MemoryEstimate:
        return _unit_memory(setup, file, unit, size, checkpointing)

    low, high, best = 1, len(sizes) - 1, (sizes[0], memory(sizes[0]))
    while low <= high and best[1].total <= setup.room:
        middle = (low + high) // 2
        found = memory(sizes[middle])
        if found.total <= setup.room:
            best, low = (sizes[middle], found), middle + 1
        else:
            high = middle - 1
    return best


def _unit_memory(setup: Setup, file: str, unit: Unit, size: int, checkpointing: bool) -> MemoryEstimate:
    """What a rank needs in those steps of a unit that need most."""
    found = [_phase_memory(setup, file, first, last, size, checkpointing) for first, last in unit.phases]
    return max(found, key=lambda memory: memory.total)


def _phase_memory(
    setup: Setup, file: str, first: StepSettings, last: StepSettings, micro_batch_size: int, checkpointing: bool
) -> MemoryEstimate:
    """What a rank needs in the steps from first to last."""
    gpus = setup.config.gpus
    unit = micro_batch_size * gpus
    batch = max(1, first.batch_size // unit) * unit  # one that the micro-batch divides
    return estimate_phase(
        arch=setup.arch,
        objective=setup.objective,
        settings=read_settings(setup, file, BatchShape(batch, micro_batch_size, gpus)),
        steps=(replace(first, batch_size=batch, micro_batch_size=micro_batch_size), last),
        world_size=gpus,
        activation_checkpointing=checkpointing,
        device_type="cuda",
    )


def read_settings(setup: Setup, file: str, shape: BatchShape) -> DeepSpeedSettings:
    """A DeepSpeed file, checked for the GPU that is planned with.

    Raises:
        UsageError: if it is wrong.
    """
    tree: dict[str, Any] = read_deepspeed_json(file)
    device = Device("cuda", has_bf16=setup.config.gpu.lower() not in BEFORE_BF16)
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        tree.pop(key, None)  # a plan may try other sizes
    if problems := deepspeed_problems(tree, file, shape, device):
        raise UsageError("\n".join(problems))
    return complete_deepspeed_config(tree, shape, device)
