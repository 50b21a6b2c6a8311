"""A rank that is gone, frozen or hung ends the others with its name, and one that is slow does not."""

from __future__ import annotations

import platform

import pytest
import torch

from engine.config.cli import EXIT_INTERRUPTED, EXIT_RANK_LOST
from engine.train.watchdog import Watchdog, is_communication_error
from tests.engine.train.watched_ranks import Ended, run_watched

TIMEOUT = 3.0
slow = pytest.mark.slow


def survivors_name(lost: int, ended: list[Ended]) -> str:
    """What the survivors say, after checking that they ended in time and that one of them told it, once."""
    others = [end for rank, end in enumerate(ended) if rank != lost]
    assert [end.code for end in others] == [EXIT_RANK_LOST] * len(others), [end.output for end in ended]
    assert all(end.seconds < TIMEOUT + 40 for end in others)
    told = [line for end in ended for line in end.output.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, told
    assert f"rank {lost} (host {platform.node()}, pid {ended[lost].pid})" in told[0]
    assert all("Traceback" not in end.output for end in others)
    return told[0]


@pytest.mark.parametrize(("lost", "ranks"), [(0, 3), (2, 3), pytest.param(1, 2, marks=slow)])
def test_a_killed_rank_is_named_by_those_whose_collective_failed(lost, ranks, tmp_path):
    ended = run_watched("kill", lost, TIMEOUT, tmp_path, ranks)
    assert "was killed or crashed: its process is gone; the other ranks stop" in survivors_name(lost, ended)


@pytest.mark.parametrize(
    ("lost", "ranks"), [(0, 2), (1, 2), pytest.param(0, 3, marks=slow), pytest.param(2, 3, marks=slow)]
)
def test_a_frozen_rank_is_named_also_where_the_store_froze_with_it(lost, ranks, tmp_path):
    ended = run_watched("stop", lost, TIMEOUT, tmp_path, ranks)
    assert ended[lost].code is None
    text = survivors_name(lost, ended)
    assert "has given no sign of life for 3 s: its process or its machine is gone or frozen" in text


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=slow)])
def test_a_rank_that_hangs_in_python_is_named_with_the_place(lost, tmp_path):
    ended = run_watched("hang", lost, TIMEOUT, tmp_path)
    assert ended[lost].code == EXIT_RANK_LOST
    text = survivors_name(lost, ended)
    assert "lives but has kept the others waiting for 3 s: it stands in " in text
    assert "_happen, line" in text and "watched_ranks.py" in text


@pytest.mark.parametrize(("event", "who"), [("late", 1), ("all late", -1), ("alone", 0)])
def test_patience_with_slow_ranks_and_with_work_of_one_for_all(event, who, tmp_path):
    for end in run_watched(event, who, TIMEOUT / 2, tmp_path):
        assert end.code == 0 and "all steps taken" in end.output, end.output


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=slow)])
def test_a_rank_that_fails_by_itself_is_named_with_its_error(lost, tmp_path):
    ended = run_watched("fail", lost, TIMEOUT, tmp_path)
    assert ended[lost].code == 1 and "RuntimeError: shapes differ" in ended[lost].output
    assert "failed: RuntimeError: shapes differ" in survivors_name(lost, ended)


def test_a_rank_that_is_interrupted_is_named(tmp_path):
    ended = run_watched("interrupt", 1, TIMEOUT, tmp_path)
    assert ended[1].code == EXIT_INTERRUPTED
    assert "failed: it was interrupted by Ctrl-C" in survivors_name(1, ended)


def test_only_errors_of_communication_are_explained():
    assert is_communication_error(RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:41010"))
    circle = OSError("disk full")
    circle.__context__ = ValueError("told")
    circle.__context__.__context__ = circle  # as where one object is raised again
    assert not is_communication_error(circle)
    assert is_communication_error(RuntimeError("NCCL communicator was aborted on rank 1."))
    assert is_communication_error(torch.distributed.DistNetworkError("failed to recv, got 0 bytes"))
    assert not is_communication_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_communication_error(ValueError("Connection closed by peer"))
    wrapped = ValueError("saving failed")
    wrapped.__cause__ = RuntimeError("Connection reset by peer")
    assert is_communication_error(wrapped)


def test_one_rank_alone_watches_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with Watchdog(TIMEOUT) as watchdog:
        watchdog.progress(1)
        assert watchdog.explain_failure(RuntimeError("Connection closed by peer")) is None
    with pytest.raises(KeyError, match="a bug"), Watchdog(TIMEOUT):
        raise KeyError("a bug")
