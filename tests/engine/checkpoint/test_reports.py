"""Reports of ranks to the thread that finishes a checkpoint."""

from __future__ import annotations

import threading

import pytest

from engine.checkpoint.reports import Report, collect_reports, publish_report, remove_reports, report_file

NEVER = threading.Event()


def entry(rank: int) -> dict[str, dict[str, int]]:
    return {f"rank-{rank:05d}.safetensors": {"bytes": rank}}


def test_files_of_all_ranks(tmp_path):
    for rank in (2, 0):
        publish_report(tmp_path, rank, Report("a", entry(rank)))
    late = threading.Timer(0.1, publish_report, (tmp_path, 1, Report("a", {})))  # a rank that had nothing to write
    late.start()
    assert collect_reports(tmp_path, 3, "a", NEVER, 60) == entry(0) | entry(2)
    late.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == [report_file(rank) for rank in range(3)]
    remove_reports(tmp_path, 4)
    assert list(tmp_path.iterdir()) == []


def test_report_of_another_save_does_not_count(tmp_path):
    publish_report(tmp_path, 0, Report("a", entry(0)))
    publish_report(tmp_path, 1, Report("b", entry(1)))
    with pytest.raises(TimeoutError, match="no word of rank 1 in 0 s"):
        collect_reports(tmp_path, 2, "a", NEVER, 0.05)


def test_failure_and_cancellation_end_the_wait(tmp_path):
    cancelled = threading.Event()
    threading.Timer(0.1, cancelled.set).start()
    assert collect_reports(tmp_path, 1, "a", cancelled, 60) is None
    publish_report(tmp_path, 1, Report("a", {}, failed=True))
    assert collect_reports(tmp_path, 2, "a", NEVER, 60) is None  # rank 0 has not reported


def test_many_silent_ranks_are_not_all_named(tmp_path):
    with pytest.raises(TimeoutError, match=r"no word of rank 0, 1, 2, 3, 4, 5, 6, 7 and 1016 more in 0 s"):
        collect_reports(tmp_path, 1024, "a", NEVER, 0)
