"""Bytes of one rank by what they are for, and the moment at which they are most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, BUFFERS = "weights", "gradients", "optimizer", "activations", "buffers"
PARTS = (WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, BUFFERS)


class Account:
    """Bytes by part, as they come and go."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self._most = -1

    def add(self, part: str, change: int) -> None:
        """Allocate bytes of a part, or release them where negative."""
        self.now[part] += change
        if change > 0 and (total := sum(self.now.values())) > self._most:
            self._most, self.at_peak = total, {name: self.now[name] for name in PARTS}

    @contextmanager
    def holding(self, part: str, size: int) -> Iterator[None]:
        """Bytes that are there for the length of a block."""
        self.add(part, size)
        yield
        self.add(part, -size)
