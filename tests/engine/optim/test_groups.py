"""Parameter groups: who decays, at which rate, by which rule; freezing; patterns that match nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from engine.config.arch import ArchConfig
from engine.config.optimizer import OptimizerConfig
from engine.models.heads import CausalLMHead, MaskedLMHead
from engine.models.model import Model, build_model
from engine.optim.groups import parameter_groups

SIZES = {"vocab_size": 30, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 12}
BERT = ArchConfig(**SIZES, max_positions=10)
GPT2 = ArchConfig(**SIZES, max_positions=10, causal=True, norm_position="pre", embedding_norm=False, num_segments=0)


def model_of(arch: ArchConfig) -> Model:
    return build_model(arch, {"lm": CausalLMHead(arch)} if arch.causal else {"mlm": MaskedLMHead(arch)}, seed=1)


def grouped(model: Model, **settings: Any) -> dict[str, dict[str, Any]]:
    """The group of each parameter, by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(**settings).completed())
    found = [names[id(p)] for group in groups for p in group["params"]]
    assert len(found) == len(set(found))
    return {names[id(p)]: group for group in groups for p in group["params"]}


@pytest.mark.parametrize("arch", [BERT, GPT2], ids=["bert", "gpt2"])
def test_each_trainable_parameter_is_in_one_group_and_biases_and_norms_do_not_decay(arch):
    model = model_of(arch)
    groups = grouped(model, weight_decay=0.3, freeze=["*.position.weight"])
    assert set(groups) == {name for name, _ in model.named_parameters()} - {"encoder.embeddings.position.weight"}
    for name, group in groups.items():
        exempt = name.endswith("bias") or "norm" in name.split(".")[-2]
        assert (group["decay"], group["weight_decay"]) == ((False, 0.0) if exempt else (True, 0.3)), name
    assert not model.encoder.embeddings.position.weight.requires_grad


def test_patterns_exempt_further_parameters_from_decay():
    groups = grouped(model_of(BERT), weight_decay=0.3, decay_exclude=["encoder.embeddings.*", "*.up.weight"])
    without = {name for name, group in groups.items() if not group["decay"] and name.endswith("weight")}
    matrices = {name for name in without if "norm" not in name}
    assert matrices == {
        "encoder.embeddings.word.weight", "encoder.embeddings.position.weight", "encoder.embeddings.segment.weight",
        "encoder.layers.0.mlp.up.weight", "encoder.layers.1.mlp.up.weight",
    }  # fmt: skip


@pytest.mark.parametrize("arch", [BERT, GPT2], ids=["bert", "gpt2"])
def test_rates_fall_layer_by_layer(arch):
    groups = grouped(model_of(arch), lr=1.0, layer_decay=0.5)
    by_hand = {"encoder.embeddings": 0.125, "encoder.layers.0": 0.25, "encoder.layers.1": 0.5}
    for name, group in groups.items():
        expected = by_hand.get(".".join(name.split(".")[: 3 if "layers" in name else 2]), 1.0)
        assert group["lr_scale"] == group["lr"] == expected, name
    assert {group["lr_scale"] for group in groups.values()} == {0.125, 0.25, 0.5, 1.0}


def test_one_rate_is_the_default_and_groups_are_few():
    assert len(parameter_groups(model_of(BERT), OptimizerConfig().completed())) == 2


def test_lamb_trusts_what_decays():
    groups = grouped(model_of(BERT), name="lamb", decay_exclude=["*.down.weight"])
    for name, group in groups.items():
        matrix = name.endswith("weight") and "norm" not in name
        assert group["rule"] == ("trust" if matrix and "down" not in name else "adamw"), name


def test_muon_is_for_matrices_of_layers():
    groups = grouped(model_of(BERT), name="muon")
    muon = {name for name, group in groups.items() if group["rule"] == "muon"}
    assert muon == {
        f"encoder.layers.{layer}.{part}.weight"
        for layer in (0, 1)
        for part in ("attention.qkv", "attention.output", "mlp.up", "mlp.down")
    }


def test_adafactor_factors_matrices():
    model = model_of(BERT)
    groups = grouped(model, name="adafactor")
    for name, parameter in model.named_parameters():
        assert groups[name]["rule"] == ("factored" if parameter.dim() == 2 else "vector")


@pytest.mark.parametrize("setting", ["freeze", "decay_exclude"])
def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_name(setting):
    message = (
        f"train.optimizer.{setting}: 'encoder.embedding.word.weight' matches no parameter; the nearest name is "
        "encoder.embeddings.word.weight (* stands for anything, as in encoder.embeddings.*)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        grouped(model_of(BERT), **{setting: ["encoder.embedding.word.weight"]})


def test_something_must_be_left_to_train():
    with pytest.raises(ValueError, match=re.escape("train.optimizer.freeze ['*'] leaves no parameter to train")):
        grouped(model_of(BERT), freeze=["*"])
