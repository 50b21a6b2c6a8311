"""Optimizers that compute with whole parameters, while ZeRO hands them flat tensors of pieces.

DeepSpeed averages, unscales and clips gradients before it calls ``step``, and calls it equally often on every rank:
once for each parameter group at stages 1 and 2, once for each sub-group at stage 3. So ``step`` may talk to the other
ranks, and quantities of a whole parameter are sums over its pieces. The gradients of a step are there on all ranks, or
(a step that is skipped) on none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.fragments import all_keys, fragments, is_replicated
from kernels.optimizer import loss_of

Work = list[tuple[dict[str, Any], Tensor]]  # keys with gradients, each with its group


@dataclass(frozen=True)
class Piece:
    """A piece of a parameter in a key.

    Attributes:
        parameter: number of the parameter, the same on every rank.
        key_offset: first element in the flattened key.
        size: elements.
        offset: first element in the flattened parameter.
    """

    parameter: int
    key_offset: int
    size: int
    offset: int

    def of(self, key: Tensor) -> Tensor:
        """View [size] of a contiguous tensor that is shaped like the key."""
        return key.view(-1).narrow(0, self.key_offset, self.size)


class WholeParameterOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer that knows which piece of which parameter stands where in the tensors that it steps on."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self.names: list[str] = []
        self.shapes: list[torch.Size] = []
        self.pieces: dict[Tensor, list[Piece]] = {}
        self.members: dict[Tensor, list[int]] = {}
        self.cut: list[bool] = []
        self.sharded = False
        self._device = torch.device("cpu")

    def bind(self, engine: Any, model: nn.Module) -> None:
        """Learn where the pieces are; all ranks must call it once, after ``deepspeed.initialize``.

        Args:
            engine: the DeepSpeed engine.
            model: the module whose parameter names the checkpoint uses.
        """
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names = list(named)
        self.shapes = [torch.Size(getattr(p, "ds_shape", p.shape)) for p in named.values()]
        self.sharded = not is_replicated(engine) and torch.distributed.get_world_size() > 1
        self._device = engine.device
        numbers = {name: number for number, name in enumerate(self.names)}
        found = fragments(engine, model)
        keys = all_keys(engine, found)
        self.pieces = {key: [] for key in keys}
        for f in found:
            self.pieces[f.key].append(Piece(numbers[f.name], f.key_offset, f.size, f.offset))
        holders = torch.zeros(len(keys), len(self.names))  # ranks that hold a piece of a parameter in a key
        for row, key in zip(holders, keys, strict=True):
            row[[piece.parameter for piece in self.pieces[key]]] = 1
        holders = self.sum(holders)
        self.members = {key: row.nonzero().view(-1).tolist() for key, row in zip(keys, holders, strict=True)}
        self.cut = (holders.sum(0) > 1).tolist() if self.sharded else [False] * len(self.names)
        self.state.clear()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks what each has of its pieces; where all hold whole parameters there is nothing to do."""
        if not self.sharded:
            return tensor
        total = tensor.to(self._device)  # keys may be on the host while the ranks talk through GPUs
        torch.distributed.all_reduce(total)
        return total.to(tensor.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step on the keys that have a gradient; the loss of a closure, which makes them first.

        Raises:
            RuntimeError: if it was not bound. DeepSpeed's own step on zero gradients at the start does nothing.
        """
        loss = loss_of(closure)
        work: Work = [(group, key) for group in self.param_groups for key in group["params"] if key.grad is not None]
        if not self.pieces:
            if any(key.grad is not None and bool(key.grad.any()) for _, key in work):
                raise RuntimeError(f"{type(self).__name__} must be bound to the DeepSpeed engine before it steps")
            return loss
        for part in self.parts(work):
            if part:
                self.update(part)
        return loss

    def parts(self, work: Work) -> list[Work]:
        """What to step on at once: where ranks need not talk, one key after the other, which takes less memory."""
        return [work] if self.sharded else [[item] for item in work]

    @abstractmethod
    def update(self, work: Work) -> None:
        """Take a step on some keys, the same ones on every rank."""

    def squared_norms(self, vectors: dict[Tensor, list[Tensor]]) -> Tensor:
        """Squared norms of whole parameters.

        Args:
            vectors: for each key the same number V of tensors that are shaped like it.

        Returns:
            [V, parameters] float64, on the device of the keys; 0 for parameters that are in none of the keys.
        """
        first = next(iter(vectors.values()))
        result = torch.zeros(len(first), len(self.names), dtype=torch.float64, device=first[0].device)
        for key, tensors in vectors.items():
            for piece in self.pieces[key]:
                for row, tensor in zip(result, tensors, strict=True):
                    norm = torch.linalg.vector_norm(piece.of(tensor), dtype=torch.float64)
                    row[piece.parameter] += norm.square()
        return self.sum(result)


def next_step(state: dict[str, Any]) -> int:
    """Count a step in the state of a key; a checkpoint gives the count as a tensor."""
    state["step"] = int(state.get("step", 0)) + 1
    return int(state["step"])


def moment(state: dict[str, Any], name: str, key: Tensor) -> Tensor:
    """A state that is shaped like the key, zero at first."""
    if name not in state:
        state[name] = torch.zeros_like(key, memory_format=torch.contiguous_format)
    values: Tensor = state[name]
    return values


def adam_direction(state: dict[str, Any], key: Tensor, group: dict[str, Any]) -> Tensor:
    """Advance Adam's moments (arXiv:1412.6980, algorithm 1); the update before the rate, shaped like the key."""
    count, gradient = next_step(state), key.grad
    assert gradient is not None
    beta1, beta2 = group["betas"]
    first = moment(state, "exp_avg", key).lerp_(gradient, 1 - beta1)
    second = moment(state, "exp_avg_sq", key).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = (second / (1 - beta2**count)).sqrt_().add_(group["eps"])
    return (first / (1 - beta1**count)).div_(scale)


def apply_update(key: Tensor, update: Tensor, group: dict[str, Any]) -> None:
    """Decoupled weight decay (arXiv:1711.05101), then the update at the group's rate."""
    key.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
