"""What ranks tell each other: errors above all."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.config.cli import SharedError
from engine.train import distributed, opened_rows
from tests.engine.ranks import run_ranks


def text_of(work: Callable[[], Any]) -> str:
    """The text of the SharedError that a call ends with."""
    try:
        return f"no error: {work()}"
    except SharedError as error:
        return str(error)


def say_all(folder: Path) -> dict[str, Any]:
    """What each helper does on this rank."""
    rank = distributed.global_rank()
    called = []

    def fail(error: Exception) -> None:
        called.append(rank)
        raise error

    missing = folder / "none" / "file"
    return {
        "value": distributed.from_rank_zero(lambda: {"rank": rank, "list": [1, 2]}),
        "error": text_of(lambda: distributed.from_rank_zero(lambda: fail(ValueError("wrong setting")))),
        "disk": text_of(lambda: distributed.from_rank_zero(missing.read_text)),
        "called": called,
        "both": text_of(lambda: distributed.raise_together("broken")),
        "each": text_of(lambda: distributed.raise_together(f"broken {rank}")),
        "one": text_of(lambda: distributed.raise_together("broken" if rank == 1 else None)),
        "none": text_of(lambda: distributed.raise_together(None)),
        "gathered": distributed.gather_objects({"rank": rank}),
        "broadcast": distributed.broadcast_object(f"from {rank}"),
        "sum": distributed.all_reduce_sum([rank, 2**52 + 1, 0.5], torch.device("cpu")).tolist(),
    }


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks("tests.engine.train.test_distributed", "say_all", tmp_path_factory.mktemp("ranks"))


def test_every_rank_gets_what_rank_zero_does(said):
    for result in said:
        assert result["value"] == {"rank": 0, "list": [1, 2]}
        assert result["broadcast"] == "from 0"
    assert [result["called"] for result in said] == [[0], []]


def test_an_error_of_rank_zero_is_raised_everywhere_with_its_text_once(said):
    assert [result["error"] for result in said] == ["wrong setting"] * 2


def test_a_disk_that_fails_on_rank_zero_is_an_error_everywhere(said):
    for result in said:
        assert "No such file or directory" in result["disk"] and "none/file" in result["disk"]


def test_problems_of_ranks_are_joined_and_raised_on_all(said):
    assert [result["both"] for result in said] == ["broken"] * 2  # what rank 0 says too is said once
    assert [result["each"] for result in said] == ["broken 0\nrank 1: broken 1"] * 2
    assert [result["one"] for result in said] == ["rank 1: broken"] * 2
    assert [result["none"] for result in said] == ["no error: None"] * 2


def test_many_ranks_with_one_problem_tell_it_once():
    assert distributed._told_by([0, 1, 2]) == "" and distributed._told_by([3]) == "rank 3: "
    assert distributed._told_by([3, 5, 9]) == "rank 3 and 2 more: "


def test_collectives(said):
    for result in said:
        assert result["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert result["sum"] == [1.0, 2.0**53 + 2, 1.0]


def work_beyond_the_limit_of_collectives(folder: Path) -> dict[str, Any]:
    """Rank 0 takes longer than a collective may: in work for all, and in planning rows."""
    limit = 3.0
    distributed.barrier()
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=limit))

    def slow_on_rank_zero(*ignored: Any) -> Any:
        if distributed.global_rank() == 0:
            time.sleep(1.5 * limit)
        return SimpleNamespace(num_rows=64)

    train = SimpleNamespace(output=str(folder / "run"))
    resolved: Any = SimpleNamespace(
        config=SimpleNamespace(train=train, seed=1),
        objective=SimpleNamespace(sequence_layout=None),
        sources=(SimpleNamespace(name="a", manifest=SimpleNamespace(folder=folder, digest="0" * 64), held_out=None),),
        timeline=SimpleNamespace(lengths=lambda: [8], steps=1),
    )
    results = {"work": distributed.from_rank_zero(lambda: slow_on_rank_zero().num_rows)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opened_rows, "RowReader", slow_on_rank_zero)
        results["rows"] = opened_rows.open_rows(resolved).training.num_rows(8)
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=60))
    return results


def test_what_rank_zero_does_for_all_may_outlast_a_collective(tmp_path):
    module = "tests.engine.train.test_distributed"
    for result in run_ranks(module, "work_beyond_the_limit_of_collectives", tmp_path):
        assert result["work"] == result["rows"] == 64


def test_ranks_come_from_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.global_rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (distributed.global_rank(), distributed.world_size(), distributed.local_rank()) == (5, 8, 1)


def test_device_of_this_process():
    device = distributed.describe_device()
    assert device.type in ("cpu", "cuda")
    assert device.has_fp16 == (device.type == "cuda")


def test_rank_zero_may_keep_a_connection_of_each_rank(monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        monkeypatch.setenv("WORLD_SIZE", "16")
        distributed._allow_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(4 * 16 + 1024, before[1]), before[1])
        monkeypatch.setenv("WORLD_SIZE", "1")
        distributed._allow_connections()  # never fewer than there were
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 4 * 16 + 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def gpus(monkeypatch):
    """Gives this process so many GPUs, and a rank on its node."""

    def make(count: int, local_rank: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))

    return make


def test_a_rank_has_the_gpu_of_its_number_or_the_only_one_it_sees(gpus):
    gpus(8, 5)
    assert distributed.device_index() == 5
    gpus(1, 5)  # srun --gpus-per-task 1
    assert distributed.device_index() == 0
    gpus(4, 4)
    with pytest.raises(ValueError, match=r"LOCAL_RANK is 4, but .* has 4 GPUs for this process: start at most 4 ranks"):
        distributed.device_index()


def test_deepspeed_is_told_the_gpu_and_the_rank_stays(gpus, monkeypatch):
    gpus(1, 5)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "5")
    with distributed.local_rank_for_deepspeed():
        assert distributed.local_rank() == 0 and os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == "0"
    assert distributed.local_rank() == 5 and os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == "5"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with distributed.local_rank_for_deepspeed():
        assert distributed.local_rank() == 5
