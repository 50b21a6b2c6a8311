"""From the settings of a plan to its figures: candidates, what fits, what would help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from engine.config.arch import ArchConfig
from engine.config.cli import UsageError, collect, nearest
from engine.config.deepspeed_json import (
    DeepSpeedSettings,
    Device,
    complete_deepspeed_config,
    deepspeed_problems,
    read_deepspeed_json,
)
from engine.config.presets import resolve_arch
from engine.config.pretrain import OBJECTIVE_NAMES, DataConfig
from engine.config.train import BatchShape
from engine.data.shard_sources import open_shards
from engine.plan.batches import planned_objective, special_tokens
from engine.plan.config import BEFORE_BF16, PlanConfig
from engine.plan.duration import Duration, Text, estimate_duration
from engine.plan.memory import MemoryEstimate, estimate_memory, number_of_parameters
from engine.train.flops import PEAK_TFLOPS
from engine.train.timeline import StepSettings, Timeline

FILES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
FOLDER = Path(__file__).resolve().parent.parent.parent / "ds_configs"
USUAL_VOCABULARY = {True: 50_257, False: 30_522}  # GPT-2's and BERT's, by whether the model is causal
GIB = 2**30


@dataclass(frozen=True)
class Setup:
    """What is planned, found and checked."""

    config: PlanConfig
    arch: ArchConfig
    objective: str
    timeline: Timeline
    text: Text
    vocabulary: str

    @property
    def room(self) -> int:
        """Bytes of a GPU that may be planned with."""
        return int(self.config.gpu_memory * (1 - self.config.margin) * GIB)

    def phases(self) -> list[tuple[StepSettings, StepSettings]]:
        """First and last step of each kind of step: those with the same rows, batch and micro-batch."""
        found: dict[tuple[int, int, int], tuple[StepSettings, StepSettings]] = {}
        for first, last, _ in self.timeline.phases():
            key = first.seq_length, first.batch_size, first.micro_batch_size
            found[key] = found.get(key, (first, last))[0], last
        return list(found.values())

    @property
    def peak_tflops(self) -> float:
        """Of one GPU."""
        given = self.config.train.peak_tflops
        return given if given is not None else PEAK_TFLOPS[self.config.gpu.upper()]


@dataclass(frozen=True)
class Candidate:
    """A DeepSpeed file with micro-batches, and what they need.

    Attributes:
        file: name or path.
        micro_batches: rows of a forward pass of one rank, by rows of a step and length, in the order of the run.
        memory: where in the run it is most.
        fits: whether it fits into what may be planned with.
        checkpointing: whether layers are computed again in the backward pass.
    """

    file: str
    micro_batches: tuple[int, ...]
    memory: MemoryEstimate
    fits: bool
    checkpointing: bool


@dataclass(frozen=True)
class Plan:
    """The answer.

    Attributes:
        setup: what is planned.
        parameters: of the model.
        candidates: in the order of the files.
        best: the one to take, or, where none fits, the one that needs least.
        advice: changes with which it would fit; empty where it does.
        largest: the largest micro-batches with which a file that was given fits; None where none was given.
        duration: of the run.
    """

    setup: Setup
    parameters: int
    candidates: tuple[Candidate, ...]
    best: Candidate
    advice: tuple[Candidate, ...]
    largest: Candidate | None
    duration: Duration


def make_plan(config: PlanConfig) -> Plan:
    """Answer before launching.

    Raises:
        UsageError: all problems of the settings at once.
    """
    setup = _set_up(config)
    candidates = tuple(judge(setup, file) for file in _files(config))
    fitting = [candidate for candidate in candidates if candidate.fits]
    best = fitting[0] if fitting else min(candidates, key=lambda found: found.memory.total)
    flops = config.gpus * setup.peak_tflops * 1e12 * config.mfu
    duration = estimate_duration(setup.arch, setup.objective, setup.timeline, setup.text, flops)
    advice = () if fitting else tuple(_advice(setup))
    largest = judge(setup, best.file, limited=False) if config.ds_config and best.fits else None
    parameters = number_of_parameters(setup.arch, setup.objective)
    return Plan(setup, parameters, candidates, best, advice, largest, duration)


def _files(config: PlanConfig) -> list[str]:
    """The file that is given, else those that ship, in the precision of the GPU."""
    return [config.ds_config] if config.ds_config is not None else _shipped(config)


def _shipped(config: PlanConfig) -> list[str]:
    suffix = "" if config.gpu.lower() in BEFORE_BF16 else "_bf16"
    return [str(FOLDER / f"{name}{suffix}.json") for name in FILES]


def _set_up(config: PlanConfig) -> Setup:
    problems = config.problems()
    if problems:
        raise UsageError("\n".join(problems))
    config = cast(PlanConfig, config.completed())
    found = collect(problems, lambda: resolve_arch(config.model))
    objective = config.objective or (found[1] if found else OBJECTIVE_NAMES[0])
    if objective not in OBJECTIVE_NAMES:
        known = ", ".join(OBJECTIVE_NAMES)
        problems.append(f"unknown objective {objective!r}; there are {known}{nearest(objective, OBJECTIVE_NAMES)}")
    elif found:
        problems += config.unused(objective)
    text = collect(problems, lambda: _text(config, objective))
    if problems or not found or not text:
        raise UsageError("\n".join(problems))
    given = {name: value for name, value in vars(config.arch).items() if value is not None}
    causal = {**found[0], **given}.get("causal", False)
    size, origin = _vocabulary(config, text[1], causal)
    arch = ArchConfig(**{**found[0], **given, "vocab_size": size})
    timeline = Timeline(config.all_stages(), None if objective == "lm" else config.masking.rate_at)
    problems += arch.problems()
    if not problems:
        collect(problems, lambda: planned_objective(objective, arch))
    if (longest := max(timeline.lengths())) > arch.max_positions:
        problems.append(
            f"rows of {longest} tokens are above arch.max_positions ({arch.max_positions}); shorten data.seq_length or "
            f"set --arch.max_positions {longest}"
        )
    if problems:
        raise UsageError("\n".join(problems))
    return Setup(config, arch, objective, timeline, text[0], origin)


def _text(config: PlanConfig, objective: str) -> tuple[Text, int | None]:
    """What the shards tell of the text, and the size of their vocabulary; the default folder may be missing."""
    special, default = special_tokens(objective), DataConfig().shards
    if config.data.shards == default and not Path(default).is_dir():
        return Text(None, None, special), None
    sources, tokenizer = open_shards(config.data.shards)
    shards = [shard for source in sources for shard in source.manifest.shards]
    tokens, documents = sum(shard.num_tokens for shard in shards), sum(shard.num_documents for shard in shards)
    return Text(tokens, documents, special), tokenizer.vocab_size


def _vocabulary(config: PlanConfig, of_shards: int | None, causal: bool) -> tuple[int, str]:
    """The size of the vocabulary and where it is from."""
    if config.vocab_size is not None:
        return config.vocab_size, "given"
    if of_shards is not None:
        return of_shards, f"of {config.data.shards}"
    return USUAL_VOCABULARY[causal], f"assumed, {'GPT-2' if causal else 'BERT'}'s; --vocab_size gives another"


def judge(setup: Setup, file: str, checkpointing: bool | None = None, limited: bool | None = None) -> Candidate:
    """The largest micro-batches with which a file fits; those of one row where none does.

    Args:
        setup: what is planned.
        file: DeepSpeed JSON.
        checkpointing: whether layers are computed again; the run's own setting where not given.
        limited: whether they may be no larger than the run asks for; where not given, if it names a file.
    """
    limited = setup.config.ds_config is not None if limited is None else limited
    checkpointing = setup.config.train.activation_checkpointing if checkpointing is None else checkpointing
    sizes: list[int] = []
    worst: MemoryEstimate | None = None
    fits = True
    for first, last in setup.phases():
        size, memory = _largest(setup, file, (first, last), checkpointing, limited)
        sizes.append(size)
        fits = fits and memory.total <= setup.room
        worst = memory if worst is None or memory.total > worst.total else worst
    assert worst is not None
    return Candidate(file, tuple(sizes), worst, fits, checkpointing)


def _largest(
    setup: Setup, file: str, phase: tuple[StepSettings, StepSettings], checkpointing: bool, limited: bool
) -> tuple[int, MemoryEstimate]:
    """The largest micro-batch of a phase that fits, by bisection over those that divide the rows of a rank."""
    first, last = phase
    rows = first.batch_size // setup.config.gpus
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    if limited:
        sizes = [size for size in sizes if size <= first.micro_batch_size]

    def memory(size: int) -> MemoryEstimate:
        return phase_memory(setup, file, first, last, size, checkpointing)

    low, high, best = 1, len(sizes) - 1, (sizes[0], memory(sizes[0]))
    while low <= high and best[1].total <= setup.room:
        middle = (low + high) // 2
        found = memory(sizes[middle])
        if found.total <= setup.room:
            best, low = (sizes[middle], found), middle + 1
        else:
            high = middle - 1
    return best


def phase_memory(
    setup: Setup, file: str, first: StepSettings, last: StepSettings, micro_batch_size: int, checkpointing: bool
) -> MemoryEstimate:
    """What a rank needs in the steps from first to last."""
    rates = [rate for rate in (first.masking_rate, last.masking_rate) if rate is not None]
    return estimate_memory(
        arch=setup.arch,
        objective=setup.objective,
        settings=read_settings(file, BatchShape(first.batch_size, micro_batch_size, setup.config.gpus)),
        optimizer=first.optimizer,
        world_size=setup.config.gpus,
        seq_length=first.seq_length,
        micro_batch_size=micro_batch_size,
        masking_rate=max(rates, default=0.0),
        activation_checkpointing=checkpointing,
        device_type="cuda",
        lengths=setup.text.lengths(first.seq_length) * micro_batch_size,
    )


def read_settings(file: str, shape: BatchShape) -> DeepSpeedSettings:
    """A DeepSpeed file, checked for a GPU.

    Raises:
        UsageError: if it is wrong.
    """
    tree: dict[str, Any] = read_deepspeed_json(file)
    device = Device("cuda", has_bf16=True)
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        tree.pop(key, None)  # a plan may try other sizes
    if problems := deepspeed_problems(tree, file, shape, device):
        raise UsageError("\n".join(problems))
    return complete_deepspeed_config(tree, shape, device)


def _advice(setup: Setup) -> Iterator[Candidate]:
    """Changes with which it would fit: another file, layers computed again, both; the first that do."""
    files = [*_files(setup.config), *_shipped(setup.config)]
    for checkpointing in (False, True):
        found = [judge(setup, file, checkpointing, limited=False) for file in dict.fromkeys(files)]
        yield from [candidate for candidate in found if candidate.fits][:2]
