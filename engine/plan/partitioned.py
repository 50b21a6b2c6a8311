"""ZeRO stages 1 and 2: optimizer state, and at stage 2 gradients, divided over the ranks."""

from __future__ import annotations

from engine.plan.account import BUFFERS, GRADIENTS, OPTIMIZER, WEIGHTS, Account
from engine.plan.layouts import FALLBACK_BUCKET, Key, Layout, Place
from engine.plan.sizes import Group, ModelSizes

ALIGNMENT = 2  # elements that DeepSpeed rounds a rank's partition up to
REDUCE_BUCKET = 500_000_000  # DeepSpeed's own default
SAMPLED_RANKS = 8


def partition_size(group: Group, ranks: int) -> int:
    """Elements of a group on one rank, padded."""
    unit = ALIGNMENT * ranks
    return -(-group.size // unit) * unit // ranks


def in_partition(group: Group, ranks: int, rank: int) -> dict[str, int]:
    """Elements of the parameters that a rank has a part of, each whole, by name."""
    size = partition_size(group, ranks)
    begin, at, found = rank * size, 0, {}
    for parameter in group.parameters:
        if begin < at + parameter.size and at < begin + size:
            found[parameter.name] = parameter.size
        at += parameter.size
    return found


def ranks_that_differ(ranks: int) -> list[int]:
    """Ranks whose shares of the parameters may be most: all of a few, else a sample of them."""
    return sorted({round(number * (ranks - 1) / (SAMPLED_RANKS - 1)) for number in range(SAMPLED_RANKS)})


def partition_keys(sizes: ModelSizes, ranks: int) -> list[Key]:
    """What the optimizer steps on: the flat partition of each group."""
    keys = []
    for group in sizes.groups:
        size = partition_size(group, ranks)
        keys.append(Key(group.rule, size, min(size, max(parameter.size for parameter in group.parameters))))
    return keys


class Bf16Partitioned(Layout):
    """Stage 1 in bf16 with fp32 sums: every rank adds up all gradients in fp32, in memory that is always there."""

    def __init__(self, sizes: ModelSizes, place: Place, account: Account, host: Account) -> None:
        super().__init__(sizes, place, account, host)
        self.keys = partition_keys(sizes, self.ranks)
        account.add(WEIGHTS, self.width * sizes.all)
        account.add(OPTIMIZER, sum(4 * key.size for key in self.keys))
        states = zip(self.keys, sizes.groups, strict=True)
        account.add(OPTIMIZER, sum(key.size * group.state_bytes for key, group in states))
        account.add(GRADIENTS, 4 * sizes.trained)

    def gradient(self, name: str, micro: int, last: bool) -> None:
        """The bf16 gradient is kept beside the sum until the step ends."""
        if micro == 0:
            self.account.add(GRADIENTS, self.width * self.size_of[name])

    def end_micro_batch(self, micro: int, last: bool) -> None:
        """Add the gradients to the sums one after the other; then all ranks sum up one copy of them."""
        with self.account.holding(GRADIENTS, 4 * max(self.size_of.values())):
            pass
        if last and self.ranks > 1:
            with self.account.holding(BUFFERS, 4 * min(self.sizes.trained, FALLBACK_BUCKET)):
                pass

    def step(self) -> None:
        """The optimizer steps on all groups in one call."""
        self.hold_for_step([self.keys])


class Partitioned(Layout):
    """Stages 1 and 2 otherwise: gradients pass through buckets to the rank that keeps them."""

    def __init__(self, sizes: ModelSizes, place: Place, account: Account, host: Account, rank: int = 0) -> None:
        super().__init__(sizes, place, account, host)
        zero = place.settings.config["zero_optimization"]
        self.owned: dict[str, int] = {}
        for group in sizes.groups:
            self.owned |= in_partition(group, self.ranks, rank)
        self.stage, self.offloaded = place.settings.stage, place.offload_optimizer != "none"
        self.bucket_size = int(zero.get("reduce_bucket_size", REDUCE_BUCKET))
        self.contiguous = zero.get("contiguous_gradients", True)
        self.overlap = bool(zero.get("overlap_comm", False))
        self.compact = self.width == 2 and place.fp32_sums
        self.sums_beside = (
            self.compact and self.stage == 1
        )  # fp32 sums of whole gradients, in an attribute of their own
        self.bucket_width = 4 if self.sums_beside else self.width
        self.wire_width = place.wire_width
        self.keys = partition_keys(sizes, self.ranks)
        self.elements, self.large, self.filled, self.owns = 0, 0, False, False
        account.add(WEIGHTS, self.width * sizes.all)
        self._add_states(host if self.offloaded else account)

    def _add_states(self, store: Account) -> None:
        states = zip(self.keys, self.sizes.groups, strict=True)
        store.add(OPTIMIZER, sum(key.size * (4 + group.state_bytes) for key, group in states))
        if self.offloaded:
            largest = self.width * max(self.size_of.values())
            store.add(GRADIENTS, sum(4 * key.size for key in self.keys))
            store.add(BUFFERS, largest + sum(self.width * key.size for key in self.keys))
            self.account.add(BUFFERS, largest)

    def gradient(self, name: str, micro: int, last: bool) -> None:
        """Into the bucket; at stage 1 without overlap only after the last backward pass."""
        size = self.size_of[name]
        if not self.filled:
            self.filled = True
            if self.contiguous:
                self.account.add(BUFFERS, self.bucket_size * self.bucket_width * (2 if self.overlap else 1))
        early = self.stage == 2 or (self.overlap and last)
        if self.stage == 1 and (micro == 0 or self.sums_beside):
            self.account.add(GRADIENTS, self.bucket_width * size)
        elif self.stage == 2:
            self.account.add(GRADIENTS, self.width * size)
        if early:
            self._into_bucket(name)

    def _into_bucket(self, name: str) -> None:
        """Move a gradient, which was counted, into the bucket; one that is larger stands for itself."""
        size = self.size_of[name]
        if self.elements + size > self.bucket_size:
            self._reduce()
        self.elements += size
        self.owns = self.owns or name in self.owned
        if self.contiguous and size <= self.bucket_size:
            self.account.add(GRADIENTS, -self.bucket_width * size)
        else:
            self.large += self.bucket_width * size

    def _reduce(self) -> None:
        """Sum a bucket up over the ranks, and take what this rank keeps out of it."""
        if not self.elements:
            return
        copy = self.elements * self.bucket_width if self.ranks > 1 or self.compact else 0
        copy += self.elements * self.wire_width if self.wire_width != self.bucket_width else 0
        if self.compact:
            self._keep()
        with self.account.holding(BUFFERS, copy):
            pass
        if not self.compact:
            self._keep()
            self.account.add(GRADIENTS, -self.large)
            self.large = 0
        self.elements, self.owns = 0, False

    def _keep(self) -> None:
        """Room for this rank's share, from the first bucket on that holds some of it."""
        if self.kept_now or not self.owns:
            return
        self.kept_now = self._share()
        self.account.add(GRADIENTS, self.kept_now)

    kept_now = 0  # bytes of this rank's share of the gradients of this micro-batch
    kept_before = 0  # of those before it

    def _share(self) -> int:
        if self.offloaded and not self.compact:
            return 0
        if self.compact:
            return sum(4 * key.size for key in self.keys)
        return self.width * sum(self.owned.values())

    def end_micro_batch(self, micro: int, last: bool) -> None:
        """Reduce what is left; release the buckets."""
        if self.stage == 1 and not last:
            self._release_buckets()
            return
        if self.stage == 1 and not self.overlap:
            for parameter in self.sizes.parameters:
                self._into_bucket(parameter.name)
        self._reduce()
        self.account.add(GRADIENTS, -self.large)
        self.large = 0
        if not self.compact:
            if self.kept_before:
                self.account.add(GRADIENTS, -self.kept_now)
            else:
                self.kept_before = self.kept_now
            self.kept_now = 0
        self._release_buckets()

    def _release_buckets(self) -> None:
        if self.filled and self.contiguous:
            self.account.add(BUFFERS, -self.bucket_size * self.bucket_width * (2 if self.overlap else 1))
        self.filled = False

    def step(self) -> None:
        """Group by group: the share's gradients flat and in fp32, and the optimizer's step."""
        if self.offloaded:
            return
        largest = max(key.largest for key in self.keys)
        with self.account.holding(GRADIENTS, 8 * largest):  # a norm in fp64
            pass
        for key in self.keys:
            flat = 0 if self.compact else self.width * key.size
            single = 0 if self.compact else 4 * key.size if self.width == 2 else flat
            with self.account.holding(GRADIENTS, flat + (single if self.width == 2 else 0)):
                pass
            with self.account.holding(GRADIENTS, single):
                self.hold_for_step([[key]])
