"""What a DeepSpeed file may say of ZeRO and offload, and what is told of the rest."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from engine.config.deepspeed_zero import zero_problems


def problems(aio: dict[str, Any] | None = None, **zero: Any) -> list[str]:
    return zero_problems({"zero_optimization": zero, **({"aio": aio} if aio else {})}, "f.json")


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"stage": 4}, "zero_optimization.stage is 4; it must be 0, 1, 2 or 3"),
        ({"stage": "2"}, 'zero_optimization.stage is "2"; it must be'),
        ({"stage": True}, "zero_optimization.stage is true; it must be"),
        ({"stage": 2, "overlap_comm": 1}, "zero_optimization.overlap_comm is 1; it must be true or false"),
        ({"stage": 2, "reduce_bucket_size": "5e8"}, 'reduce_bucket_size is "5e8"; it must be a whole number of elem'),
        ({"stage": 2, "reduce_bucket_size": -1}, "reduce_bucket_size is -1; it must be a whole number of elements"),
        ({"stage": 2, "allgather_bucket_size": True}, "allgather_bucket_size is true; it must be a whole number"),
        ({"stage": 1, "sub_group_size": 1e9}, "zero_optimization.sub_group_size means nothing at stage 1; remove it"),
        ({"stage": 2, "stage3_max_live_parameters": 1}, "stage3_max_live_parameters means nothing at stage 2; remove"),
        ({"offload_optimizer": {"device": "cpu"}}, "offload_optimizer on cpu needs ZeRO stage 1, 2 or 3, and zero"),
        ({"stage": 2, "offload_param": {"device": "cpu"}}, "offload_param on cpu needs ZeRO stage 3, and zero_opti"),
        (
            {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}},
            "zero_optimization.offload_optimizer on nvme needs ZeRO stage 3, and zero_optimization.stage is 2",
        ),
        ({"stage": 3, "offload_param": True}, "offload_param must be an object in braces with a device, found true"),
        ({"stage": 3, "offload_param": {"device": "disk"}}, 'offload_param.device is "disk"; it must be none, cpu or'),
        ({"stage": 3, "offload_param": {"devise": "cpu"}}, "offload_param.devise is unknown or unsupported; did you m"),
        ({"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}, "offload_optimizer.ratio is unknown or"),
        ({"stage": 3, "offload_optimizer": {"device": "nvme"}}, "nvme_path is missing: name a folder on a local NVMe"),
        (
            {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/dev/null/x"}},
            "nvme_path is /dev/null/x, which cannot take tensors (Not a directory); name a folder on a local NVMe disk",
        ),
        (
            {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/tmp"}},
            "zero_optimization.offload_param on nvme needs offload_optimizer on nvme too",
        ),
        (
            {"stage": 2, "offload_optimizer": {"device": "cpu", "nvme_path": "/tmp"}},
            "offload_optimizer.nvme_path means nothing on device cpu; remove it",
        ),
    ],
    ids=str,
)
def test_each_problem_has_its_message(zero, message):
    found = problems(**zero)
    assert len(found) == 1 and found[0].startswith("f.json: ") and message in found[0]


def test_aio_without_nvme():
    found = problems(aio={"queue_depth": 8}, stage=3)
    assert found == ["f.json: 'aio' means nothing without an offload to nvme; remove it"]


def test_nvme_folder_that_cannot_be_written(monkeypatch, tmp_path: Path):
    def refuse(*arguments: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.open", refuse)
    (found,) = problems(stage=3, offload_optimizer={"device": "nvme", "nvme_path": str(tmp_path / "new")})
    assert f"nvme_path is {tmp_path / 'new'}, which cannot take tensors (Operation not permitted)" in found


def test_nvme_without_libaio(monkeypatch, tmp_path: Path):
    nvme = {"device": "nvme", "nvme_path": str(tmp_path / "new")}
    monkeypatch.setattr("ctypes.util.find_library", lambda name: "libaio.so.1")
    assert problems(stage=3, offload_optimizer=nvme) == []
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    (found,) = problems(stage=3, offload_optimizer=nvme)
    assert found == "f.json: an offload to nvme needs libaio, which is not installed (apt-get install libaio-dev)"
    assert problems(stage=3, offload_optimizer={"device": "cpu"}) == []


def test_offload_to_nowhere_is_no_offload():
    assert problems(stage=0, offload_param=None, offload_optimizer={"device": "none"}) == []
