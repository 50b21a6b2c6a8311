"""How long a run takes: its operations over what the GPUs do at an assumed utilisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.arch import ArchConfig
from engine.plan.batches import expected_counts
from engine.train.flops import flops_of
from engine.train.timeline import Timeline

FILL = 0.995  # share of a row that the row plan fills, at least
SECONDS_OF_DAY = 86_400.0


@dataclass(frozen=True)
class Text:
    """What is known of the training text.

    Attributes:
        tokens: of all documents; None where there are no shards yet.
        documents: how many they are.
        special: tokens that the objective adds to every sequence.
    """

    tokens: int | None
    documents: int | None
    special: int

    def lengths(self, seq_length: int) -> list[int]:
        """Tokens of the sequences of a row: equal ones of the documents' mean length, or one that fills it."""
        filled = round(FILL * seq_length)
        if self.tokens is None or not self.documents:
            return [filled]
        room = seq_length - self.special
        mean = self.tokens / self.documents
        piece = mean / -(-mean // room) if mean > room else mean
        num = max(1, round(filled / (piece + self.special)))
        base, more = divmod(filled, num)
        return [base + (number < more) for number in range(num)]

    def rows(self, seq_length: int) -> float | None:
        """Rows of an epoch; None without shards."""
        if self.tokens is None:
            return None
        lengths = self.lengths(seq_length)
        return self.tokens / max(1, sum(lengths) - self.special * len(lengths))


@dataclass(frozen=True)
class Duration:
    """What a run comes to.

    Attributes:
        steps: optimizer steps.
        tokens: of the whole run.
        flops: operations of the whole run.
        seconds: at the assumed utilisation.
        epochs: passes over the text; None without shards.
    """

    steps: int
    tokens: int
    flops: float
    seconds: float
    epochs: float | None

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
    flops, tokens, epochs = 0.0, 0, 0.0
    for first, last, steps in timeline.phases():
        lengths = text.lengths(first.seq_length)
        rates = [rate for rate in (first.masking_rate, last.masking_rate) if rate is not None]
        counts = expected_counts(objective, lengths, sum(rates) / len(rates) if rates else 0.0, text.special)
        rows = steps * first.batch_size
        flops += rows * _row_flops(arch, lengths, counts)
        tokens += rows * sum(lengths)
        epochs += rows / (text.rows(first.seq_length) or float("inf"))
    return Duration(timeline.steps, tokens, flops, flops / flops_per_second, epochs if text.tokens else None)


def _row_flops(arch: ArchConfig, lengths: Sequence[int], counts: dict[str, float]) -> float:
    return flops_of(arch, sum(lengths), sum(length * length for length in lengths), counts)
