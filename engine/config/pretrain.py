"""The whole configuration of a pretraining run."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.config.arch import ArchOverrides
from engine.config.masking import MaskingConfig
from engine.config.train import TrainConfig

OBJECTIVE_NAMES = ("mlm", "lm")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training text.

    Args:
        shards: folder written by `python -m preprocess shards`.
        seq_length: tokens of a row, special tokens included; longer documents are cut.
    """

    shards: str = "shards/"
    seq_length: int = 128

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        if self.seq_length < 8:
            return [f"data.seq_length is {self.seq_length}; it must be at least 8"]
        return []


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain a BERT- or GPT-2-class model on shards.

    Args:
        ds_config: DeepSpeed JSON file: precision, ZeRO, clipping, communication (see ds_configs/README.md).
        model: architecture: a preset's name, a YAML file, or a model folder with a config.json.
        arch: single settings of the architecture that replace the preset's.
        objective: mlm or lm; the preset's own where not given.
        init_from: model folder whose weights the run starts from.
        masking: masked-language-model targets.
        data: the training text.
        train: the training loop.
        seed: seed of initial weights, data order, masking and dropout.
        local_rank: set by the deepspeed launcher; ignored, the environment decides.
    """

    ds_config: str
    model: str = "bert-large"
    arch: ArchOverrides = field(default_factory=ArchOverrides)
    objective: str | None = None
    init_from: str | None = None
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 1
    local_rank: int = -1

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        found = []
        if not 0 <= self.seed < 2**63:
            found.append(f"seed is {self.seed}; it must be in [0, 2^63)")
        return found + self.masking.problems() + self.data.problems() + self.train.problems()
