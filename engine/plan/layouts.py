"""Where DeepSpeed 0.19.8 keeps weights, gradients and states in each of its layouts, event by event of a step.

Each class follows one of DeepSpeed's optimizer wrappers (``engine.checkpoint.fragments`` says which is used when), as
this engine sets it up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from engine.config.deepspeed_json import DeepSpeedSettings
from engine.config.optimizer import OptimizerConfig
from engine.plan.account import ACTIVATIONS, BUFFERS, GRADIENTS, OPTIMIZER, WEIGHTS, Account
from engine.plan.sizes import ModelSizes
from engine.plan.trace import Trace

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
    """

    settings: DeepSpeedSettings
    optimizer: OptimizerConfig
    world_size: int
    offload_optimizer: str = "none"
    offload_param: str = "none"

    @property
    def width(self) -> int:
        """Bytes of a weight in the forward pass."""
        return 4 if self.settings.precision == "fp32" else 2

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        found = self.settings.config.get("gradient_accumulation_steps", 1)
        return found if isinstance(found, int) else 1

    @property
    def fp32_sums(self) -> bool:
        """Whether gradients of 16-bit weights add up in fp32."""
        return self.settings.config.get("data_types", {}).get("grad_accum_dtype") == "fp32"


class Layout(ABC):
    """A step of one rank."""

    def __init__(self, sizes: ModelSizes, place: Place, account: Account, host: Account) -> None:
        self.sizes, self.place, self.account, self.host = sizes, place, account, host
        self.size_of = {parameter.name: parameter.size for parameter in sizes.parameters}
        self.ranks, self.width = place.world_size, place.width
        account.add(WEIGHTS, sizes.buffers)

    def run(self, trace: Trace) -> None:
        """The micro-batches of a step, and the step."""
        for micro in range(self.place.accumulation):
            last = micro == self.place.accumulation - 1
            for event in trace.events:
                if event.kind == "bytes":
                    self.account.add(ACTIVATIONS, event.change)
                elif event.kind == "gradient":
                    self.gradient(event.name, micro, last)
            self.end_micro_batch(micro, last)
        self.step()

    @abstractmethod
    def gradient(self, name: str, micro: int, last: bool) -> None:
        """The gradient of a parameter is whole; the trace does not count it any more."""

    @abstractmethod
    def end_micro_batch(self, micro: int, last: bool) -> None:
        """After the backward pass."""

    @abstractmethod
    def step(self) -> None:
        """The optimizer's step."""


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
        """In 16 bits the optimizer has gradients of its own, unless they are fp32 already."""
        if self.width == 2 and self.gradient_width == 2:
            self.account.add(GRADIENTS, 4 * self.sizes.trained)


class Partitioned(Layout):
    """Stages 1 and 2, as a first approximation."""

    def __init__(self, sizes: ModelSizes, place: Place, account: Account, host: Account) -> None:
        super().__init__(sizes, place, account, host)
        account.add(WEIGHTS, self.width * sizes.all)
        store = host if place.offload_optimizer != "none" else account
        store.add(OPTIMIZER, 4 * sizes.trained // self.ranks)
        store.add(OPTIMIZER, sum(group.size * group.state_bytes for group in sizes.groups) // self.ranks)

    def gradient(self, name: str, micro: int, last: bool) -> None:
        """Kept until the step."""
        if micro == 0:
            self.account.add(GRADIENTS, 4 * self.size_of[name])

    def end_micro_batch(self, micro: int, last: bool) -> None:
        """Nothing more."""

    def step(self) -> None:
        """Nothing more."""


def layout_for(sizes: ModelSizes, place: Place, account: Account, host: Account) -> Layout:
    """The layout that DeepSpeed chooses."""
    chosen = Replicated if place.settings.stage == 0 else Partitioned
    return chosen(sizes, place, account, host)
