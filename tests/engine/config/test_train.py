"""Settings of the loop: every problem has its message, and batch sizes are suggested as a search would find them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.schedule import ScheduleConfig
from engine.config.train import BatchShape, TrainConfig


def test_defaults_are_without_problems():
    assert TrainConfig().problems() == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainConfig(steps=0), "train.steps is 0; it must be at least 1"),
        (TrainConfig(batch_size=-4), "train.batch_size is -4; it must be at least 1"),
        (TrainConfig(micro_batch_size=0), "train.micro_batch_size is 0; it must be at least 1"),
        (TrainConfig(log_every=0), "train.log_every is 0; it must be at least 1"),
        (TrainConfig(save_every=-1), "train.save_every is -1; it must not be negative"),
        (TrainConfig(keep_checkpoints=-1), "train.keep_checkpoints is -1; it must not be negative"),
        (TrainConfig(eval_every=-1), "train.eval_every is -1; it must not be negative"),
        (TrainConfig(eval_rows=-1), "train.eval_rows is -1; it must not be negative"),
        (
            ScheduleConfig(name="step"),
            "train.schedule.name is 'step'; it must be one of linear, cosine, cosine_restarts",
        ),
        (ScheduleConfig(warmup_steps=-1), "train.schedule.warmup_steps is -1; it must not be negative"),
        (ScheduleConfig(warmup_ratio=1.5), "train.schedule.warmup_ratio is 1.5; it must be in [0, 1]"),
        (ScheduleConfig(warmup_ratio=math.nan), "train.schedule.warmup_ratio is nan"),
        (
            ScheduleConfig(name="wsd", decay_shape="step"),
            "train.schedule.decay_shape is 'step'; it must be one of linear, cosine, sqrt",
        ),
        (ScheduleConfig(name="polynomial", power=0.0), "train.schedule.power is 0.0; it must be above 0"),
        (ScheduleConfig(name="cosine_restarts", cycles=0), "train.schedule.cycles is 0; it must be above 0"),
        (
            ScheduleConfig(name="tri_stage", warmup_ratio=0.0, hold_ratio=-0.1),
            "train.schedule.hold_ratio is -0.1; it must be in [0, 1]",
        ),
        (
            ScheduleConfig(name="wsd", warmup_ratio=0.6, decay_ratio=0.5),
            "train.schedule.warmup_ratio (0.6) and decay_ratio (0.5) must sum to 1 at most",
        ),
        (
            ScheduleConfig(name="tri_stage", final_ratio=0.0),
            "train.schedule.final_ratio is 0.0, which an exponential decay never reaches: give tri_stage one above 0",
        ),
        (TrainConfig(nonfinite="ignore"), "train.nonfinite is 'ignore'; it must be one of stop, skip"),
        (TrainConfig(rank_timeout=0.0), "train.rank_timeout is 0.0; it must be at least 1, and finite"),
        (TrainConfig(rank_timeout=math.nan), "train.rank_timeout is nan; it must be at least 1, and finite"),
        (TrainConfig(rank_timeout=math.inf), "train.rank_timeout is inf; it must be at least 1, and finite"),
        (TrainConfig(batch_ramp={0: 8}), "train.batch_ramp {0: 8} maps the step until which a value holds"),
        (TrainConfig(batch_ramp={5: 8, 3: 4}), "train.batch_ramp {5: 8, 3: 4} maps the step until which"),
        (
            TrainConfig(batch_ramp={5: 0}),
            "train.batch_ramp {5: 0} has values below 1; the last value, from then on, is train.batch_size (256)",
        ),
        (ScheduleConfig(final_ratio=-0.5), "train.schedule.final_ratio is -0.5; it must be in [0, 1]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_problem_has_its_message(config, message):
    found = config.problems()
    assert len(found) == 1 and found[0].startswith(message)
    if isinstance(config, ScheduleConfig):
        assert replace(TrainConfig(), schedule=config).problems() == found


# What the schedules of docs/training.md have.
HAVE = {
    "linear": {"final_ratio", "decay_from"},
    "cosine": {"final_ratio", "decay_from"},
    "cosine_restarts": {"final_ratio", "cycles", "cycle_decay"},
    "polynomial": {"final_ratio", "power", "decay_from"},
    "constant": set(),
    "inverse_sqrt": {"final_ratio"},
    "tri_stage": {"final_ratio", "hold_ratio"},
    "wsd": {"final_ratio", "decay_ratio", "decay_shape"},
}
RECORDED = {
    "final_ratio": 0.0, "power": 1.0, "cycles": 4, "cycle_decay": 1.0, "hold_ratio": 0.4, "decay_ratio": 0.1,
    "decay_shape": "linear", "decay_from": "peak",
}  # fmt: skip


@pytest.mark.parametrize("name", HAVE)
@pytest.mark.parametrize("setting", RECORDED)
def test_a_setting_that_a_schedule_does_not_have_is_refused(name, setting):
    config = ScheduleConfig(name=name, **{setting: RECORDED[setting] or 0.01})
    if setting in HAVE[name]:
        assert config.problems() == []
        return
    have = " or ".join(other for other in HAVE if setting in HAVE[other])
    message = f"train.schedule.{setting} is given, and {name} has none; remove it, or choose {have}"
    assert config.problems() == TrainConfig(schedule=config).problems() == [message]


@pytest.mark.parametrize("name", HAVE)
def test_the_record_of_a_schedule_has_all_settings(name):
    """The values that runs were recorded with when they could not be left out, or such a run would not go on."""
    completed = ScheduleConfig(name=name, warmup_steps=3).completed()
    expected = {**RECORDED, "final_ratio": 0.05} if name == "tri_stage" else RECORDED
    assert vars(completed) == {"name": name, "warmup_steps": 3, "warmup_ratio": 0.1, **expected}
    assert completed.completed() == completed and completed.wrong_values() == []
    given = ScheduleConfig(name="polynomial", power=2.0, final_ratio=0.0)
    assert (given.completed().power, given.completed().final_ratio) == (2.0, 0.0)


def legal(batch_size: int, micro_batch_size: int, world_size: int) -> bool:
    """Whether every rank gets equally many whole micro-batches, dealt by hand."""
    dealt = [0] * world_size
    left, rank = batch_size, 0
    while left >= micro_batch_size:
        dealt[rank % world_size] += 1
        left -= micro_batch_size
        rank += 1
    return left == 0 and len(set(dealt)) == 1 and dealt[0] >= 1


def suggestions(message: str) -> tuple[list[int], list[int]]:
    """The sizes after "nearest legal train.batch_size:" and after "set train.micro_batch_size to"."""
    first, _, second = message.partition("nearest legal train.batch_size: ")[2].partition("; or keep it and set ")
    numbers = [[int(word) for word in part.split() if word.isdigit()] for part in (first, second)]
    return numbers[0], numbers[1]


@given(batch=st.integers(1, 200), micro=st.integers(1, 24), ranks=st.integers(1, 9))
@settings(max_examples=400, deadline=None)
def test_batch_shape_against_brute_force(batch, micro, ranks):
    shape = BatchShape(batch, micro, ranks)
    problems = shape.problems()
    if legal(batch, micro, ranks):
        assert problems == []
        assert shape.accumulation * micro * ranks == batch
        return
    assert len(problems) == 1
    assert f"({micro} x {ranks} = {micro * ranks})" in problems[0] and f"train.batch_size ({batch})" in problems[0]
    batches, micros = suggestions(problems[0])
    below = [size for size in range(1, batch) if legal(size, micro, ranks)][-1:]
    above = next(size for size in range(batch + 1, batch + 1 + micro * ranks) if legal(size, micro, ranks))
    assert batches == [*below, above]
    possible = [size for size in range(1, batch + 1) if legal(batch, size, ranks)]
    assert len(micros) == min(2, len(possible))
    assert set(micros) <= set(possible)
    if micros:
        others = set(possible) - set(micros)
        assert all(abs(size - micro) >= max(abs(m - micro) for m in micros) for size in others)


@pytest.mark.parametrize(("batch", "micro"), [(0, 4), (8, 0), (-8, 2)])
def test_impossible_sizes_are_told_by_the_config_and_do_no_harm(batch, micro):
    shape = BatchShape(batch, micro, 2)
    assert shape.problems() == []
    assert isinstance(shape.accumulation, int)
    assert TrainConfig(batch_size=batch, micro_batch_size=micro).problems()
