"""Where DeepSpeed 0.19.8 keeps weights, gradients and states in each of its layouts, event by event of a step.

Each class follows one of DeepSpeed's optimizer wrappers (``engine.checkpoint.fragments`` says which is used when), as
this engine sets it up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.config.deepspeed_json import DeepSpeedSettings
from engine.config.optimizer import OptimizerConfig
from engine.optim.muon import BUCKET_ELEMENTS
from engine.plan.account import ACTIVATIONS, BUFFERS, GRADIENTS, OPTIMIZER, WEIGHTS, Account
from engine.plan.micro_batch import Trace
from engine.plan.sizes import ModelSizes

FALLBACK_BUCKET = 500_000_000  # elements that DeepSpeed's engine reduces at once where no wrapper does it


@dataclass(frozen=True)
class Place:
    """What decides the layout.

    Attributes:
        settings: the completed DeepSpeed file.
        optimizer: the optimizer.
        world_size: ranks.
        offload_optimizer: where states are: none, cpu or nvme.
        offload_param: where weights are.
        device_type: cuda or cpu.
    """

    settings: DeepSpeedSettings
    optimizer: OptimizerConfig
    world_size: int
    offload_optimizer: str = "none"
    offload_param: str = "none"
    device_type: str = "cpu"

    @property
    def flattens(self) -> bool:
        """Whether DeepSpeed may wrap a fused Adam (apex's or its own) at stage 0, which flattens the gradients.

        With ``auto`` a GPU takes one where it is installed, which is not known here: the larger need is counted.
        """
        fused = ("apex", "deepspeed", "auto") if self.device_type == "cuda" else ("apex", "deepspeed")
        return self.optimizer.name == "adamw" and self.optimizer.backend in fused

    @property
    def width(self) -> int:
        """Bytes of a weight in the forward pass."""
        return 4 if self.settings.precision == "fp32" else 2

    @property
    def wire_width(self) -> int:
        """Bytes of a gradient on its way between the ranks."""
        given = str(self.settings.config.get("communication_data_type"))
        return {"fp32": 4, "fp16": 2, "bf16": 2}.get(given, self.width)

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        found = self.settings.config.get("gradient_accumulation_steps", 1)
        return found if isinstance(found, int) else 1

    @property
    def fp32_sums(self) -> bool:
        """Whether gradients of 16-bit weights add up in fp32."""
        return self.settings.config.get("data_types", {}).get("grad_accum_dtype") == "fp32"


class Key(NamedTuple):
    """A tensor that the optimizer steps on.

    Attributes:
        rule: of its group.
        size: elements.
        largest: elements of the largest piece of a parameter in it.
    """

    rule: str
    size: int
    largest: int


class Layout(ABC):
    """A step of one rank."""

    def __init__(self, sizes: ModelSizes, place: Place, account: Account, host: Account) -> None:
        self.sizes, self.place, self.account, self.host = sizes, place, account, host
        self.size_of = {parameter.name: parameter.size for parameter in sizes.parameters}
        self.ranks, self.width = place.world_size, place.width
        account.add(WEIGHTS, sizes.buffers)

    def run(self, trace: Trace) -> None:
        """The micro-batches of a step, and the step."""
        num = min(self.place.accumulation, 3)  # those between the second and the last are like the second
        for micro in range(num):
            last = micro == num - 1
            for event in trace.events:
                if event.kind == "bytes":
                    self.account.add(ACTIVATIONS, event.change)
                elif event.kind == "gradient":
                    self.gradient(event.name, micro, last)
                else:
                    self.at_module(event.kind, event.name)
            self.end_micro_batch(micro, last)
        self.step()

    def at_module(self, kind: str, name: str) -> None:  # noqa: B027  (matters to stage 3 alone)
        """A module begins (``enter``) or ends (``leave``), forward or backward."""

    def hold_for_step(self, calls: Sequence[Sequence[Key]]) -> None:
        """What the optimizer needs for a moment, for the keys of its calls; our kernels on CPUs need nothing."""
        name, stage = self.place.optimizer.name, self.place.settings.stage
        if name == "lamb" and self.place.device_type == "cpu" and self.place.optimizer.backend == "auto":
            return
        needed = max((step_bytes(name, keys, self.ranks, stage) for keys in calls if keys), default=0)
        with self.account.holding(OPTIMIZER, needed):
            pass

    @abstractmethod
    def gradient(self, name: str, micro: int, last: bool) -> None:
        """The gradient of a parameter is whole; the trace does not count it any more."""

    @abstractmethod
    def end_micro_batch(self, micro: int, last: bool) -> None:
        """After the backward pass."""

    @abstractmethod
    def step(self) -> None:
        """The optimizer's step."""


def step_bytes(name: str, keys: Sequence[Key], ranks: int, stage: int) -> int:
    """What an optimizer needs for a moment while it steps on some keys at once, beside its state.

    The updates of all keys are there until the last; what one key needs beside them goes again.
    """
    if name == "adamw":
        return 0  # torch's and DeepSpeed's kernels need nothing
    kept = [4 * key.size if name in ("lion", "adafactor") or key.rule in ("trust", "muon") else 0 for key in keys]
    norms = 8 * max(key.largest for key in keys)  # of one piece, in fp64
    alone = max(8 * key.size - held for key, held in zip(keys, kept, strict=True))
    extra = {
        "lion": 0,
        "lamb": max(alone, norms),
        "adafactor": norms,
        "muon": max(alone, exchange_bytes(keys, ranks, stage)),
    }[name]
    return max(extra, 0) + (sum(kept) if name != "lion" else max(kept))


def exchange_bytes(keys: Sequence[Key], ranks: int, stage: int) -> int:
    """Muon: the whole matrices that are gathered at a time, and what making one orthogonal needs: four of its size."""
    cut = [key for key in keys if key.rule == "muon"]
    if not cut:
        return 0
    matrix = max(key.largest for key in cut) * (ranks if stage == 3 else 1)
    gathered = {0: matrix, 3: min(ranks * sum(key.size for key in cut), BUCKET_ELEMENTS)}.get(stage, 2 * matrix)
    return 4 * (gathered if ranks > 1 else 0) + 16 * matrix


class Replicated(Layout):
    """Stage 0: every rank holds everything; in 16 bits an fp32 copy of every parameter beside it."""

    def __init__(self, sizes: ModelSizes, place: Place, account: Account, host: Account) -> None:
        super().__init__(sizes, place, account, host)
        account.add(WEIGHTS, self.width * sizes.all)
        if self.width == 2:
            account.add(OPTIMIZER, 4 * sizes.trained)
        account.add(OPTIMIZER, sum(group.size * group.state_bytes for group in sizes.groups))
        self.gradient_width = 4 if place.settings.fp32_gradients else self.width

    def gradient(self, name: str, micro: int, last: bool) -> None:
        """Kept until the step; later ones are added to it."""
        if micro == 0:
            self.account.add(GRADIENTS, self.gradient_width * self.size_of[name])

    def end_micro_batch(self, micro: int, last: bool) -> None:
        """All ranks sum up one copy of all gradients."""
        if last and self.ranks > 1:
            with self.account.holding(BUFFERS, self.gradient_width * min(self.sizes.trained, FALLBACK_BUCKET)):
                pass

    def step(self) -> None:
        """In 16 bits the optimizer has gradients of its own: flat ones, or each alone unless it is fp32 already."""
        if self.width == 2 and self.place.flattens:
            for group in self.sizes.groups:
                with self.account.holding(GRADIENTS, 4 * group.size if self.gradient_width == 2 else 0):
                    self.account.add(GRADIENTS, 4 * group.size)
        elif self.width == 2 and self.gradient_width == 2:
            self.account.add(GRADIENTS, 4 * self.sizes.trained)
        keys = [Key(group.rule, p.size, p.size) for group in self.sizes.groups for p in group.parameters]
        self.hold_for_step([[key] for key in keys])
