"""Which backend a call gets: by device, library, measurement and size, or as KERNELS_BACKEND says."""

from __future__ import annotations

import logging

import pytest
import torch

from kernels import apex, build, dispatch, overview
from kernels.dispatch import BackendError, Operation, candidates, choose, explain, has_kernel, is_wanted

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DEVICE = "NVIDIA Test 80GB"


def even(width: int) -> str | None:
    return f"width {width} is odd" if width % 2 else None


def small(width: int) -> str | None:
    return f"width {width} is above 8" if width > 8 else None


OP = Operation("op", {"cpu": even, "cuda": even, "emulator": even, "apex": small})
PLAIN = Operation("plain", {"cpu": even})


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU on which all backends are there, and a table of measurements."""
    table: dict[str, dict[str, dict[str, float]]] = {"cpu": {"op": {"speed": 2.0}}, DEVICE: {"op": {"speed": 2.0}}}
    gone: dict[str, str] = {}
    monkeypatch.delenv("KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "unavailable", gone.get)
    monkeypatch.setattr(dispatch, "_candidates", dispatch._candidates.__wrapped__)  # the table changes
    monkeypatch.setattr(dispatch, "measured", lambda: table)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: DEVICE)
    dispatch._say_once.cache_clear()
    return table, gone


def test_a_device_gets_its_own_kernels_where_they_are_ahead(machine):
    table, _ = machine
    assert choose(OP, CPU, width=4) == "cpu" and choose(OP, GPU, width=4) == "cuda"
    assert explain(PLAIN, GPU) == ("reference", "cuda has no plain; apex has no plain")
    assert explain(PLAIN, CPU) == ("reference", "cpu was not measured ahead of torch on cpu (measured.json)")
    assert is_wanted(OP, CPU) and not is_wanted(PLAIN, CPU)
    table["cpu"]["plain"] = {"speed": 0.95}
    assert not is_wanted(PLAIN, CPU)
    table["cpu"]["plain"]["memory"] = 0.4  # about as fast, in less than half the memory
    assert is_wanted(PLAIN, CPU)


@pytest.mark.parametrize(
    ("gain", "turns"),
    [
        ({}, ["apex"]),  # a device that was never measured: only what somebody built
        ({"speed": 2.0}, ["cuda", "apex"]),
        ({"speed": 2.0, "apex": 1.5}, ["cuda", "apex"]),
        ({"speed": 1.5, "apex": 2.0}, ["apex", "cuda"]),
        ({"speed": 0.9, "apex": 0.8}, []),
    ],
    ids=str,
)
def test_turns_on_a_gpu(machine, gain, turns):
    machine[0][DEVICE]["op"] = gain
    assert candidates(OP, GPU)[0] == turns


def test_sizes_go_to_the_next_backend_and_that_is_said_once(machine, caplog):
    with caplog.at_level(logging.WARNING, "kernels"):
        for _ in range(3):
            assert choose(OP, GPU, width=5) == "apex"
            assert choose(OP, GPU, width=11) == choose(OP, CPU, width=5) == "reference"
    assert caplog.messages == [
        "kernels: op on cuda: width 5 is odd; apex runs",
        "kernels: op on cuda: width 11 is odd; op on apex: width 11 is above 8; the reference runs",
        "kernels: op on cpu: width 5 is odd; the reference runs",
    ]


def test_a_model_calls_torch_s_own_where_no_backend_takes_its_sizes(machine, monkeypatch, caplog):
    assert is_wanted(OP, GPU, width=4) and is_wanted(OP, GPU, width=5)  # 5 is for apex
    with caplog.at_level(logging.WARNING, "kernels"):
        assert not is_wanted(OP, GPU, width=11) and not is_wanted(OP, CPU, width=5)
        assert not is_wanted(PLAIN, CPU, width=5)
    runs = [text.rpartition("; ")[2] for text in caplog.messages]
    assert runs == ["torch's operators run", "torch's operators run"]
    monkeypatch.setenv("KERNELS_BACKEND", "cuda")
    assert is_wanted(OP, GPU, width=11)  # by the reference, whose masks are those of the kernels


def test_what_optimizers_step_on_may_be_on_another_device(machine, monkeypatch):
    assert has_kernel(OP, CPU) and has_kernel(OP, GPU) and not has_kernel(PLAIN, GPU)
    for name, there, elsewhere in (("cuda", GPU, CPU), ("cpu", CPU, GPU), ("emulator", CPU, GPU)):
        monkeypatch.setenv("KERNELS_BACKEND", name)
        assert has_kernel(OP, there) and not has_kernel(OP, elsewhere)
    monkeypatch.setenv("KERNELS_BACKEND", "reference")
    assert not has_kernel(OP, CPU)


def test_devices_are_asked_once(machine, monkeypatch):
    asked = []
    monkeypatch.undo()
    monkeypatch.delenv("KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "is_ahead", lambda *call: bool(asked.append(call)) or True)
    monkeypatch.setattr(dispatch, "unavailable", lambda name: None)
    monkeypatch.setattr(dispatch, "speed", lambda *_: 2.0)
    assert [choose(OP, CPU, width=4) for _ in range(3)] == ["cpu"] * 3
    assert asked == [("op", "cpu", CPU)]
    monkeypatch.setenv("KERNELS_BACKEND", "emulator")
    assert choose(OP, CPU, width=4) == "emulator"


def test_what_is_not_there_is_named(machine, caplog):
    machine[1].update(cuda="but there is no nvcc", apex="which is not installed")
    assert explain(OP, GPU) == ("reference", "cuda, but there is no nvcc; apex, which is not installed")
    with caplog.at_level(logging.WARNING, "kernels"):
        assert choose(OP, GPU, width=4) == "reference"
    assert caplog.messages == [
        "kernels: op: cuda, but there is no nvcc; apex, which is not installed; the reference runs"
    ]


def test_forced(machine, monkeypatch, caplog):
    machine[0].clear()  # measurements do not matter
    for name, device in (("cpu", CPU), ("emulator", CPU), ("cuda", GPU), ("apex", GPU), ("reference", GPU)):
        monkeypatch.setenv("KERNELS_BACKEND", name)
        assert choose(OP, device, width=4) == name and is_wanted(OP, device)
    assert caplog.messages == []
    monkeypatch.setenv("KERNELS_BACKEND", "apex")
    assert explain(PLAIN, GPU) == ("reference", "apex has no plain")
    monkeypatch.setenv("KERNELS_BACKEND", "cuda")
    assert choose(OP, GPU, width=5) == "reference"  # not apex: cuda was asked for
    with pytest.raises(BackendError, match="KERNELS_BACKEND is cuda, which does not run on cpu tensors; unset it"):
        choose(OP, CPU, width=4)
    machine[1]["cuda"] = "but torch sees no CUDA device"
    with pytest.raises(
        BackendError, match="KERNELS_BACKEND is cuda, but torch sees no CUDA device; or unset KERNELS_BACKEND"
    ):
        choose(OP, GPU, width=4)
    monkeypatch.setenv("KERNELS_BACKEND", "cdua")
    with pytest.raises(BackendError, match="is 'cdua'; it must be one of auto, reference, cpu, cuda, emulator, apex"):
        choose(OP, CPU, width=4)


def test_backends_that_cannot_run_here(monkeypatch):
    dispatch.unavailable.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dispatch.unavailable("cuda") == "but torch sees no CUDA device"
    monkeypatch.setattr(apex, "norms_missing", lambda: "which is another program")  # said without a GPU too
    assert dispatch.unavailable("apex") == "which is another program"
    monkeypatch.setattr(apex, "norms_missing", lambda: None)
    dispatch.unavailable.cache_clear()
    assert dispatch.unavailable("apex") == "but torch sees no CUDA device"
    dispatch.unavailable.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: DEVICE)
    assert dispatch.unavailable("cuda") == f"but {DEVICE} has compute capability 7.5; it must be 8.0 at least"
    monkeypatch.setattr(build, "build", lambda name: (_ for _ in ()).throw(build.BuildError("no compiler")))
    dispatch.load.cache_clear()
    assert dispatch.unavailable("cpu") == "but no compiler"
    dispatch.unavailable.cache_clear()


@pytest.mark.parametrize("name", [name for name in dispatch.BACKENDS if name != "auto"])
def test_every_operation_knows_backends_by_their_names(name):
    assert all(set(operation.limits) <= set(dispatch.BACKENDS[2:]) for operation in overview.OPERATIONS)
    assert name == "reference" or dispatch.DEVICE_OF[name] in ("cpu", "cuda")


def test_measurements_are_of_operations():
    names = {operation.name for operation in overview.OPERATIONS}
    assert len(names) == len(overview.OPERATIONS)
    for device, gains in dispatch.measured().items():
        assert set(gains) <= names, device
        assert all(set(gain) <= {"speed", "memory", "apex"} for gain in gains.values())


def test_a_run_says_whose_code_runs(machine, monkeypatch):
    monkeypatch.setattr(overview, "OF_MODELS", (OP, PLAIN))
    assert overview.describe(CPU) == "kernels: op cpu, plain torch"
    assert overview.describe(GPU) == "kernels: op cuda, plain torch"
    monkeypatch.setenv("KERNELS_BACKEND", "reference")
    assert overview.describe(CPU) == "kernels: op reference, plain reference"


def test_the_overview_also_tells_of_a_gpu_that_is_not_here(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(overview, "OPERATIONS", (OP, PLAIN))
    monkeypatch.setattr(build, "missing", lambda name: None)
    assert overview.backends() == [
        "op                   cpu   cpu",
        f"op                   cuda  -          no CUDA device is here; on one: cuda on {DEVICE}, else torch",
        "plain                cpu   torch      cpu was not measured ahead of torch on cpu (measured.json)",
        "plain                cuda  -          no CUDA device is here; on one: torch, until measured.json has ours "
        "ahead there",
    ]
    monkeypatch.setattr(build, "missing", lambda name: "there is no nvcc")
    assert overview.backends()[1].endswith("on one: torch, since there is no nvcc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert overview.backends()[1] == "op                   cuda  cuda"


def test_apex_is_one_of_the_backends():
    assert apex.norm_limit in [operation.limits.get("apex") for operation in overview.OPERATIONS]
