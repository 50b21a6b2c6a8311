"""Which optimizer is built by whose code, what cannot be had, and what is said of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.config.deepspeed_json import DeepSpeedSettings
from engine.config.optimizer import OptimizerConfig
from engine.models.heads import MaskedLMHead
from engine.models.model import Model, build_model
from engine.optim import backends
from engine.optim.build import bind_optimizer, build_optimizer, describe, optimizer_problems
from tests.engine.optim.test_groups import BERT


def model() -> Model:
    return build_model(BERT, {"mlm": MaskedLMHead(BERT)}, seed=1)


def settings(stage: int = 2, device: str | None = None) -> DeepSpeedSettings:
    place = {"offload_optimizer": {"device": device}} if device else {}
    return DeepSpeedSettings({"zero_optimization": {"stage": stage, **place}}, "fp32")


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What was said in the log."""
    lines: list[str] = []
    monkeypatch.setattr("engine.optim.build.say", lines.append)
    return lines


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("adamw", "optimizer: AdamW of this engine's kernels; 34 parameters in 2 group(s), 22 of them without weight"),
        ("lamb", "optimizer: Lamb of this engine's kernels; 34 parameters in 2 group(s), 22 of them without weight"),
        ("lion", "optimizer: Lion of this engine; 34 parameters in 2 group(s), 22 of them without weight decay"),
        ("adafactor", "optimizer: Adafactor of this engine; 34 parameters in 2 group(s), 22 of them without weight"),
        ("muon", "optimizer: Muon of this engine; 34 parameters in 3 group(s), 22 of them without weight decay"),
    ],
)
def test_one_line_says_which(name, line):
    assert describe(build_optimizer(model(), OptimizerConfig(name=name))).startswith(line)


def adamw(weight, gradients, config: OptimizerConfig, decay: float):
    """Loshchilov and Hutter 2019, algorithm 2, with a constant rate, in float64."""
    config = config.completed()
    weight, first, second = weight.astype(np.float64), 0.0, 0.0
    for step, gradient in enumerate(gradients, start=1):
        weight = weight - config.lr * decay * weight
        first = config.betas[0] * first + (1 - config.betas[0]) * gradient
        second = config.betas[1] * second + (1 - config.betas[1]) * gradient**2
        first_hat, second_hat = first / (1 - config.betas[0] ** step), second / (1 - config.betas[1] ** step)
        weight = weight - config.lr * first_hat / (np.sqrt(second_hat) + config.eps)
    return weight


@pytest.mark.parametrize(
    ("backend", "device", "package"),
    [
        ("torch", None, "torch"),
        ("torch", "nvme", "engine"),
        ("kernels", None, "kernels"),
        ("kernels", "nvme", "kernels"),
    ],
)
def test_adamw_is_that_of_the_formula(backend, device, package):
    torch.manual_seed(0)
    config = OptimizerConfig(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2, backend=backend)
    linear = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7))
    optimizer = build_optimizer(linear, config, settings(3, device))
    assert type(optimizer).__module__.startswith(package)
    before = {name: p.detach().numpy().copy() for name, p in linear.named_parameters()}
    generator = np.random.default_rng(0)
    gradients = {name: [generator.normal(size=value.shape) for _ in range(3)] for name, value in before.items()}
    for step in range(3):
        for name, parameter in linear.named_parameters():
            parameter.grad = torch.from_numpy(gradients[name][step]).float()
        optimizer.step()
    for name, parameter in linear.named_parameters():
        expected = adamw(before[name], gradients[name], config, 0.2 if name == "0.weight" else 0.0)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-6, atol=1e-7)


def test_one_that_needs_whole_parameters_does_not_step_unbound():
    built = model()
    optimizer = build_optimizer(built, OptimizerConfig(name="lamb"))
    before = [p.detach().clone() for p in built.parameters()]
    for parameter in built.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # as DeepSpeed does at its start
    assert all(map(torch.equal, before, built.parameters()))
    next(built.parameters()).grad.fill_(1.0)
    with pytest.raises(RuntimeError, match="Lamb must be bound to the DeepSpeed engine before it steps"):
        optimizer.step()


def test_binding_is_nothing_for_others():
    optimizer = build_optimizer(model(), OptimizerConfig())
    bind_optimizer(SimpleNamespace(basic_optimizer=optimizer), model())


def apex(folder: Path, nvidia: bool) -> None:
    """A package named apex: NVIDIA's as far as we use it, or the unrelated one of PyPI."""
    (folder / "apex" / "optimizers").mkdir(parents=True)
    (folder / "apex" / "__init__.py").write_text("")
    if nvidia:
        (folder / "apex" / "optimizers" / "fused_adam.py").write_text("")
        (folder / "apex" / "optimizers" / "__init__.py").write_text(
            "import torch\n"
            "class FusedAdam(torch.optim.Optimizer):\n"
            "    '''Counts steps in the group, as apex does, and adds the count to the weights.'''\n"
            "    def __init__(self, params, lr, betas, eps):\n"
            "        super().__init__(params, dict(lr=lr, betas=betas, eps=eps))\n"
            "    @torch.no_grad()\n"
            "    def step(self, closure=None):\n"
            "        for group in self.param_groups:\n"
            "            group['step'] = group.get('step', 0) + 1\n"
            "            for p in group['params']:\n"
            "                self.state[p].setdefault('exp_avg', torch.zeros_like(p))\n"
            "                p.add_(group['step'])\n"
        )


@pytest.fixture
def with_apex(tmp_path, monkeypatch):
    """Make the given kind of apex importable."""

    def install(nvidia: bool) -> None:
        apex(tmp_path, nvidia)
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
            monkeypatch.delitem(sys.modules, name)

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("config", "ds", "device", "message"),
    [
        (
            {"backend": "apex"},
            settings(),
            "cuda",
            "train.optimizer.backend is 'apex', which is not installed: build https",
        ),
        ({"backend": "apex"}, settings(2, "cpu"), "cuda", "which cannot step on offloaded state; use auto"),
        (
            {"backend": "apex"},
            settings(3),
            "cuda",
            "which counts steps by group, while ZeRO stage 3 steps several times",
        ),
        ({"backend": "apex"}, settings(), "cpu", "train.optimizer.backend is 'apex', which needs a GPU; use auto"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_is_said_before_anything_is_built(config, ds, device, message):
    problems = optimizer_problems(OptimizerConfig(**config), ds, device)
    assert any(message in problem for problem in problems)
    with pytest.raises(ValueError, match=re.escape(message)):
        build_optimizer(model(), OptimizerConfig(**config), ds, device)


def test_the_apex_of_pypi_is_told_from_nvidia_s(with_apex):
    with_apex(nvidia=False)
    (problem,) = optimizer_problems(OptimizerConfig(backend="apex"), settings(), "cuda")
    assert "the package apex that is installed is not NVIDIA's (PyPI's apex is unrelated): remove it" in problem


def test_apex_is_used_on_a_gpu_and_its_count_of_steps_is_kept(with_apex, said):
    with_apex(nvidia=True)
    built = model()
    optimizer = build_optimizer(built, OptimizerConfig(), settings(), "cuda")
    assert describe(optimizer).startswith("optimizer: FusedAdam of NVIDIA apex; ")
    for parameter in built.parameters():
        parameter.data.zero_()
        optimizer.state[parameter] = {"step": 6, "exp_avg": torch.zeros_like(parameter)}  # as after a restore
    optimizer.step()
    assert all(bool((parameter == 7).all()) for parameter in built.parameters())
    assert {int(state["step"]) for state in optimizer.state.values()} == {7}
    assert said == []
    assert describe(build_optimizer(built, OptimizerConfig(), settings(3), "cuda")).startswith(
        "optimizer: AdamW (fused)"
    )


def test_offloaded_adamw_gets_deepspeed_s_kernel_or_a_note(monkeypatch, said):
    def fails(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("DeepSpeedCPUAdam requires the cpu_adam op, which failed to build/load.") from OSError(
            "no g++"
        )

    monkeypatch.setattr("deepspeed.ops.adam.DeepSpeedCPUAdam", fails)
    monkeypatch.setattr(backends, "_announce_build", lambda operator, say: say(f"{operator} is built now"))
    optimizer = build_optimizer(model(), OptimizerConfig(), settings(2, "cpu"))
    assert said == ["cpu_adam is built now", "note: no adamw from deepspeed (no g++); torch's is used"]
    assert describe(optimizer).startswith("optimizer: AdamW (fused) of torch")
    with pytest.raises(
        ValueError, match=r"train.optimizer.backend deepspeed does not work on .*: no g\+\+; use auto or"
    ):
        build_optimizer(model(), OptimizerConfig(backend="deepspeed"), settings(2, "cpu"))


def test_lion_is_ours_everywhere_and_leaves_alone_what_has_no_gradient(said):
    for place in (settings(), settings(2, "cpu"), settings(3, "nvme")):
        parameter = torch.nn.Linear(2, 1)
        optimizer = build_optimizer(parameter, OptimizerConfig(name="lion", lr=0.5, weight_decay=0.0), place)
        before = parameter.weight.detach().clone()
        parameter.weight.grad = torch.tensor([[0.0, 3.0]])
        optimizer.step()
        moved = before - parameter.weight.detach()
        assert moved[0, 0] == 0 and abs(float(moved[0, 1]) - 0.5) < 1e-6
    assert said == []


def test_a_build_of_minutes_is_announced_once(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lines: list[str] = []
    backends._announce_build("cpu_adam", lines.append)
    assert lines == ["DeepSpeed's cpu_adam is built now, once on this machine; that takes minutes"]
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam" / "cpu_adam.so").touch()
    backends._announce_build("cpu_adam", lines.append)
    assert len(lines) == 1


def test_on_a_gpu_only_kernels_that_were_installed_are_tried(monkeypatch):
    place = backends.Place("cuda", 2)
    assert backends.preferences(OptimizerConfig(), place) == []
    monkeypatch.setattr("deepspeed.git_version_info.installed_ops", {"fused_adam": True})
    assert backends.preferences(OptimizerConfig(), place) == ["deepspeed"]
    assert backends.preferences(OptimizerConfig(name="lion"), place) == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_our_kernels_are_taken_where_they_were_measured_ahead(device, monkeypatch):
    place = backends.Place(device, 2)
    monkeypatch.setattr("kernels.dispatch.explain", lambda operation, where: (where.type, ""))
    assert backends.preferences(OptimizerConfig(), place) == ["kernels"]
    assert backends.preferences(OptimizerConfig(), backends.Place(device, 2, "cpu")) == ["deepspeed"]
    assert backends.preferences(OptimizerConfig(name="lion"), place) == []
    monkeypatch.setattr("kernels.dispatch.explain", lambda operation, where: ("reference", "it was not measured"))
    assert backends.preferences(OptimizerConfig(), place) == []
    with pytest.raises(ValueError, match=r"optimizer.backend kernels does not work on .*: it was not measured; use"):
        build_optimizer(model(), OptimizerConfig(backend="kernels"), settings(), device)


def test_steps_are_counted_in_numbers():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter]["step"] = torch.tensor(4.0)
    backends._count_in_numbers(optimizer, (), {})
    assert optimizer.state[parameter]["step"] == 4 and isinstance(optimizer.state[parameter]["step"], int)
