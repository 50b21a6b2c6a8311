"""Settings of fine-tuning: what epochs decide, and what cannot be given with them."""

from __future__ import annotations

import pytest

from engine.config.cli import UsageError, parse_config
from engine.config.optimizer import OptimizerConfig
from engine.config.schedule import ScheduleConfig
from finetune.config.run import FinetuneConfig, FinetuneTrainConfig
from finetune.config.techniques import LoraConfig


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


def given(*more: str) -> FinetuneConfig:
    return parse_config(FinetuneConfig, ["--ds_config", "d", "--model", "m", "--train_file", "t", *more], "run.py")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--lora.alpha", "8"], "lora.alpha given without lora.rank"),
        (["--lora.targets", "*.qkv", "--lora.alpha", "8"], "lora.alpha and lora.targets given without lora.rank"),
        (["--adversarial.epsilon", "2"], "adversarial.epsilon given without adversarial.method"),
        (["--adversarial.steps", "2"], "adversarial.steps given without adversarial.method"),
        (["--dev_share", "0.2", "--dev_file", "d"], "dev_share is given with --dev_file d"),
        (["--dev_share", "0.2", "--folds", "3"], "dev_share is given with --folds"),
        (["--seed", "4", "--seeds", "1", "2"], "seed is 4 and seeds are [1, 2]; each run has its own"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(more, problem):
    (found,) = given(*more).problems()
    assert found.startswith(problem)


def test_lists_are_words_or_yaml():
    words = given("--seeds", "3", "1", "--lora.targets", "*.qkv", "a: b", "--local_rank=0", "--seed", "4")
    assert words.seeds == [3, 1] and words.lora.targets == ["*.qkv", "a: b"] and words.seed == 4
    assert given("--seeds", "[3, 1]").seeds == [3, 1] and given("--seeds", "7").seeds == [7]
    assert given("--train.optimizer.freeze=encoder.*").train.optimizer.freeze == ["encoder.*"]
    with pytest.raises(UsageError, match="--seeds: expected int, found a"):
        given("--seeds", "a", "1")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--seeds 1 1", r"seeds are \[1, 1\]; each may stand there once"),
        ("--seeds -1", r"seeds has -1; each must be in \[0, 2\^63\)"),
        ("--folds 1", "folds is 1; it must be at least 2"),
        ("--folds 2 --dev_file d", "--dev_file d is given with --folds"),
        ("--folds 2 --fold 2", "fold is 2; it must be at least 0 and below --folds, which is 2"),
        ("--folds 2 --seeds 1 2", "seeds and folds are both given"),
        ("--train.early_stopping -1", "train.early_stopping is -1; it must be at least 1"),
        ("--lora.rank -1", "lora.rank is -1"),
        ("--adversarial.method fgsm", "adversarial.method is 'fgsm'; it must be one of fgm, pgd"),
    ],
)
def test_several_runs_and_techniques_are_checked(words, expected):
    with pytest.raises(UsageError, match=expected):
        raise UsageError("\n".join(given(*words.split()).problems()))
    assert given("--seeds", "1", "2").problems() == given("--folds", "3").problems() == []


def test_adapters_scale_by_alpha_over_rank():
    assert LoraConfig(rank=8, alpha=4.0).scale == 0.5
    assert LoraConfig(rank=2, targets=[], alpha=0.0).problems() == [
        "lora.alpha is 0.0; it must be above 0 and finite",
        "lora.targets is empty; name linear maps, such as encoder.layers.*, or leave it out",
    ]
