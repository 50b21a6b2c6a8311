"""The whole configuration of a pretraining run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar

from engine.config.arch import ArchOverrides
from engine.config.cli import collect
from engine.config.masking import MaskingConfig
from engine.config.mixture import parse_shards
from engine.config.recipes import RECIPE_FOLDER
from engine.config.stages import MIN_LENGTH, Stage, StageConfig, endless_ramp, ramp_problems
from engine.config.train import TrainConfig

OBJECTIVE_NAMES = ("mlm", "mlm,nsp", "mlm,sop", "lm")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training text.

    Args:
        shards: folder written by `python -m preprocess shards`, or several mixed by weight: a:0.7,b:0.3.
        seq_length: tokens of a row, special tokens included; longer documents are cut.
        length_ramp: shorter rows first, as {step: seq_length until that step}.
        short_seq_prob: nsp and sop: share of the pairs that are cut to a random length (BERT's short_seq_prob).
    """

    shards: str = "shards/"
    seq_length: int = 128
    length_ramp: dict[int, int] = field(default_factory=dict)
    short_seq_prob: float = 0.1

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found: list[str] = []
        collect(found, lambda: parse_shards(self.shards))
        if self.seq_length < MIN_LENGTH:
            found.append(f"data.seq_length is {self.seq_length}; it must be at least {MIN_LENGTH}")
        if not 0 <= self.short_seq_prob <= 1:
            found.append(f"data.short_seq_prob is {self.short_seq_prob}; it must be in [0, 1]")
        return found + ramp_problems(
            "data.length_ramp", self.length_ramp, self.seq_length, "data.seq_length", MIN_LENGTH
        )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain a BERT- or GPT-2-class model on shards.

    Args:
        ds_config: DeepSpeed JSON file: precision, ZeRO, clipping, communication (see ds_configs/README.md).
        model: architecture: a preset's name, a YAML file, or a model folder with a config.json.
        arch: single settings of the architecture that replace the preset's.
        objective: mlm, mlm,nsp, mlm,sop or lm; the preset's own where not given.
        init_from: model folder whose weights the run starts from.
        masking: masked-language-model targets.
        data: the training text.
        train: the training loop.
        stages: where given, the run's stages one after another; what a stage does not give is the run's own setting.
        profile: write a trace of a few steps of this start into the run folder, for ui.perfetto.dev.
        backend: what moves tensors between ranks: nccl or gloo; nccl on GPUs and gloo on CPUs where not given.
        dry_run: check everything, print what would run and where, and end; no file is written.
        seed: seed of initial weights, data order, masking and dropout.
        local_rank: set by the deepspeed launcher; ignored, the environment decides.
    """

    RECIPES: ClassVar[Path] = RECIPE_FOLDER

    ds_config: str
    model: str = "bert-large"
    arch: ArchOverrides = field(default_factory=ArchOverrides)
    objective: str | None = None
    init_from: str | None = None
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stages: list[StageConfig] = field(default_factory=list)
    profile: bool = False
    backend: str | None = None
    dry_run: bool = False
    seed: int = 1
    local_rank: int = -1

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        found = []
        if not 0 <= self.seed < 2**63:
            found.append(f"seed is {self.seed}; it must be in [0, 2^63)")
        found += self.masking.problems() + self.data.problems() + self.train.problems()
        if self.stages:
            return found + self._stage_problems()
        return found + endless_ramp("data.length_ramp", self.data.length_ramp, self.train.steps, "data.seq_length")

    def _stage_problems(self) -> list[str]:
        stages = self.all_stages()
        found = [f"stages.{number}: {text}" for number, stage in enumerate(stages) for text in stage.problems()]
        given = [(number, stage.schedule) for number, stage in enumerate(self.stages) if stage.schedule]
        found += [f"stages.{number}: {text}" for number, schedule in given for text in schedule.unused()]
        steps = sum(stage.steps for stage in stages)
        if self.train.steps not in (TrainConfig().steps, steps):
            found.append(f"train.steps is {self.train.steps}, but the stages take {steps} steps; leave train.steps out")
        for name, ramp in (("train.batch_ramp", self.train.batch_ramp), ("data.length_ramp", self.data.length_ramp)):
            if ramp:
                found.append(f"{name} is given beside stages; give it in the stage it belongs to")
        return found

    def all_stages(self) -> list[Stage]:
        """The run's stages with all their settings; one where none are given."""
        whole = self.train.stage(self.data.seq_length, self.data.length_ramp)
        return [whole.overridden(stage) for stage in self.stages] or [whole]

    def completed(self) -> PretrainConfig:
        """The same run with what follows from other settings: its steps, and defaults of optimizer and schedules."""
        steps = sum(stage.steps for stage in self.all_stages())
        stages = [
            replace(stage, schedule=stage.schedule.completed()) if stage.schedule else stage for stage in self.stages
        ]
        return replace(self, train=replace(self.train.completed(), steps=steps), stages=stages)

    def unused(self, objective: str) -> list[str]:
        """Settings that are given and that an objective does not have; ``objective`` is the run's or the preset's."""
        found = []
        if objective == "lm":
            found = [
                f"masking.{item.name} is {getattr(self.masking, item.name)}, but objective lm masks nothing; remove it"
                for item in fields(self.masking)
                if getattr(self.masking, item.name) != item.default
            ]
        if "," not in objective and self.data.short_seq_prob != DataConfig().short_seq_prob:
            found.append(
                f"data.short_seq_prob is {self.data.short_seq_prob}, but objective {objective} has no pairs; remove it"
            )
        return found
