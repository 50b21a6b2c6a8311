"""Batches reach the device whole and in order, and the host does not wait for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.config.train import TrainConfig
from engine.data.batch import PackedBatch, Targets, pack
from engine.data.feed import DeviceFeed
from engine.data.filler import filled
from engine.data.source import Prefetcher
from engine.train.timeline import StepSettings, Timeline


class Numbers:
    """A source of sequences that hold their position."""

    def batch(self, positions: range, step: StepSettings) -> PackedBatch:
        tokens = [np.full(3 + position % 5, position) for position in positions]
        batch = pack(tokens, [np.zeros(len(part)) for part in tokens])
        targets = {"mlm": Targets(torch.arange(4), torch.full((4,), positions.start))}
        return replace(batch, targets=targets, counts={"mlm": 4})

    def describe(self, positions: range, step: StepSettings) -> str:
        raise NotImplementedError


def tensors_of(batch: PackedBatch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.each(lambda tensor: found.append(tensor) or tensor)
    return found


def test_each_takes_every_tensor_of_a_batch():
    batch = filled(Numbers().batch(range(4), None))  # type: ignore[arg-type]
    batch = replace(batch, layout=replace(batch.layout, prefix_lengths=torch.ones(4, dtype=torch.int32)))
    layout, targets = batch.layout, batch.targets["mlm"]
    boundaries = [layout.cu_seqlens, layout.prefix_lengths]
    expected = [*boundaries, batch.tokens, batch.positions, batch.segments, targets.index, targets.labels]
    assert list(map(id, tensors_of(batch))) == list(map(id, expected))
    held = {id(value) for value in (*vars(batch).values(), *vars(layout).values(), *vars(targets).values())}
    assert {id(tensor) for tensor in expected} == {key for key in held if key in set(map(id, expected))}
    doubled = batch.each(lambda tensor: tensor * 2)
    assert all(torch.equal(one, other * 2) for one, other in zip(tensors_of(doubled), expected, strict=True))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_cpu_gets_the_batches_as_they_are(count):
    batches = [pack([np.array([number])]) for number in range(count)]
    given = list(DeviceFeed(torch.device("cpu")).batches(batches))
    assert list(map(id, given)) == list(map(id, batches))


@pytest.fixture
def watched() -> Iterator[None]:
    """torch raises where a call of its own waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_with_what_was_copied(request):
    """Each batch is read behind work that keeps the GPU busy, and let go at once, so that its memory is free again."""
    device = torch.device("cuda", torch.cuda.current_device())
    config = TrainConfig(batch_size=64, micro_batch_size=4, steps=6)
    timeline = Timeline([config.stage(seq_length=8, length_ramp={})])
    prefetcher = Prefetcher(Numbers(), timeline, 0, 0, 1, fixed_shapes=True, device=device)
    feed, busy = DeviceFeed(device), torch.randn(4096, 4096, device=device)
    sums: list[Tensor] = []
    expected: list[list[int]] = []
    busy @ busy  # cuBLAS makes its workspace
    request.getfixturevalue("watched")
    try:
        for _ in range(timeline.steps):
            work = next(prefetcher)
            assert all(tensor.is_pinned() for batch in work.batches for tensor in tensors_of(batch))
            for host, batch in zip(work.batches, feed.batches(work.batches), strict=True):
                assert all(tensor.device == device for tensor in tensors_of(batch))
                for _ in range(5):
                    busy = (busy @ busy).clamp(-1, 1)
                sums.append(torch.stack([tensor.sum() for tensor in tensors_of(batch)]))
                expected.append([int(tensor.sum()) for tensor in tensors_of(host)])
    finally:
        prefetcher.close()
    torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(sums).tolist() == expected
