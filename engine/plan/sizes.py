"""How large a model's parameters are, in the groups that an optimizer makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.config.arch import ArchConfig
from engine.config.optimizer import OptimizerConfig
from engine.models.model import Model
from engine.models.transformer import Transformer
from engine.objectives.base import PretrainingObjective
from engine.optim.groups import parameter_groups

STATE_BYTES = {"adamw": 8, "trust": 8, "lion": 4, "muon": 4, "vector": 4, "factored": 0}  # of an element, by rule


@dataclass(frozen=True)
class Parameter:
    """A parameter: its name and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class Group:
    """Parameters that an optimizer treats alike, in the order of the model."""

    rule: str
    parameters: tuple[Parameter, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state of one element."""
        return STATE_BYTES[self.rule]


@dataclass(frozen=True)
class ModelSizes:
    """The parameters of a model.

    Attributes:
        groups: those that train, as the optimizer groups them.
        frozen: those that do not.
        buffers: bytes of what is no parameter; DeepSpeed keeps it in fp32.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Parameter, ...]
    buffers: int

    @property
    def trained(self) -> int:
        """Elements that train."""
        return sum(group.size for group in self.groups)

    @property
    def all(self) -> int:
        """Elements of all parameters."""
        return self.trained + sum(parameter.size for parameter in self.frozen)

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Those that train."""
        return [parameter for group in self.groups for parameter in group.parameters]


def model_without_memory(arch: ArchConfig, objective: PretrainingObjective) -> Model:
    """A model with its heads on the device ``meta``."""
    with torch.device("meta"):
        return Model(Transformer(arch), objective.make_heads(arch))


def sizes_of(model: Model, optimizer: OptimizerConfig) -> ModelSizes:
    """The parameters of a model; freezes what the settings freeze."""
    groups = parameter_groups(model, optimizer.completed())
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def sized(parameter: torch.Tensor) -> Parameter:
        return Parameter(names[id(parameter)], tuple(parameter.shape))

    return ModelSizes(
        tuple(Group(group["rule"], tuple(sized(p) for p in group["params"])) for group in groups),
        tuple(sized(p) for p in model.parameters() if not p.requires_grad),
        sum(4 * buffer.numel() for buffer in model.buffers()),
    )
