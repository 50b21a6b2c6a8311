"""From the settings of a plan to its figures: candidates, what fits, what would help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.plan.config import BEFORE_BF16, PlanConfig
from engine.plan.duration import Duration, estimate_duration, peak_of
from engine.plan.judging import Candidate, judge
from engine.plan.memory import number_of_parameters
from engine.plan.setting_up import Setup, set_up

FILES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
FOLDER = Path(__file__).resolve().parent.parent.parent / "ds_configs"


@dataclass(frozen=True)
class Plan:
    """The answer.

    Attributes:
        setup: what is planned.
        parameters: of the model.
        candidates: in the order of the files.
        best: the one that was asked for, where a file was given; else the one to take, or, where none fits, the one
            that needs least.
        advice: changes with which it would fit; empty where it does.
        largest: the largest micro-batches with which a file that was given fits; None where none was given.
        peak_tflops: of one GPU, that the time is reckoned with.
        duration: of the run.
    """

    setup: Setup
    parameters: int
    candidates: tuple[Candidate, ...]
    best: Candidate
    advice: tuple[Candidate, ...]
    largest: Candidate | None
    peak_tflops: float
    duration: Duration

    @property
    def asked(self) -> Candidate | None:
        """The file that was given with the run's own micro-batches; None where none was given."""
        return self.best if self.setup.config.ds_config is not None else None


def make_plan(config: PlanConfig) -> Plan:
    """Answer before launching.

    Raises:
        UsageError: all problems of the settings at once.
    """
    setup = set_up(config)
    given = config.ds_config is not None
    candidates = tuple(judge(setup, file, asked=given) for file in _files(config))
    fitting = [candidate for candidate in candidates if candidate.fits]
    best = fitting[0] if fitting else min(candidates, key=lambda found: found.memory.total)
    given_peak = config.train.peak_tflops
    peak = given_peak if given_peak is not None else peak_of(config.gpu, best.precision)
    flops = config.gpus * peak * 1e12 * config.mfu
    duration = estimate_duration(setup.arch, setup.objective, setup.timeline, setup.text, flops)
    advice = () if fitting else tuple(_advice(setup))
    largest = judge(setup, best.file) if given and best.fits else None
    parameters = number_of_parameters(setup.arch, setup.objective)
    return Plan(setup, parameters, candidates, best, advice, largest, peak, duration)


def _files(config: PlanConfig) -> list[str]:
    """The file that is given, else those that ship, in the precision of the GPU."""
    return [config.ds_config] if config.ds_config is not None else _shipped(config)


def _shipped(config: PlanConfig) -> list[str]:
    suffix = "" if config.gpu.lower() in BEFORE_BF16 else "_bf16"
    return [str(FOLDER / f"{name}{suffix}.json") for name in FILES]


def _advice(setup: Setup) -> Iterator[Candidate]:
    """What would fit: smaller micro-batches, another file, layers computed again; the first that do."""
    files = list(dict.fromkeys([*_files(setup.config), *_shipped(setup.config)]))
    for checkpointing in dict.fromkeys((setup.config.train.activation_checkpointing, True)):
        found = [judge(setup, file, checkpointing) for file in files]
        yield from [candidate for candidate in found if candidate.fits][:2]
