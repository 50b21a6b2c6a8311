"""ZeRO stage 3: weights divided too, and gathered in time for each module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.plan.account import BUFFERS, GRADIENTS, OPTIMIZER, WEIGHTS, Account
from engine.plan.layouts import Key, Layout, Place
from engine.plan.micro_batch import Trace
from engine.plan.partitioned import REDUCE_BUCKET
from engine.plan.sizes import ModelSizes, Parameter

PREFETCH, PERSISTENCE, LIVE, REUSE = 50_000_000, 100_000, 1_000_000_000, 1_000_000_000  # DeepSpeed's own defaults
SUB_GROUP = 1_000_000_000
EMBEDDINGS = "encoder.embeddings"
EMBEDDING = f"{EMBEDDINGS}.word.weight"


@dataclass
class Gathered:
    """Weights on their way: which of them no module has asked for yet, bytes, and whether they were copied out."""

    awaited: set[str]
    size: int
    copied: bool = False


class Stage3(Layout):
    """As DeepSpeed's coordinator does it from the second step on, when it knows the order of the modules."""

    def __init__(self, sizes: ModelSizes, place: Place, account: Account, host: Account) -> None:
        super().__init__(sizes, place, account, host)
        zero = place.settings.config["zero_optimization"]
        self.prefetch = int(zero.get("stage3_prefetch_bucket_size", PREFETCH))
        self.reuse = int(zero.get("stage3_max_reuse_distance", REUSE))
        self.live = int(zero.get("stage3_max_live_parameters", LIVE))
        self.bucket_size = int(zero.get("reduce_bucket_size", REDUCE_BUCKET))
        self.contiguous = zero.get("contiguous_gradients", True)
        self.wire_width = place.wire_width
        self.sum_width = 4 if place.fp32_sums or self.width == 4 else self.width
        everything = [*sizes.parameters, *sizes.frozen]
        self.all = {parameter.name: parameter for parameter in everything}
        threshold = int(zero.get("stage3_param_persistence_threshold", PERSISTENCE))
        self.persistent = {parameter.name for parameter in everything if parameter.size <= threshold}
        self.sub_groups = list(self._sub_groups(int(zero.get("sub_group_size", SUB_GROUP))))
        self.order: list[list[str]] = []
        self.position, self.queue, self.elements, self.tensors = 0, 0, 0, 0
        self.available: set[str] = set()
        self.active: dict[str, int] = {}
        self.coming: list[Gathered] = []
        self._add_resident()

    def _piece(self, parameter: Parameter) -> int:
        return -(-parameter.size // self.ranks)

    def _sub_groups(self, limit: int) -> list[tuple[str, int, list[Parameter]]]:
        """Rule, state bytes and parameters of each sub-group: parameters until the limit is reached."""
        found = []
        for group in self.sizes.groups:
            part: list[Parameter] = []
            filled = 0
            for parameter in group.parameters:
                part.append(parameter)
                filled += parameter.size
                if filled >= limit:
                    found.append((group.rule, group.state_bytes, part))
                    part, filled = [], 0
            if part:
                found.append((group.rule, group.state_bytes, part))
        return found

    def _add_resident(self) -> None:
        weights = self.host if self.place.offload_param != "none" else self.account
        states = self.host if self.place.offload_optimizer != "none" else self.account
        weights.add(WEIGHTS, self.width * sum(map(self._piece, self.all.values())))
        if self.ranks > 1 or weights is self.host:
            self.account.add(WEIGHTS, self.width * sum(self.all[name].size for name in self.persistent))
        for _, state_bytes, parameters in self.sub_groups:
            states.add(OPTIMIZER, (4 + state_bytes) * sum(map(self._piece, parameters)))
        pieces = sum(map(self._piece, self.sizes.parameters))
        states.add(GRADIENTS, self.sum_width * pieces)
        if states is self.host:
            states.add(GRADIENTS, 4 * pieces)
        if self.contiguous:
            self.account.add(BUFFERS, self.bucket_size * self.wire_width)

    def run(self, trace: Trace) -> None:
        """Learn the order of the modules first."""
        self.order = [self._weights_of(event.name) for event in trace.events if event.kind == "enter"]
        super().run(trace)

    def _weights_of(self, module: str) -> list[str]:
        if module == EMBEDDINGS:  # a module of the trace only where it reads the weights of its parts
            return [name for name in self.all if name.startswith(f"{EMBEDDINGS}.")]
        own = [name for name in self.all if name.rpartition(".")[0] == module]
        return [*own, EMBEDDING] if module in ("heads.mlm", "heads.lm") else own

    def at_module(self, kind: str, name: str) -> None:
        """Gather a module's weights and some to come, or release them."""
        if kind == "enter":
            self._enter(name)
        else:
            self._leave(name)

    def _enter(self, module: str) -> None:
        weights = self._weights_of(module)
        for name in weights:
            self.active[name] = self.active.get(name, 0) + 1
        self._gather([name for name in weights if name not in self.available])
        self._arrive(weights)
        self.position += 1
        self.queue = max(self.queue, self.position)
        room = min(self.prefetch, self.live - sum(self.all[name].size for name in self.available))
        ahead: list[str] = []
        filled = 0
        while self.queue < len(self.order) and filled < room:
            fresh = [name for name in self.order[self.queue] if name not in self.available and name not in ahead]
            ahead += fresh
            filled += sum(self.all[name].size for name in fresh if name not in self.persistent)
            self.queue += 1
        self._gather(ahead)

    def _gather(self, names: Sequence[str]) -> None:
        """Ask for weights: one in its own memory, several in a buffer that they are copied out of when they arrive."""
        missing = [name for name in names if name not in self.persistent]
        self.available.update(missing)
        if not missing or (self.ranks == 1 and self.place.offload_param == "none"):
            return
        size = self.width * sum(self.all[name].size for name in missing)
        if len(missing) == 1:
            self.account.add(WEIGHTS, size)
            return
        self.account.add(BUFFERS, size)
        self.coming.append(Gathered(set(missing), size))

    def _arrive(self, weights: Sequence[str]) -> None:
        """The first weight of a buffer that is needed has all of it copied; the last one releases it."""
        for gathered in self.coming:
            if gathered.awaited.isdisjoint(weights):
                continue
            if not gathered.copied:
                self.account.add(WEIGHTS, gathered.size)
                gathered.copied = True
            gathered.awaited.difference_update(weights)
            if not gathered.awaited:
                self.account.add(BUFFERS, -gathered.size)
        self.coming = [gathered for gathered in self.coming if gathered.awaited]

    def _leave(self, module: str) -> None:
        weights = self._weights_of(module)
        soon: set[str] = set()
        seen = 0
        for names in self.order[self.position :]:
            if seen >= self.reuse:
                break
            soon.update(names)
            seen += sum(self.all[name].size for name in names)
        for name in weights:
            self.active[name] = self.active.get(name, 1) - 1
            if name not in soon and name != EMBEDDING and not self.active[name]:
                self._release(name)

    def _release(self, name: str) -> None:
        if name in self.available:
            self.available.discard(name)
            if self.ranks > 1 or self.place.offload_param != "none":
                self.account.add(WEIGHTS, -self.width * self.all[name].size)

    def gradient(self, name: str, micro: int, last: bool) -> None:
        """Into the bucket, or beside it where it is larger."""
        size = self.size_of[name]
        if self.elements + size > self.bucket_size:
            self._reduce()
        self.account.add(GRADIENTS, self.width * size)
        if self.contiguous and self.elements + size <= self.bucket_size:
            self.account.add(GRADIENTS, -self.width * size)
        else:
            self.large = self.width * size
        self.elements += size
        self.tensors += 1

    large = 0  # bytes of a gradient that stands beside the bucket

    def _reduce(self) -> None:
        """Sum up over the ranks and keep this rank's pieces."""
        if not self.elements:
            return
        copies = self.elements * self.wire_width if self.wire_width != self.width else 0
        copies += self.elements * self.wire_width if self.tensors > 1 else 0
        with self.account.holding(BUFFERS, copies):
            pass
        self.account.add(GRADIENTS, -self.large)
        self.large = self.elements = self.tensors = 0

    def end_micro_batch(self, micro: int, last: bool) -> None:
        """Reduce what is left; the next micro-batch begins the order anew."""
        self._reduce()
        self.position = self.queue = 0

    def step(self) -> None:
        """All weights are released; sub-group by sub-group a copy of the gradients, and the optimizer's step."""
        self._arrive([name for gathered in self.coming for name in gathered.awaited])
        for name in list(self.available):
            self._release(name)
        if self.place.offload_optimizer != "none":
            return
        with self.account.holding(GRADIENTS, 8 * max(map(self._piece, self.sizes.parameters))):  # a norm in fp64
            pass
        for rule, _, parameters in self.sub_groups:
            pieces = [self._piece(parameter) for parameter in parameters]
            copied = sum(pieces) * (4 if self.sum_width == 4 else 6)
            with self.account.holding(GRADIENTS, copied):
                self.hold_for_step([[Key(rule, sum(pieces), max(pieces))]])
