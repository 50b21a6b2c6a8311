"""The optimizers in float64 on whole parameters, written from the papers and not from the engine's code."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from engine.config.optimizer import OptimizerConfig
from engine.models.model import Model
from tests.engine.optim import zero_runs

State = dict[str, Any]


def adam(gradient: Tensor, state: State, betas: tuple[float, float], eps: float) -> Tensor:
    """Kingma and Ba 2015."""
    t = state["t"]
    state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * gradient
    state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * gradient * gradient
    return (state["m"] / (1 - betas[0] ** t)) / ((state["v"] / (1 - betas[1] ** t)).sqrt() + eps)


def adamw(name: str, w: Tensor, g: Tensor, state: State, lr: float, decay: float) -> Tensor:
    return w - lr * decay * w - lr * adam(g, state, (0.9, 0.999), 1e-6)


def lamb(name: str, w: Tensor, g: Tensor, state: State, lr: float, decay: float) -> Tensor:
    update = adam(g, state, (0.9, 0.999), 1e-6) + decay * w
    if decay == 0:
        return w - lr * update
    ratio = float(w.norm() / update.norm())
    state.setdefault("ratios", []).append(ratio)
    return w - lr * min(max(ratio, 0.105), 0.22) * update


def lion(name: str, w: Tensor, g: Tensor, state: State, lr: float, decay: float) -> Tensor:
    momentum = state.get("m", torch.zeros_like(g))
    update = torch.sign(0.9 * momentum + 0.1 * g)
    state["m"] = 0.99 * momentum + 0.01 * g
    return w - lr * (update + decay * w)


def adafactor(name: str, w: Tensor, g: Tensor, state: State, lr: float, decay: float) -> Tensor:
    keep = 1 - state["t"] ** -0.8
    squares = g * g + 1e-12
    if w.dim() == 2:
        state["r"] = keep * state.get("r", 0) + (1 - keep) * squares.mean(1)
        state["c"] = keep * state.get("c", 0) + (1 - keep) * squares.mean(0)
        second = torch.outer(state["r"], state["c"]) / state["r"].mean()
    else:
        second = state["v"] = keep * state.get("v", 0) + (1 - keep) * squares
    update = g / second.sqrt()
    update = update / max(1.0, float(update.square().mean().sqrt()))
    return w - lr * decay * w - lr * update


def muon(name: str, w: Tensor, g: Tensor, state: State, lr: float, decay: float) -> Tensor:
    if not (name.startswith("encoder.layers.") and w.dim() == 2):
        return w - lr * decay * w - lr * adam(g, state, (0.9, 0.95), 1e-6)
    state["m"] = 0.95 * state.get("m", 0) + 0.05 * g
    update = 0.05 * g + 0.95 * state["m"]
    parts = update.chunk(3) if "qkv" in name else [update]
    whole = torch.cat([quintic(part) * 0.2 * max(part.shape) ** 0.5 for part in parts])
    return w - lr * decay * w - lr * whole


def quintic(g: Tensor) -> Tensor:
    """Jordan's iteration, as it acts on singular values."""
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    s = s / (s.square().sum().sqrt() + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


RULES: dict[str, Callable[..., Tensor]] = {
    "adamw": adamw, "lamb": lamb, "lion": lion, "adafactor": adafactor, "muon": muon
}  # fmt: skip


def loss_of(model: Model, step: int) -> Tensor:
    """Mean cross-entropy over all targets of a step."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in zero_runs.micro_batches(step):
        hidden = model.encoder(batch.tokens, batch.positions, None, batch.layout)
        target = batch.targets["lm"]
        logits = hidden[target.index] @ model.word_embedding[:53].T
        total = total + F.cross_entropy(logits, target.labels, reduction="sum")
        count += len(target.labels)
    return total / count


def train(config: OptimizerConfig) -> tuple[list[float], list[float], dict[str, Tensor], dict[str, State]]:
    """Losses, norms before clipping, final weights and states of the training that the engines do."""
    model = zero_runs.first_model().double()
    frozen = re.compile(r"(.*position\.weight|.*qkv\.bias)$")
    named: dict[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if not frozen.match(n)}
    states: dict[str, State] = {name: {} for name in named}
    excluded = {"adamw": r".*embeddings\.word.*", "lamb": r".*1\.mlp\.up\.weight"}.get(config.name, "$^")
    losses, norms = [], []
    for step in range(zero_runs.STEPS):
        loss = loss_of(model, step)
        gradients = torch.autograd.grad(loss, list(named.values()))
        norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
        losses.append(float(loss.detach()))
        norms.append(float(norm))
        with torch.no_grad():
            for (name, p), gradient in zip(named.items(), gradients, strict=True):
                layer = re.match(r"encoder\.layers\.(\d)", name)
                power = 3 if "embeddings" in name else 2 - int(layer[1]) if layer else 0
                lr = zero_runs.rate(config, step) * 0.8**power
                decay = 0.0 if p.dim() == 1 or re.match(excluded, name) else config.weight_decay
                states[name]["t"] = step + 1
                clipped = gradient * min(1.0, zero_runs.CLIP / float(norm))
                p.copy_(RULES[config.name](name, p.clone(), clipped, states[name], lr, decay))
    return losses, norms, {name: p.detach() for name, p in model.named_parameters()}, states
