"""What each step computes with, against a walk through all steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.config.optimizer import OptimizerConfig
from engine.config.pretrain import DataConfig, PretrainConfig
from engine.config.schedule import ScheduleConfig
from engine.config.stages import StageConfig, StageOptimizer
from engine.config.train import TrainConfig
from engine.optim.schedule import rate_factor
from engine.train.timeline import Timeline

RUN = PretrainConfig(
    ds_config="x.json",
    data=DataConfig(seq_length=64),
    train=TrainConfig(batch_size=16, micro_batch_size=4, optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.02)),
)
STAGES = replace(
    RUN,
    stages=[
        StageConfig(steps=7, seq_length=32, batch_ramp={2: 4, 5: 8}),
        StageConfig(
            steps=5,
            length_ramp={3: 32},
            batch_size=8,
            micro_batch_size=2,
            optimizer=StageOptimizer(lr=5e-4, betas=(0.8, 0.9)),
            schedule=ScheduleConfig(name="cosine", warmup_steps=2),
        ),
        StageConfig(steps=2, seq_length=32),
    ],
)


def test_one_stage():
    config = replace(RUN, train=replace(RUN.train, steps=10))
    timeline = Timeline(config.all_stages())
    assert timeline.steps == 10 and timeline.lengths() == [64]
    for number, step in enumerate(timeline):
        assert (step.step, step.stage, step.seq_length, step.batch_size) == (number, 0, 64, 16)
        assert step.first_row == 16 * number and step.micro_batch_size == 4
        assert step.lr == pytest.approx(1e-3 * rate_factor(ScheduleConfig(), number, 10))
        assert timeline.varying(step) == {}
    assert timeline.at(12).first_row == 16 * 12  # beyond the end, where a longer run would go on


def test_stages_and_ramps():
    timeline = Timeline(STAGES.all_stages())
    assert timeline.steps == 14 and STAGES.completed().train.steps == 14 and timeline.lengths() == [32, 64]
    batches = [4, 4, 8, 8, 8, 16, 16, *[8] * 5, 16, 16]
    lengths = [*[32] * 7, 32, 32, 32, 64, 64, 32, 32]
    consumed = {32: 0, 64: 0}
    for number, step in enumerate(timeline):
        assert (step.batch_size, step.seq_length) == (batches[number], lengths[number])
        assert step.first_row == consumed[step.seq_length]  # no row twice before all were seen, no row left out
        consumed[step.seq_length] += step.batch_size
        assert step.stage == (0 if number < 7 else 1 if number < 12 else 2)
        assert step.micro_batch_size == (2 if step.stage == 1 else 4)
    shapes = [(shape.batch_size, shape.micro_batch_size) for shape in timeline.shapes(1)]
    assert shapes == [(4, 4), (8, 4), (16, 4), (8, 2)]
    assert timeline.varying(timeline.at(8)) == {"stage": 1, "seq_length": 32, "batch_size": 8}


def test_each_stage_has_its_own_rates_and_optimizer():
    timeline = Timeline(STAGES.all_stages())
    cosine = ScheduleConfig(name="cosine", warmup_steps=2)
    for step in timeline:
        if step.stage == 1:
            assert step.lr == pytest.approx(5e-4 * rate_factor(cosine, step.step - 7, 5))
            assert step.optimizer == OptimizerConfig(lr=5e-4, betas=(0.8, 0.9), weight_decay=0.02)
        else:
            begin, steps = (0, 7) if step.stage == 0 else (12, 2)
            assert step.lr == pytest.approx(1e-3 * rate_factor(ScheduleConfig(), step.step - begin, steps))
            assert step.optimizer == RUN.train.optimizer


def test_completed_settings_compute_the_same_and_are_without_problems():
    stages = STAGES.completed().all_stages()
    assert [text for stage in stages for text in stage.problems()] == []
    pairs = zip(Timeline(STAGES.all_stages()), Timeline(stages), strict=True)
    assert all(replace(given, optimizer=given.optimizer.completed()) == filled for given, filled in pairs)
    assert STAGES.completed().stages[1].schedule == ScheduleConfig(name="cosine", warmup_steps=2).completed()
    assert STAGES.completed().completed() == STAGES.completed()


def test_masking_rate_follows_the_progress_of_the_run():
    timeline = Timeline(STAGES.all_stages(), lambda progress: 0.3 - 0.2 * progress)
    assert [timeline.at(step).masking_rate for step in (0, 7)] == pytest.approx([0.3, 0.2])
    assert timeline.varying(timeline.at(7))["masking_rate"] == pytest.approx(0.2)
    constant = Timeline(STAGES.all_stages(), lambda progress: 0.15)
    assert "masking_rate" not in constant.varying(constant.at(0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(RUN, stages=[StageConfig(steps=0)]), "stages.0: steps is 0; it must be at least 1"),
        (replace(RUN, stages=[StageConfig(steps=1, seq_length=7)]), "stages.0: seq_length is 7; it must be at least 8"),
        (
            replace(RUN, stages=[StageConfig(steps=1), StageConfig(steps=1, optimizer=StageOptimizer(lr=-1.0))]),
            "stages.1: train.optimizer.lr is -1.0; it must be above 0 and finite",
        ),
        (
            replace(STAGES, train=replace(RUN.train, steps=99)),
            "train.steps is 99, but the stages take 14 steps; leave train.steps out",
        ),
        (
            replace(STAGES, train=replace(RUN.train, batch_ramp={3: 8})),
            "train.batch_ramp is given beside stages; give it in the stage it belongs to",
        ),
        (
            replace(RUN, data=DataConfig(seq_length=64, length_ramp={3: 4})),
            "data.length_ramp {3: 4} has values below 8; the last value, from then on, is data.seq_length (64)",
        ),
        (
            replace(RUN, stages=[StageConfig(steps=9), StageConfig(steps=5, batch_ramp={5: 8})]),
            "stages.1: batch_ramp lasts until step 5 of 5, so batch_size is never reached; end it before",
        ),
        (
            replace(RUN, stages=[StageConfig(steps=5, length_ramp={2: 8, 6: 16})]),
            "stages.0: length_ramp lasts until step 6 of 5, so seq_length is never reached; end it before",
        ),
        (
            replace(RUN, stages=[StageConfig(steps=9, schedule=ScheduleConfig(power=2.0))]),
            "stages.0: train.schedule.power is given, and linear has none; remove it, or choose polynomial",
        ),
        (replace(RUN, data=DataConfig(short_seq_prob=1.5)), "data.short_seq_prob is 1.5; it must be in [0, 1]"),
    ],
)
def test_problems(config, message):
    assert config.problems() == [message]


def test_rows_before_a_step_are_the_sum_of_its_batches():
    timeline = Timeline(STAGES.all_stages())
    walked: dict[int, int] = {}
    for step in timeline:
        assert timeline.rows_before(step.step) == walked
        walked[step.seq_length] = walked.get(step.seq_length, 0) + step.batch_size
    assert timeline.rows_before(timeline.steps) == walked
