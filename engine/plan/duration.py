"""How long a run takes: its operations over what the GPUs do at an assumed utilisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.arch import ArchConfig
from engine.plan.batches import expected_counts
from engine.plan.rows import Text
from engine.train.flops import PEAK_TFLOPS, flops_of
from engine.train.timeline import Timeline

SECONDS_OF_DAY = 86_400.0
GPU_NAMES = {
    "h200": "H200 SXM", "h100": "H100 SXM", "a100": "A100", "l40s": "L40S", "v100": "V100 SXM2", "4090": "RTX 4090",
    "3090": "RTX 3090",
}  # fmt: skip
# fp32 peak of one device in TFLOP/s, from the makers' data sheets. Without TF32, which torch leaves off for matmul.
FP32_TFLOPS = {"h200": 67.0, "h100": 67.0, "a100": 19.5, "l40s": 91.6, "v100": 15.7, "4090": 82.6, "3090": 35.6}


def peak_of(gpu: str, precision: str) -> float:
    """Peak of one GPU in TFLOP/s, dense, in the precision of a run."""
    return FP32_TFLOPS[gpu.lower()] if precision == "fp32" else PEAK_TFLOPS[gpu.upper()]


@dataclass(frozen=True)
class Duration:
    """What a run comes to.

    Attributes:
        steps: optimizer steps.
        tokens: of the whole run.
        flops: operations of the whole run.
        seconds: at the assumed utilisation.
        epochs: passes over each source of the text; none without shards.
    """

    steps: int
    tokens: int
    flops: float
    seconds: float
    epochs: dict[str, float]

    @property
    def days(self) -> float:
        """Days at the assumed utilisation."""
        return self.seconds / SECONDS_OF_DAY


def estimate_duration(
    arch: ArchConfig, objective: str, timeline: Timeline, text: Text, flops_per_second: float
) -> Duration:
    """Sum up the operations of all steps.

    Args:
        arch: the architecture.
        objective: its name.
        timeline: stages and ramps.
        text: the training text.
        flops_per_second: of all GPUs together, at the assumed utilisation.
    """
    flops, tokens = 0.0, 0.0
    epochs = {source.name: 0.0 for source in text.sources}
    for first, last, steps in timeline.phases():
        rates = [rate for rate in (first.masking_rate, last.masking_rate) if rate is not None]
        rate = sum(rates) / len(rates) if rates else 0.0
        rows = steps * first.batch_size
        for share, lengths in text.rows_of(first.seq_length):
            counts = expected_counts(objective, lengths, rate, text.layout.per_sequence)
            flops += share * rows * _row_flops(arch, lengths, counts)
            tokens += share * rows * sum(lengths)
        for source in text.sources:
            epochs[source.name] += source.weight * rows / source.rows(first.seq_length, text.layout)
    return Duration(timeline.steps, round(tokens), flops, flops / flops_per_second, epochs)


def _row_flops(arch: ArchConfig, lengths: Sequence[int], counts: dict[str, float]) -> float:
    return flops_of(arch, sum(lengths), sum(length * length for length in lengths), counts)
