"""Settings of masked-language-model targets. Never imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

DEFAULT_MAX_SPAN = {"geometric": 10, "ngram": 3}
SPANS = ("none", *DEFAULT_MAX_SPAN)
RATE_SCHEDULES = ("linear", "cosine")


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Masked-language-model targets, drawn anew in every epoch (BERT, section 3.1).

    Args:
        rate: share of a row's tokens that become targets; where final_rate is given, at the run's begin.
        final_rate: the share at the run's end; where not given, the share is the same all along.
        rate_schedule: from rate to final_rate: linear or cosine.
        whole_word: draw whole words instead of single tokens.
        span: draw runs of tokens (of words where whole_word): none, geometric (SpanBERT) or ngram (ALBERT).
        max_span: longest run; where not given 10 for geometric and 3 for ngram.
        mask_share: share of the targets replaced by the mask token.
        random_share: share of the targets replaced by a random token; the rest stays as it is.
    """

    rate: float = 0.15
    final_rate: float | None = None
    rate_schedule: str = RATE_SCHEDULES[0]
    whole_word: bool = False
    span: str = SPANS[0]
    max_span: int | None = None
    mask_share: float = 0.8
    random_share: float = 0.1

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = [
            f"masking.{name} is {value}; it must be above 0 and below 1"
            for name, value in (("rate", self.rate), ("final_rate", self.final_rate))
            if value is not None and not 0 < value < 1
        ]
        if self.rate_schedule not in RATE_SCHEDULES:
            found.append(
                f"masking.rate_schedule is {self.rate_schedule!r}; it must be one of {', '.join(RATE_SCHEDULES)}"
            )
        elif self.final_rate is None and self.rate_schedule != RATE_SCHEDULES[0]:
            found.append(f"masking.rate_schedule is {self.rate_schedule}, but masking.final_rate is not given; give it")
        if not (self.mask_share >= 0 and self.random_share >= 0 and self.mask_share + self.random_share <= 1):
            found.append(
                f"masking.mask_share ({self.mask_share}) and masking.random_share ({self.random_share}) "
                "must not be negative and sum to 1 at most"
            )
        return found + self._span_problems()

    def _span_problems(self) -> list[str]:
        if self.span not in SPANS:
            return [f"masking.span is {self.span!r}; it must be one of {', '.join(SPANS)}"]
        if self.max_span is not None and self.max_span < 1:
            return [f"masking.max_span is {self.max_span}; it must be at least 1"]
        if self.max_span is not None and self.span == SPANS[0]:
            return [f"masking.max_span is {self.max_span}, but masking.span is none; set masking.span too"]
        return []

    def longest_span(self) -> int:
        """The longest run of units drawn together; 1 where there are no spans."""
        return self.max_span or DEFAULT_MAX_SPAN.get(self.span, 1)

    def rate_at(self, progress: float) -> float:
        """Share of tokens that become targets.

        Args:
            progress: of the run, from 0 to 1; what lies outside counts as the nearer end.
        """
        if self.final_rate is None:
            return self.rate
        progress = min(1.0, max(0.0, progress))
        shape = progress if self.rate_schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))
        return self.rate + (self.final_rate - self.rate) * shape
