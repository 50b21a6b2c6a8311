"""What benchmarks/kernels.py times of attention: ours, torch's ways and flash-attn's on the same packed batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.kernel_cases import DROPOUT, TOLERANCE, Case, Setting, gradients
from engine.models import attention_libraries as libraries
from engine.models.layout import PackedLayout
from kernels.attention import operation_of, packed_attention
from kernels.philox import seed_tensor

HEAD_SIZE = 64
WARM_UPS, TRIALS = 1, 3  # of each of torch's ways, of which the fastest is timed


@dataclass(frozen=True)
class Batch:
    """The lengths of a batch's sequences.

    Attributes:
        longest: of them.
        shortest: lengths are drawn evenly from it to the longest; equal to that, they are all as long.
        causal: the mask.
    """

    longest: int
    shortest: int
    causal: bool = False

    @property
    def name(self) -> str:
        """As a case is called."""
        lengths = f"{self.longest}" if self.shortest == self.longest else f"{self.shortest} to {self.longest}"
        return f"lengths {lengths}{', causal' if self.causal else ''}"

    def layout(self, setting: Setting) -> PackedLayout:
        """Sequences that fill the tokens; sorted, so that torch has equally long ones in one call."""
        generator, lengths = torch.Generator().manual_seed(1), list[int]()
        while (left := setting.rows - sum(lengths)) > 0:
            drawn = int(torch.randint(self.shortest, self.longest + 1, (1,), generator=generator))
            lengths.append(min(drawn, left))
        return PackedLayout.from_lengths(sorted(lengths), setting.device)


BATCHES = {
    "cpu": (
        Batch(20, 20), Batch(128, 3), Batch(128, 128), Batch(256, 256, causal=True), Batch(512, 3), Batch(512, 512),
        Batch(1024, 1024, causal=True),
    ),
    "cuda": (
        Batch(128, 3), Batch(128, 128), Batch(256, 256), Batch(256, 256, causal=True), Batch(512, 3), Batch(512, 512),
        Batch(512, 512, causal=True), Batch(1024, 3), Batch(1024, 1024), Batch(1024, 1024, causal=True),
    ),
}  # fmt: skip
DROPPING = {
    "cpu": (Batch(128, 3), Batch(128, 128), Batch(512, 3), Batch(512, 512)),
    "cuda": (Batch(128, 3), Batch(128, 128), Batch(512, 3), Batch(512, 512), Batch(1024, 1024, causal=True)),
}


def cases_of(operation: str, setting: Setting) -> Iterator[Case]:
    """The batches whose attention dispatch knows by this name."""
    for batches, dropout in ((BATCHES, 0.0), (DROPPING, DROPOUT)):
        for batch in batches[setting.device]:
            if operation_of(batch.longest, dropout).name == operation:
                yield case_of(operation, setting, batch, dropout)


def case_of(operation: str, setting: Setting, batch: Batch, dropout: float) -> Case:
    """Forward and backward of one batch by all that take it."""
    size = min(HEAD_SIZE, setting.width)
    heads, layout = setting.width // size, batch.layout(setting)
    qkv = setting.draw(setting.rows, 3 * heads, size)
    seed = seed_tensor(3, setting.device)

    def ours(qkv: Tensor) -> Tensor:
        return packed_attention(
            qkv, layout.cu_seqlens, heads, layout.max_length, mask="causal" if batch.causal else "full",
            dropout=dropout, seed=seed if dropout else None,
        )  # fmt: skip

    def passes(attend: Callable[..., Tensor]) -> Any:
        def run(qkv: Tensor) -> Tensor:
            return attend(qkv.unflatten(1, (3, heads)), layout, batch.causal, dropout)

        return gradients(run, [qkv])

    sides = {"kernels": gradients(ours, [qkv]), "torch": fastest([passes(way) for way in torch_ways(qkv, dropout)])}
    if libraries.flash_fits(qkv.device, qkv.dtype, qkv.shape[-1]) and libraries.load_flash_attn() is not None:
        sides["flash_attn"] = passes(libraries.flash_attention)
    # forward: qkv in, out; backward: dout, qkv and out in, dqkv out
    moved = setting.bytes(12 * setting.rows * setting.width)
    name = f"{batch.name}{f', dropout {dropout}' if dropout else ''}"
    return Case(operation, name, sides, moved, TOLERANCE[setting.dtype])


def torch_ways(qkv: Tensor, dropout: float) -> Iterator[Callable[..., Tensor]]:
    """What torch has for a packed batch: a call for each run of equally long sequences, or its flash kernel."""
    yield partial(libraries.run_attention, attend=F.scaled_dot_product_attention)
    if qkv.device.type == "cpu":
        yield partial(libraries.run_attention, attend=libraries.matmul_attention)
    fits = libraries.flash_fits(qkv.device, qkv.dtype, qkv.shape[-1])
    if dropout == 0.0 and fits and libraries.load_varlen() is not None:
        yield libraries.varlen_attention


def fastest(runs: Sequence[Callable[[], Sequence[Tensor]]]) -> Callable[[], Sequence[Tensor]]:
    """The one that takes the least time here."""
    if len(runs) == 1:
        return runs[0]

    def seconds(run: Callable[[], Sequence[Tensor]]) -> float:
        for _ in range(WARM_UPS):
            run()
        times = []
        for _ in range(TRIALS):
            start = time.perf_counter()
            float(run()[0].flatten()[0])  # waits for a GPU
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    return min(runs, key=seconds)


CASES: dict[str, Callable[[Setting], Iterator[Case]]] = {
    name: partial(cases_of, name) for name in ("attention_short", "attention", "attention_dropout")
}
