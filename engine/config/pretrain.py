"""The whole configuration of a pretraining run."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.config.arch import ArchOverrides
from engine.config.train import TrainConfig

OBJECTIVE_NAMES = ("mlm", "lm")


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Masked-language-model targets, drawn anew in every epoch (BERT, section 3.1).

    Args:
        rate: share of a row's tokens that become targets.
        whole_word: draw whole words instead of single tokens.
        mask_share: share of the targets replaced by the mask token.
        random_share: share of the targets replaced by a random token; the rest stays as it is.
    """

    rate: float = 0.15
    whole_word: bool = False
    mask_share: float = 0.8
    random_share: float = 0.1

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = []
        if not 0 < self.rate < 1:
            found.append(f"masking.rate is {self.rate}; it must be above 0 and below 1")
        if not (self.mask_share >= 0 and self.random_share >= 0 and self.mask_share + self.random_share <= 1):
            found.append(
                f"masking.mask_share ({self.mask_share}) and masking.random_share ({self.random_share}) "
                "must not be negative and sum to 1 at most"
            )
        return found


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
