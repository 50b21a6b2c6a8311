"""Settings of fine-tuning: what epochs decide, and what cannot be given with them."""

from __future__ import annotations

from engine.config.optimizer import OptimizerConfig
from engine.config.schedule import ScheduleConfig
from finetune.config import FinetuneTrainConfig


def test_defaults_are_without_problems():
    assert FinetuneTrainConfig().problems() == []


def test_a_ramp_of_batches_needs_steps():
    """With epochs a smaller batch would take fewer rows than the epochs have."""
    assert FinetuneTrainConfig(batch_ramp={2: 8}).problems() == [
        "train.batch_ramp is given with epochs, whose steps are counted for train.batch_size; give train.steps"
    ]
    assert FinetuneTrainConfig(batch_ramp={2: 8}, steps=3).problems() == []
    (problem,) = FinetuneTrainConfig(batch_ramp={2: 8}, steps=2).problems()
    assert problem.startswith("train.batch_ramp lasts until step 2 of 2")


def test_epochs_and_defaults_are_filled_in():
    train = FinetuneTrainConfig(batch_size=8, schedule=ScheduleConfig(name="tri_stage")).for_epochs("run", 3, 20)
    assert (train.output, train.steps, train.save_every, train.eval_every) == ("run", 9, 3, 3)
    assert train.schedule == ScheduleConfig(name="tri_stage").completed() and train.schedule.final_ratio == 0.05
    assert train.optimizer == OptimizerConfig(lr=5e-5).completed()
