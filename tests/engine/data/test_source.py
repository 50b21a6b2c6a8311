"""Which rank gets which rows, and the thread that prepares them."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from engine.config.masking import MaskingConfig
from engine.config.train import BatchShape
from engine.data.batch import PackedBatch, pack
from engine.data.plan import SequenceLayout
from engine.data.rows import RowReader
from engine.data.source import PREFETCHED_STEPS, Prefetcher, RowSource, step_batches
from engine.objectives.base import Vocabulary
from engine.objectives.mlm import MaskedLM


class Numbers:
    """A source whose samples are their own positions; fails at a position."""

    num_samples = 1000

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.asked: list[range] = []

    def batch(self, positions: range) -> PackedBatch:
        if self.fails_at is not None and self.fails_at in positions:
            raise ValueError(f"sample {self.fails_at} is damaged")
        self.asked.append(positions)
        return pack([np.array([position]) for position in positions])

    def held_out(self, samples: range) -> PackedBatch:
        raise NotImplementedError


def tokens(batches: list[PackedBatch]) -> list[list[int]]:
    return [batch.tokens.tolist() for batch in batches]


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_micro_batches_partition_the_step(ranks):
    shape = BatchShape(24, 4, ranks)
    source = Numbers()
    seen: dict[int, list[int]] = {}
    for rank in range(ranks):
        work = step_batches(source, 100, shape, rank)
        assert len(work.numbers) == len(work.batches) == shape.accumulation
        for number, batch in zip(work.numbers, tokens(work.batches), strict=True):
            assert number % ranks == rank and number not in seen
            seen[number] = batch
    assert seen == {g: list(range(100 + 4 * g, 100 + 4 * (g + 1))) for g in range(6)}


@pytest.mark.parametrize("rank", [0, 1])
def test_prefetcher_gives_what_step_batches_gives(rank):
    shape = BatchShape(8, 2, 2)
    prefetcher = Prefetcher(Numbers(), 50, 5, shape, rank)
    try:
        for step in range(5):
            work = next(prefetcher)
            expected = step_batches(Numbers(), 50 + 8 * step, shape, rank)
            assert work.numbers == expected.numbers and tokens(work.batches) == tokens(expected.batches)
            assert work.waited >= 0
    finally:
        prefetcher.close()


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_error_of_the_source_is_raised_where_the_batch_is_asked_for():
    prefetcher = Prefetcher(Numbers(fails_at=21), 0, 10, BatchShape(8, 4, 1), 0)
    assert tokens(next(prefetcher).batches) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    next(prefetcher)
    with pytest.raises(ValueError, match="sample 21 is damaged") as caught:
        next(prefetcher)
    assert any(entry.name == "batch" for entry in caught.traceback)  # where it happened
    prefetcher.close()
    assert not prefetch_threads()


def test_close_ends_the_thread_though_the_queue_is_full():
    source = Numbers()
    prefetcher = Prefetcher(source, 0, 10_000, BatchShape(4, 4, 1), 0)
    deadline = time.monotonic() + 20
    while len(source.asked) <= PREFETCHED_STEPS and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.02)
    assert len(source.asked) == PREFETCHED_STEPS + 1  # the queue is full, and one step more waits: no more memory
    closer = threading.Thread(target=prefetcher.close, daemon=True)
    closer.start()
    closer.join(timeout=20)
    assert not closer.is_alive() and not prefetch_threads()


def test_rows_to_batches(tiny_shards):
    special = np.zeros(2000, np.bool_)
    special[:5] = True
    vocabulary = Vocabulary(2000, {"cls": 0, "sep": 1, "mask": 2}, special, np.zeros(2000, np.bool_))
    objective = MaskedLM(MaskingConfig(), vocabulary, seed=4)
    rows = RowReader(tiny_shards.manifest, 20, SequenceLayout(2, 0), 4, ())
    source = RowSource(rows, objective)
    assert source.num_samples == rows.num_rows
    window = range(rows.num_rows - 2, rows.num_rows + 3)
    assert tokens([source.batch(window)]) == tokens([objective.collate(rows.in_order(window))])
    whole = source.held_out(range(rows.num_rows))
    parts = [source.held_out(range(index, index + 1)) for index in range(rows.num_rows)]
    assert whole.tokens.tolist() == list(itertools.chain(*tokens(parts)))  # masked alike however it is cut
    assert whole.tokens.tolist() == source.held_out(range(rows.num_rows)).tokens.tolist()
