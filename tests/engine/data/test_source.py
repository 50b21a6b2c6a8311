"""Which rank gets which rows, and the thread that prepares them."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from engine.config.masking import MaskingConfig
from engine.config.train import TrainConfig
from engine.data.batch import PackedBatch, pack
from engine.data.plan import SequenceLayout
from engine.data.rows import RowReader
from engine.data.source import PREFETCHED_STEPS, Prefetcher, RowSource, step_batches
from engine.objectives.base import Vocabulary
from engine.objectives.mlm import MaskedLM
from engine.train.timeline import StepSettings, Timeline


class Numbers:
    """A source whose samples are their own positions; fails at a position."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.asked: list[range] = []

    def batch(self, positions: range, step: StepSettings) -> PackedBatch:
        if self.fails_at is not None and self.fails_at in positions:
            raise ValueError(f"sample {self.fails_at} is damaged")
        self.asked.append(positions)
        return pack([np.array([position]) for position in positions])

    def describe(self, positions: range, step: StepSettings) -> str:
        raise NotImplementedError


def timeline(batch_size: int, micro_batch_size: int, steps: int = 10_000) -> Timeline:
    config = TrainConfig(batch_size=batch_size, micro_batch_size=micro_batch_size, steps=steps)
    return Timeline([config.stage(seq_length=20, length_ramp={})])


def tokens(batches: list[PackedBatch]) -> list[list[int]]:
    return [batch.tokens.tolist() for batch in batches]


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_micro_batches_partition_the_step(ranks):
    step = timeline(24, 4).at(5)
    source = Numbers()
    seen: dict[int, list[int]] = {}
    for rank in range(ranks):
        work = step_batches(source, step, rank, ranks)
        assert len(work.numbers) == len(work.batches) == step.shape(ranks).accumulation
        for number, batch in zip(work.numbers, tokens(work.batches), strict=True):
            assert number % ranks == rank and number not in seen
            seen[number] = batch
    assert seen == {g: list(range(120 + 4 * g, 120 + 4 * (g + 1))) for g in range(6)}


@pytest.mark.parametrize("rank", [0, 1])
def test_prefetcher_gives_what_step_batches_gives(rank):
    steps = timeline(8, 2, steps=11)
    prefetcher = Prefetcher(Numbers(), steps, 6, rank, 2)
    try:
        for step in range(6, 11):
            work = next(prefetcher)
            expected = step_batches(Numbers(), steps.at(step), rank, 2)
            assert work.step.step == step and work.step.first_row == 8 * step
            assert work.numbers == expected.numbers and tokens(work.batches) == tokens(expected.batches)
            assert work.waited >= 0
    finally:
        prefetcher.close()


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_error_of_the_source_is_raised_where_the_batch_is_asked_for():
    prefetcher = Prefetcher(Numbers(fails_at=21), timeline(8, 4), 0, 0, 1)
    assert tokens(next(prefetcher).batches) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    next(prefetcher)
    with pytest.raises(ValueError, match="sample 21 is damaged") as caught:
        next(prefetcher)
    assert any(entry.name == "batch" for entry in caught.traceback)  # where it happened
    prefetcher.close()
    assert not prefetch_threads()


def test_asking_beyond_the_last_step_fails_and_does_not_wait():
    prefetcher = Prefetcher(Numbers(), timeline(4, 4, steps=2), 0, 0, 1)
    assert [next(prefetcher).step.step for _ in range(2)] == [0, 1]
    with pytest.raises(IndexError, match="there are no batches beyond step 2"):
        next(prefetcher)
    prefetcher.close()


def test_a_rank_with_more_than_its_share_of_a_step_is_an_error():
    with pytest.raises(ValueError, match="step 1 gives rank 0 of 3 2 micro-batches"):
        step_batches(Numbers(), timeline(20, 4).at(0), 0, 3)


def test_close_ends_the_thread_though_the_queue_is_full():
    source = Numbers()
    prefetcher = Prefetcher(source, timeline(4, 4), 0, 0, 1)
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
    source, step = RowSource({20: rows}, objective), timeline(4, 2).at(0)
    assert source.num_rows(20) == rows.num_rows
    window = range(rows.num_rows - 2, rows.num_rows + 3)
    assert tokens([source.batch(window, step)]) == tokens([objective.collate(rows.in_order(window))])
    first = rows.in_order(window)[0]
    assert source.describe(window, step).startswith(f"rows of 20 tokens: {first.index} of epoch 0, ")
    assert source.describe(window, step).endswith(" of epoch 1")
    held_out = source.of_length(20)
    assert held_out.num_samples == rows.num_rows
    whole = held_out.held_out(range(rows.num_rows))
    parts = [held_out.held_out(range(index, index + 1)) for index in range(rows.num_rows)]
    assert whole.tokens.tolist() == list(itertools.chain(*tokens(parts)))  # masked alike however it is cut
    assert whole.tokens.tolist() == held_out.held_out(range(rows.num_rows)).tokens.tolist()
