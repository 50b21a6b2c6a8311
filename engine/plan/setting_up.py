"""What is planned, found and checked: the model, the text, the steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from engine.config.arch import ArchConfig
from engine.config.cli import UsageError, collect, nearest
from engine.config.presets import resolve_arch
from engine.config.pretrain import OBJECTIVE_NAMES, DataConfig
from engine.data.shard_sources import open_shards
from engine.plan.batches import planned_objective
from engine.plan.config import PlanConfig
from engine.plan.rows import Source, Text
from engine.train.timeline import StepSettings, Timeline

USUAL_VOCABULARY = {True: 50_257, False: 30_522}  # GPT-2's and BERT's, by whether the model is causal
GIB = 2**30
WHOLE_RUN = "train.micro_batch_size"


@dataclass(frozen=True)
class Unit:
    """Steps that share one setting of the micro-batch.

    Attributes:
        setting: its dotted name.
        asked: rows that the run gives it.
        phases: first and last step of each kind of step.
    """

    setting: str
    asked: int
    phases: tuple[tuple[StepSettings, StepSettings], ...]


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

    def units(self) -> list[Unit]:
        """The run by settings of the micro-batch: that of the whole run, and those of stages that give their own."""
        found: dict[str, dict[tuple[int, int], tuple[StepSettings, StepSettings]]] = {}
        for first, last, _ in self.timeline.phases():
            kinds = found.setdefault(self._setting(first.stage), {})
            key = first.seq_length, first.batch_size
            kinds[key] = kinds.get(key, (first, last))[0], last
        return [
            Unit(name, next(iter(kinds.values()))[0].micro_batch_size, tuple(kinds.values()))
            for name, kinds in found.items()
        ]

    def _setting(self, stage: int) -> str:
        stages = self.config.stages
        own = bool(stages) and stages[stage].micro_batch_size is not None
        return f"stages.{stage}.micro_batch_size" if own else WHOLE_RUN


def set_up(config: PlanConfig) -> Setup:
    """Find and check everything but DeepSpeed's files.

    Raises:
        UsageError: all problems of the settings at once.
    """
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
    text = collect(problems, lambda: _text(config))
    if problems or not found or not text:
        raise UsageError("\n".join(problems))
    given = {name: value for name, value in vars(config.arch).items() if value is not None}
    causal = {**found[0], **given}.get("causal", False)
    size, origin = _vocabulary(config, text[1], causal)
    arch = ArchConfig(**{**found[0], **given, "vocab_size": size})
    timeline = Timeline(config.all_stages(), None if objective == "lm" else config.masking.rate_at)
    problems += arch.problems()
    planned = None if problems else collect(problems, lambda: planned_objective(objective, arch))
    if (longest := max(timeline.lengths())) > arch.max_positions:
        problems.append(
            f"rows of {longest} tokens are above arch.max_positions ({arch.max_positions}); shorten data.seq_length or "
            f"set --arch.max_positions {longest}"
        )
    if problems or planned is None:
        raise UsageError("\n".join(problems))
    return Setup(config, arch, objective, timeline, Text(planned.sequence_layout, text[0]), origin)


def _text(config: PlanConfig) -> tuple[tuple[Source, ...], int | None]:
    """What the shards tell of the text, and the size of their vocabulary; the default folder may be missing."""
    default = DataConfig().shards
    if config.data.shards == default and not Path(default).is_dir():
        return (), None
    sources, tokenizer = open_shards(config.data.shards)
    return tuple(Source.of(found.name, found.weight, found.manifest) for found in sources), tokenizer.vocab_size


def _vocabulary(config: PlanConfig, of_shards: int | None, causal: bool) -> tuple[int, str]:
    """The size of the vocabulary and where it is from."""
    if config.vocab_size is not None:
        return config.vocab_size, "given"
    if of_shards is not None:
        return of_shards, f"of {config.data.shards}"
    return USUAL_VOCABULARY[causal], f"assumed, {'GPT-2' if causal else 'BERT'}'s; --vocab_size gives another"
