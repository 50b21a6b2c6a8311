"""What is read from a GPU without waiting for it: one update late."""

from __future__ import annotations

import torch
from torch import Tensor


class LaggingFlag:
    """A flag that is on the device, read without waiting for a GPU: there it tells what held one update before.

    An update waits for the copy that the one before it began. So the host is a step ahead of the GPU, and no more.
    """

    def __init__(self, device: torch.device, lags: bool | None = None) -> None:
        """Begin unset.

        Args:
            device: of the values.
            lags: whether values are read one update late; not given: from a GPU, as a CPU's are there at once.
        """
        self._on_gpu = device.type == "cuda"
        self._lags = self._on_gpu if lags is None else lags
        self._set = False
        self._pending: tuple[Tensor, torch.cuda.Event | None] | None = None

    def update(self, value: Tensor) -> None:
        """Take a new value: scalar on the device, above 0 where the flag is set."""
        self.settle()
        if self._on_gpu:
            host = torch.empty((), dtype=value.dtype, pin_memory=True)
            host.copy_(value, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._pending = host, copied
        else:
            self._pending = value.detach(), None
        if not self._lags:
            self.settle()

    def settle(self) -> None:
        """Read the newest value; waits for it."""
        if self._pending is None:
            return
        host, copied = self._pending
        if copied is not None:
            copied.synchronize()
        self._set = self._set or float(host.numpy()) > 0  # memory of the host: nothing waits for it
        self._pending = None

    def is_set(self) -> bool:
        """Whether the flag was ever set, as far as it was read."""
        return self._set
