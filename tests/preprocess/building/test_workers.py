"""Worker processes get their work over pipes, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from preprocess.workers import run_blocks
from tests.preprocess.building.command_line import CommandLine, records, wait_for, workers_of, write_text


class SlowFirst:
    """A job whose first block takes until all others are done."""

    def __init__(self, folder: Path, num_others: int) -> None:
        self.folder = folder
        self.num_others = num_others

    def start(self) -> list[int]:
        """Remember the blocks of this process."""
        return []

    def run(self, state: list[int], block: int, progress) -> tuple[int, int, list[int]]:
        """Return the block, the process and the blocks that it has had."""
        state.append(block)
        if block == 10:
            deadline = time.monotonic() + 60
            while len(list(self.folder.iterdir())) < self.num_others and time.monotonic() < deadline:
                time.sleep(0.01)
        else:
            (self.folder / str(block)).touch()
        progress(block)
        return block, os.getpid(), list(state)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_blocks_go_to_whoever_is_free(tmp_path: Path, num_workers: int) -> None:
    """No block waits behind a slow one, results come in the order of the blocks, each worker's blocks rise."""
    blocks = list(range(10, 30))
    done: list[int] = []
    others = len(blocks) - 1 if num_workers > 1 else 0
    results = run_blocks(SlowFirst(tmp_path, others), blocks, num_workers, done.append)
    assert [result[0] for result in results] == blocks
    assert sorted(done) == blocks
    assert all(had == sorted(had) for _, _, had in results)
    slow = results[0][1]
    assert [result[0] for result in results if result[1] == slow] == ([10] if num_workers > 1 else blocks)


def test_more_workers_than_blocks_and_none(tmp_path: Path) -> None:
    assert run_blocks(SlowFirst(tmp_path, 0), [], 4, lambda _: None) == []
    assert [result[0] for result in run_blocks(SlowFirst(tmp_path, 1), [10, 11], 4, lambda _: None)] == [10, 11]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_nothing_is_left_in_shared_memory(vocabulary_file: Path, tmp_path: Path) -> None:
    """A named semaphore stays there when all processes are killed."""
    run = CommandLine(tmp_path, [write_text(tmp_path / "a.txt", 3000)], vocabulary_file, "--shard_bytes", "20000")
    process = run.start(tmp_path / "out")
    wait_for("a block", lambda: records(tmp_path / "out"), process)
    process.send_signal(signal.SIGSTOP)
    try:
        maps = [Path(f"/proc/{number}/maps").read_text() for number in (process.pid, *workers_of(process))]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert len(maps) == 3
    lines = [line for text in maps for line in text.splitlines()]
    assert [line for line in lines if "/dev/shm/" in line and not line.endswith("(deleted)")] == []
