"""Learning rates, worked by hand."""

from __future__ import annotations

import math

import pytest

from engine.config.schedule import ScheduleConfig
from engine.optim.schedule import rate_factor, warmup_steps


def rates(steps: int, **settings: float | str) -> list[float]:
    config = ScheduleConfig(**settings)
    assert config.problems() == []
    return [rate_factor(config, step, steps) for step in range(steps)]


def test_linear():
    assert rates(6, warmup_steps=2) == pytest.approx([1 / 2, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5])
    assert rates(6, warmup_steps=2, final_ratio=0.5) == pytest.approx([1 / 2, 1, 0.9, 0.8, 0.7, 0.6])


def test_cosine():
    # 3 steps of descent in 4 parts: cos of 45, 90 and 135 degrees
    half = math.sqrt(0.5) / 2
    assert rates(4, name="cosine", warmup_steps=1) == pytest.approx([1, 0.5 + half, 0.5, 0.5 - half])
    low = [0.2 + 0.8 * shape for shape in (0.5 + half, 0.5, 0.5 - half)]
    assert rates(4, name="cosine", warmup_steps=1, final_ratio=0.2) == pytest.approx([1, *low])


def test_constant():
    assert rates(5, name="constant", warmup_steps=3) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    assert rates(3, name="constant", warmup_ratio=0.0) == [1, 1, 1]


def test_no_warmup():
    assert rates(3, warmup_ratio=0.0) == pytest.approx([3 / 4, 2 / 4, 1 / 4])


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_every_step_has_a_rate_and_the_peak_ends_the_warmup(name, steps, warmup):
    found = rates(steps, name=name, warmup_steps=warmup, warmup_ratio=0.0)
    assert min(found) > 0 and max(found) <= 1
    rise, fall = found[:warmup], found[max(0, warmup - 1) :]
    assert rise == sorted(rise) and fall == sorted(fall, reverse=True)
    if 0 < warmup <= steps:
        assert found[warmup - 1] == 1.0
        assert found[warmup:] == [] or found[warmup] < 1.0


def test_final_ratio_is_reached_just_after_the_last_step():
    for name in ("linear", "cosine"):
        config = ScheduleConfig(name=name, warmup_steps=2, final_ratio=0.25)
        assert rate_factor(config, 10, 10) == pytest.approx(0.25)
        assert rate_factor(config, 9, 10) > 0.25


def test_steps_of_warmup_beat_the_ratio():
    assert warmup_steps(ScheduleConfig(warmup_steps=3, warmup_ratio=0.5), 100) == 3
    assert warmup_steps(ScheduleConfig(warmup_ratio=0.5), 101) == 51
    assert warmup_steps(ScheduleConfig(), 1000) == 100
    assert warmup_steps(ScheduleConfig(warmup_ratio=0.0), 1000) == 0


def test_warmup_longer_than_the_run_only_rises():
    assert rates(3, warmup_steps=10) == pytest.approx([0.1, 0.2, 0.3])
    assert rates(4, warmup_ratio=1.0) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
