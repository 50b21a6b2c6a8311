"""Batches on their way to the device, in a stream of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from engine.data.batch import PackedBatch


class DeviceFeed:
    """Copies batches to a GPU, each before the one ahead of it is computed with.

    The host waits for none of it: it hands out a batch whose copy may still run, and has the stream that computes wait
    for that copy. As the host is ahead of the GPU, the first copy of a step runs beside the end of the step before.
    """

    def __init__(self, device: torch.device) -> None:
        """Open a stream on a GPU; a CPU needs none."""
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def batches(self, given: Sequence[PackedBatch]) -> Iterator[PackedBatch]:
        """The same batches on the device, for the stream that is current where each is taken.

        Args:
            given: on the host; from pinned memory a copy does not hold up the host.
        """
        if self._stream is None:
            yield from given
            return
        waiting = self._copied(given[0], self._stream) if given else None
        for number in range(len(given)):
            assert waiting is not None
            batch, copied = waiting
            waiting = self._copied(given[number + 1], self._stream) if number + 1 < len(given) else None
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            yield batch.each(lambda tensor, current=current: _kept_for(tensor, current))  # type: ignore[misc]

    def _copied(self, batch: PackedBatch, stream: torch.cuda.Stream) -> tuple[PackedBatch, torch.cuda.Event]:
        """A batch on the device, and what tells when it is there."""
        with torch.cuda.stream(stream):
            return batch.to(self._device), stream.record_event()


def _kept_for(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """Have the memory of a tensor given out again only when a stream that is not its own has done with it."""
    tensor.record_stream(stream)
    return tensor
