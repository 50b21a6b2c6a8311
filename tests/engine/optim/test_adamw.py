"""AdamW: who decays, and one step against the formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.config.optimizer import OptimizerConfig
from engine.models.heads import CausalLMHead, MaskedLMHead
from engine.models.model import Model, build_model
from engine.optim.adamw import build_optimizer, decay_groups

SIZES = {"vocab_size": 30, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 12}
BERT = ArchConfig(**SIZES, max_positions=10)
GPT2 = ArchConfig(**SIZES, max_positions=10, causal=True, norm_position="pre", embedding_norm=False, num_segments=0)


def model_of(arch: ArchConfig) -> Model:
    return build_model(arch, {"lm": CausalLMHead(arch)} if arch.causal else {"mlm": MaskedLMHead(arch)}, seed=1)


@pytest.mark.parametrize("arch", [BERT, GPT2], ids=["bert", "gpt2"])
def test_each_trainable_parameter_is_in_one_group_and_biases_and_norms_do_not_decay(arch):
    model = model_of(arch)
    frozen = model.encoder.embeddings.position.weight.requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.3))
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay)
    assert set(decay) == set(names.values()) - {names[id(frozen)]}
    for name, value in decay.items():
        exempt = name.endswith("bias") or "norm" in name.split(".")[-2]
        assert value == (0.0 if exempt else 0.3), name
    assert 0.3 in decay.values() and 0.0 in decay.values()


def test_no_empty_group():
    matrix = torch.nn.Parameter(torch.zeros(2, 2))
    assert len(decay_groups([("a", matrix)], 0.1)) == 1


def adamw(weight, gradients, config: OptimizerConfig, decay: float):
    """Loshchilov and Hutter 2019, algorithm 2, with a constant rate, in float64."""
    weight, first, second = weight.astype(np.float64), 0.0, 0.0
    for step, gradient in enumerate(gradients, start=1):
        weight = weight - config.lr * decay * weight
        first = config.betas[0] * first + (1 - config.betas[0]) * gradient
        second = config.betas[1] * second + (1 - config.betas[1]) * gradient**2
        first_hat, second_hat = first / (1 - config.betas[0] ** step), second / (1 - config.betas[1] ** step)
        weight = weight - config.lr * first_hat / (np.sqrt(second_hat) + config.eps)
    return weight


def test_steps_are_those_of_the_formula():
    torch.manual_seed(0)
    config = OptimizerConfig(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7))
    optimizer = build_optimizer(model, config)
    assert all(group["fused"] for group in optimizer.param_groups)
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    generator = np.random.default_rng(0)
    gradients = {name: [generator.normal(size=value.shape) for _ in range(3)] for name, value in before.items()}
    for step in range(3):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients[name][step]).float()
        optimizer.step()
    for name, parameter in model.named_parameters():
        expected = adamw(before[name], gradients[name], config, 0.2 if name == "0.weight" else 0.0)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-6, atol=1e-7)
