"""Settings of the optimizer: every problem has its message, and defaults are those of the optimizer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from engine.config.optimizer import OPTIMIZERS, OptimizerConfig
from engine.config.train import TrainConfig

NAMES = "adamw, lamb, lion, adafactor, muon"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_is_without_problems_by_default(name):
    assert OptimizerConfig(name=name).problems() == []
    assert OptimizerConfig(name=name).completed().wrong_values() == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimizerConfig(name="sgd"), f"train.optimizer.name is 'sgd'; it must be one of {NAMES}"),
        (OptimizerConfig(lr=0.0), "train.optimizer.lr is 0.0; it must be above 0 and finite"),
        (OptimizerConfig(lr=math.nan), "train.optimizer.lr is nan"),
        (OptimizerConfig(lr=math.inf), "train.optimizer.lr is inf"),
        (OptimizerConfig(betas=(0.9, 1.0)), "train.optimizer.betas are [0.9, 1.0]; each must be in [0, 1)"),
        (OptimizerConfig(betas=(math.nan, 0.9)), "train.optimizer.betas are [nan, 0.9]"),
        (OptimizerConfig(eps=0.0), "train.optimizer.eps is 0.0; it must be above 0 and finite"),
        (
            OptimizerConfig(weight_decay=-0.1),
            "train.optimizer.weight_decay is -0.1; it must not be negative, and finite",
        ),
        (OptimizerConfig(weight_decay=math.nan), "train.optimizer.weight_decay is nan"),
        (OptimizerConfig(layer_decay=0.0), "train.optimizer.layer_decay is 0.0; it must be above 0, and 1 (off) at"),
        (OptimizerConfig(layer_decay=1.1), "train.optimizer.layer_decay is 1.1"),
        (OptimizerConfig(name="muon", momentum=1.0), "train.optimizer.momentum is 1.0; it must be in [0, 1)"),
        (
            OptimizerConfig(name="adafactor", clip_update=0.0),
            "train.optimizer.clip_update is 0.0; it must be above 0 and finite",
        ),
        (
            OptimizerConfig(name="adafactor", decay_rate=-1.0),
            "train.optimizer.decay_rate is -1.0; it must be above 0 and finite",
        ),
        (
            OptimizerConfig(name="lamb", trust_clamp=(2.0, 1.0)),
            "train.optimizer.trust_clamp is [2.0, 1.0]; it must be the least and the greatest trust ratio, such as",
        ),
        (OptimizerConfig(trust_clamp=(0.0, 1.0)), "train.optimizer.trust_clamp is given, and adamw has no trust ratio"),
        (
            OptimizerConfig(backend="cuda"),
            "train.optimizer.backend is 'cuda'; it must be one of auto, torch, deepspeed, apex, kernels",
        ),
        (
            OptimizerConfig(name="lamb", backend="deepspeed"),
            "train.optimizer.backend is 'deepspeed', which has no lamb that ZeRO can use as it is; it must be one of "
            "auto, torch",
        ),
        (
            OptimizerConfig(name="lion", backend="deepspeed"),
            "train.optimizer.backend is 'deepspeed', which has no lion",
        ),
        (OptimizerConfig(name="lion", backend="apex"), "train.optimizer.backend is 'apex', which has no lion that"),
        (
            OptimizerConfig(name="adafactor", betas=(0.9, 0.9)),
            "train.optimizer.betas is given, and adafactor has none; remove it",
        ),
        (OptimizerConfig(name="lion", eps=1e-8), "train.optimizer.eps is given, and lion has none; remove it"),
        (OptimizerConfig(momentum=0.95), "train.optimizer.momentum is given, and adamw has none; remove it"),
        (
            OptimizerConfig(name="muon", clip_update=1.0),
            "train.optimizer.clip_update is given, and muon has none; remove it",
        ),
        (
            OptimizerConfig(name="lamb", decay_rate=0.8),
            "train.optimizer.decay_rate is given, and lamb has none; remove it",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_problem_has_its_message(config, message):
    found = config.problems()
    assert len(found) == 1 and found[0].startswith(message)
    assert replace(TrainConfig(), optimizer=config).problems() == found


def test_defaults_are_the_optimizer_s_own_and_give_way():
    single = {"momentum": 0.95, "clip_update": 1.0, "decay_rate": 0.8}  # the record has them of every optimizer
    assert OptimizerConfig().completed() == OptimizerConfig(betas=(0.9, 0.999), eps=1e-8, **single)
    muon = OptimizerConfig(name="muon", momentum=0.0).completed()
    assert muon.momentum == 0.0 and muon.completed() == muon
    assert OptimizerConfig(name="lion").completed().betas == (0.9, 0.99)
    given = OptimizerConfig(name="lamb", betas=(0.8, 0.9), eps=1e-3, **single)
    assert given.completed() == given
