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


def test_polynomial():
    # 3 steps of descent in 4 parts
    found = rates(4, name="polynomial", warmup_steps=1, power=2.0)
    assert found == pytest.approx([1, 0.75**2, 0.5**2, 0.25**2])
    assert rates(9, name="polynomial", warmup_steps=2) == rates(9, warmup_steps=2)


def bert_s(step: int, steps: int, warmup: int) -> float:
    """google-research/bert, optimization.py: the decay over all steps, and the warmup in place of its beginning."""
    decayed = (1.0 - 0.0) * (1 - min(step, steps) / steps) ** 1.0 + 0.0  # tf.train.polynomial_decay
    is_warmup = float(step < warmup)
    return (1.0 - is_warmup) * decayed + is_warmup * (step / warmup)


def nvidia_s(last_epoch: int, steps: int, warmup: float, degree: float = 0.5) -> float:
    """NVIDIA/DeepLearningExamples, BERT/schedulers.py, PolyWarmUpScheduler; its first step has last_epoch 1."""
    progress = last_epoch / steps
    return progress / warmup if progress < warmup else (1.0 - progress) ** degree


def test_decay_from_the_first_step_as_bert_s():
    found = rates(1000, warmup_steps=10, decay_from="start")
    assert found[:9] == pytest.approx([bert_s(step + 1, 1000, 10) for step in range(9)])  # its first step has rate 0
    assert found[9] == 1.0
    assert found[10:] == pytest.approx([bert_s(step, 1000, 10) for step in range(10, 1000)])
    assert found[10] == pytest.approx(0.99) and found[999] == pytest.approx(0.001)


@pytest.mark.parametrize(("steps", "warmup", "after"), [(7038, 0.2843, 0.846), (1563, 0.128, 0.934)])
def test_decay_from_the_first_step_as_nvidia_s_lamb(steps, warmup, after):
    found = rates(steps, name="polynomial", power=0.5, warmup_ratio=warmup, decay_from="start")
    peak = found.index(1.0)
    assert found[:peak] == pytest.approx([nvidia_s(step + 1, steps, warmup) for step in range(peak)], rel=1e-2)
    assert found[peak + 1 :] == pytest.approx([nvidia_s(step, steps, warmup) for step in range(peak + 1, steps)])
    assert found[peak + 1] == pytest.approx(after, abs=1e-3)
    assert nvidia_s(steps, steps, warmup) == 0.0  # its last step, which has a rate here


def test_decay_from_the_first_step_of_a_cosine():
    half = math.sqrt(0.5) / 2
    assert rates(4, name="cosine", warmup_steps=1, decay_from="start") == pytest.approx(
        [1, 0.5 + half, 0.5, 0.5 - half]
    )
    assert rates(4, name="cosine", warmup_steps=2, decay_from="start") == pytest.approx([0.5, 1, 0.5, 0.5 - half])
    assert rates(3, warmup_ratio=0.0, decay_from="start", final_ratio=0.4) == pytest.approx([1, 0.8, 0.6])


def test_cosine_restarts():
    # 8 steps in 2 cycles: each begins at its peak and goes down a half cosine over 4 steps
    found = rates(8, name="cosine_restarts", warmup_ratio=0.0, cycles=2, cycle_decay=0.5)
    half = math.sqrt(0.5) / 2
    cycle = [1, 0.5 + half, 0.5, 0.5 - half]
    assert found == pytest.approx([*cycle, *[0.5 * rate for rate in cycle]])
    assert min(rates(100, name="cosine_restarts", final_ratio=0.1, cycles=3)) >= 0.1


def test_inverse_sqrt():
    found = rates(16, name="inverse_sqrt", warmup_steps=4)
    assert found[:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
    assert found[15] == pytest.approx(1 / 2) and found[8] == pytest.approx(2 / 3)  # sqrt(4 / 16), sqrt(4 / 9)
    assert rates(16, name="inverse_sqrt", warmup_steps=4, final_ratio=0.6)[15] == 0.6


def test_tri_stage():
    # 10 steps: 2 up, 4 held, 4 of exponential decay in 5 parts to 1/32
    found = rates(10, name="tri_stage", warmup_steps=2, hold_ratio=0.4, final_ratio=1 / 32)
    assert found == pytest.approx([1 / 2, 1, 1, 1, 1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16])


def test_defaults_of_tri_stage():
    found = rates(10, name="tri_stage", warmup_steps=2)
    assert found == rates(10, name="tri_stage", warmup_steps=2, hold_ratio=0.4, final_ratio=0.05)
    assert found[-1] == pytest.approx(0.05 ** (4 / 5))


def test_warmup_stable_decay():
    settings = {"name": "wsd", "warmup_steps": 2, "decay_ratio": 0.3}
    assert rates(10, **settings) == pytest.approx([1 / 2, *[1] * 6, 3 / 4, 2 / 4, 1 / 4])
    root = [1 - math.sqrt(part) for part in (1 / 4, 2 / 4, 3 / 4)]
    assert rates(10, **settings, decay_shape="sqrt")[7:] == pytest.approx(root)
    assert rates(10, **settings, final_ratio=0.5)[7:] == pytest.approx([7 / 8, 6 / 8, 5 / 8])
    assert rates(5, name="wsd", warmup_steps=4, decay_ratio=0.9)[3:] == pytest.approx([1, 1 / 2])  # what is left


DECAYING = ["linear", "cosine", "polynomial", "cosine_restarts"]
ALL = [*DECAYING, "constant", "inverse_sqrt", "tri_stage", "wsd"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0, 1, 5, 99])
def test_every_step_of_every_schedule_has_a_rate(name, steps, warmup):
    config = ScheduleConfig(name=name, warmup_steps=warmup, warmup_ratio=0.0, final_ratio=0.01)
    found = [rate_factor(config, step, steps) for step in range(steps)]
    assert min(found) > 0 and max(found) <= 1 + 1e-12
    if 0 < warmup <= steps:
        assert found[warmup - 1] == 1.0
    assert 0 < rate_factor(config, steps + 5, steps) <= 1 + 1e-12  # a step beyond the end still has one


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
    for name in ("linear", "cosine", "polynomial", "cosine_restarts", "tri_stage", "wsd"):
        config = ScheduleConfig(name=name, warmup_steps=2, final_ratio=0.25)
        assert rate_factor(config, 10, 10) == pytest.approx(0.25)
        assert rate_factor(config, 9, 10) > 0.25
    for name in ("linear", "cosine", "polynomial"):
        config = ScheduleConfig(name=name, warmup_steps=2, final_ratio=0.25, decay_from="start")
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
