"""Settings of ``python -m engine.plan``: those of a pretraining run, and of the machines it is planned for."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from engine.config.cli import nearest
from engine.config.pretrain import DataConfig, PretrainConfig
from engine.config.train import BatchShape, TrainConfig

PEAK_NAMES = ("h200", "h100", "a100", "l40s", "v100", "4090", "3090")
BEFORE_BF16 = ("v100",)
# Settings of a run that a plan does not look at: refused as options, told where a file holds them.
NOT_PLANNED = ("init_from", "train.fixed_shapes", "train.compile", "backend", "dry_run", "profile")


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PretrainConfig):
    """Plan a pretraining run: does it fit, what takes which memory, how long will it take. All of a run's own settings
    can be given, ``--config`` with a recipe or a run's file too. Exit code 0: it fits; 1: it does not; 2: a mistake.

    Args:
        ds_config: DeepSpeed JSON file to judge; where not given, those of ds_configs are compared.
        gpus: GPUs, one rank each.
        gpu_memory: of one GPU in GiB, as it is sold: an H100 of 80 GB has 79.6 GiB.
        margin: share of it that is left for what is not counted: CUDA context, NCCL's buffers, fragmentation.
        gpu: the kind of GPU, for its peak in the file's precision: h200, h100 (both SXM), a100, l40s, v100 (SXM2),
            4090, 3090; train.peak_tflops goes before it.
        mfu: model-FLOPs utilisation that is assumed.
        vocab_size: tokens of the vocabulary; where not given, that of the shards, else what the model's kind has.
        json: print the figures as JSON.
    """

    ds_config: str | None = None  # type: ignore[assignment]
    gpus: int = 1
    gpu_memory: float = 80.0
    margin: float = 0.1
    gpu: str = "h100"
    mfu: float = 0.4
    vocab_size: int | None = None
    json: bool = False

    def not_planned(self) -> list[str]:
        """Settings that are given, in a file, and that a plan does not look at."""
        return [name for name in NOT_PLANNED if operator.attrgetter(name)(self) not in (None, False)]

    def own_defaults(self) -> dict[str, int]:
        """Which of rows, batch and steps are the engine's own because none were given, by option."""
        if self.stages:
            return {}
        usual = {
            "data.seq_length": DataConfig().seq_length,
            "train.batch_size": TrainConfig().batch_size,
            "train.steps": TrainConfig().steps,
        }
        return {name: value for name, value in usual.items() if operator.attrgetter(name)(self) == value}

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        found = super().problems()
        if self.gpus < 1:
            found.append(f"gpus is {self.gpus}; it must be at least 1")
        if not 0 < self.gpu_memory < 10_000:
            found.append(f"gpu_memory is {self.gpu_memory}; it must be the GiB of one GPU, such as 80")
        if not 0 <= self.margin < 1:
            found.append(f"margin is {self.margin}; it must be in [0, 1), such as 0.1")
        if not 0 < self.mfu <= 1:
            found.append(f"mfu is {self.mfu}; it must be above 0 and at most 1, such as 0.4")
        if self.gpu.lower() not in PEAK_NAMES:
            found.append(
                f"gpu is {self.gpu!r}; there are {', '.join(PEAK_NAMES)}{nearest(self.gpu.lower(), PEAK_NAMES)}; for "
                "another kind give its peak with --train.peak_tflops"
            )
        if self.vocab_size is not None and self.vocab_size < 8:
            found.append(f"vocab_size is {self.vocab_size}; it must be at least 8")
        return found or self._batch_problems()

    def _batch_problems(self) -> list[str]:
        """Batches that the GPUs cannot share; the micro-batch is another matter, which the plan may choose."""
        sizes = {
            size for stage in self.completed().all_stages() for size in [stage.batch_size, *stage.batch_ramp.values()]
        }
        return [text for size in sorted(sizes) for text in BatchShape(size, 1, self.gpus).problems()]
