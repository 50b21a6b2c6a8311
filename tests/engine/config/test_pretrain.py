"""Settings of a pretraining run: every problem has its message."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from engine.config.arch import ArchConfig, ArchOverrides
from engine.config.masking import MaskingConfig
from engine.config.pretrain import OBJECTIVE_NAMES, DataConfig, PretrainConfig
from engine.config.train import TrainConfig


def test_defaults_are_without_problems():
    assert PretrainConfig(ds_config="x.json").problems() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed is -1; it must be in [0, 2^63)"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be in"),
        ({"masking": MaskingConfig(rate=0.0)}, "masking.rate is 0.0; it must be above 0 and below 1"),
        ({"masking": MaskingConfig(rate=1.0)}, "masking.rate is 1.0"),
        ({"masking": MaskingConfig(rate=math.nan)}, "masking.rate is nan"),
        (
            {"masking": MaskingConfig(mask_share=0.8, random_share=0.3)},
            "masking.mask_share (0.8) and masking.random_sh",
        ),
        ({"masking": MaskingConfig(mask_share=-0.1)}, "masking.mask_share (-0.1)"),
        ({"masking": MaskingConfig(mask_share=math.nan)}, "masking.mask_share (nan)"),
        ({"data": DataConfig(seq_length=7)}, "data.seq_length is 7; it must be at least 8"),
        ({"train": TrainConfig(steps=0)}, "train.steps is 0"),
        (
            {"train": TrainConfig(steps=5, batch_ramp={2: 8, 5: 16})},
            "train.batch_ramp lasts until step 5 of 5, so train.batch_size is never reached; end it before",
        ),
        (
            {"train": TrainConfig(steps=5), "data": DataConfig(seq_length=64, length_ramp={9: 32})},
            "data.length_ramp lasts until step 9 of 5, so data.seq_length is never reached; end it before",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_problem_has_its_message(settings, message):
    found = PretrainConfig(ds_config="x.json", **settings).problems()
    assert len(found) == 1 and found[0].startswith(message)


def test_a_ramp_that_ends_before_the_run_is_legal():
    train, data = TrainConfig(steps=5, batch_ramp={4: 8}), DataConfig(seq_length=64, length_ramp={4: 32})
    assert PretrainConfig(ds_config="x.json", train=train, data=data).problems() == []


def test_what_an_objective_does_not_have_is_refused():
    masked = PretrainConfig(ds_config="x.json", masking=MaskingConfig(rate=0.2, whole_word=True))
    assert masked.unused("mlm") == masked.unused("mlm,nsp") == []
    assert masked.unused("lm") == [
        "masking.rate is 0.2, but objective lm masks nothing; remove it",
        "masking.whole_word is True, but objective lm masks nothing; remove it",
    ]
    pairs = PretrainConfig(ds_config="x.json", data=DataConfig(short_seq_prob=0.0))
    assert pairs.unused("mlm,nsp") == pairs.unused("mlm,sop") == []
    for name in ("mlm", "lm"):
        assert pairs.unused(name) == [
            f"data.short_seq_prob is 0.0, but objective {name} has no pairs; remove it",
        ]
    assert all(PretrainConfig(ds_config="x.json").unused(name) == [] for name in OBJECTIVE_NAMES)


def test_all_problems_come_at_once():
    config = PretrainConfig(ds_config="", seed=-1, masking=MaskingConfig(rate=2.0), data=DataConfig(seq_length=0))
    assert len(config.problems()) == 3


def test_shares_that_sum_to_one_are_legal():
    assert MaskingConfig(mask_share=0.5, random_share=0.5).problems() == []
    assert MaskingConfig(mask_share=0.0, random_share=0.0).problems() == []


def test_overrides_are_the_architecture_without_its_vocabulary():
    overrides = {field.name: str(field.type) for field in fields(ArchOverrides)}
    assert overrides == {f.name: f"{f.type} | None" for f in fields(ArchConfig) if f.name != "vocab_size"}
    assert all(field.default is None for field in fields(ArchOverrides))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 0}, "arch.hidden_size is 0: it must be at least 1"),
        ({"num_heads": 5}, "arch.hidden_size (768) must be a multiple of arch.num_heads (5)"),
        ({"num_segments": -1}, "arch.num_segments is -1: it must be 0"),
        ({"activation": "relu"}, "arch.activation is 'relu': it must be one of gelu, gelu_tanh"),
        ({"norm_position": "mid"}, "arch.norm_position is 'mid': it must be one of post, pre"),
        ({"hidden_dropout": 1.0}, "arch.hidden_dropout is 1.0: it must be at least 0 and below 1"),
        ({"attention_dropout": -0.1}, "arch.attention_dropout is -0.1"),
        ({"norm_eps": 0.0}, "arch.norm_eps is 0.0: it must be above 0"),
        ({"init_std": math.nan}, "arch.init_std is nan: it must be above 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_problem_of_an_architecture_has_its_message(settings, message):
    found = ArchConfig(vocab_size=100, **settings).problems()
    assert len(found) == 1 and found[0].startswith(message)
