"""Settings of masking: what is refused, and the share of masked tokens over a run."""

from __future__ import annotations

import pytest

from engine.config.masking import MaskingConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final_rate": 1.0}, "masking.final_rate is 1.0; it must be above 0 and below 1"),
        ({"rate_schedule": "step"}, "masking.rate_schedule is 'step'; it must be one of linear, cosine"),
        (
            {"rate_schedule": "cosine"},
            "masking.rate_schedule is cosine, but masking.final_rate is not given; give it",
        ),
        ({"span": "words"}, "masking.span is 'words'; it must be one of none, geometric, ngram"),
        ({"span": "ngram", "max_span": 0}, "masking.max_span is 0; it must be at least 1"),
        ({"max_span": 3}, "masking.max_span is 3, but masking.span is none; set masking.span too"),
    ],
)
def test_problems(settings, message):
    assert MaskingConfig(**settings).problems() == [message]


def test_longest_span_follows_the_kind():
    assert [MaskingConfig(span=span).longest_span() for span in ("none", "geometric", "ngram")] == [1, 10, 3]
    assert MaskingConfig(span="ngram", max_span=5).longest_span() == 5
    assert MaskingConfig(span="geometric", max_span=5).problems() == []


def test_rate_over_a_run():
    assert [MaskingConfig(rate=0.2).rate_at(progress) for progress in (0.0, 0.5, 1.0)] == [0.2] * 3
    linear = MaskingConfig(rate=0.3, final_rate=0.15)
    assert linear.problems() == []
    places = (-1.0, 0.0, 0.25, 0.5, 1.0, 2.0)
    assert [linear.rate_at(p) for p in places] == pytest.approx([0.3, 0.3, 0.2625, 0.225, 0.15, 0.15])
    cosine = MaskingConfig(rate=0.1, final_rate=0.5, rate_schedule="cosine")
    assert [cosine.rate_at(p) for p in places] == pytest.approx([0.1, 0.1, 0.1 + 0.4 * 0.14644661, 0.3, 0.5, 0.5])
