"""Estimates of memory against the peaks of real engines on one, two and four CPU ranks."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from engine.config.optimizer import OptimizerConfig
from engine.config.train import TrainConfig
from engine.models import attention
from engine.plan import memory
from engine.plan.memory import MemoryEstimate, estimate_memory, estimate_phase
from engine.train.timeline import Timeline
from kernels import build
from tests.engine.plan.peaks import Case, allocations
from tests.engine.ranks import run_ranks

pytest.importorskip("deepspeed")
TOLERANCE = 0.08
SMALL = {"checkpointing": True, "objective": "mlm", "micro_batch_size": 1}  # states decide, not activations
OVERLAP = (("overlap_comm", True),)
QUICK = {
    1: [
        Case(0), Case(0, "bf16", accumulation=2, **SMALL), Case(0, optimizer="lamb", **SMALL),
        Case(2, "bf16", accumulation=2, checkpointing=True, objective="mlm"), Case(3, accumulation=2),
    ],
    2: [
        Case(0, "bf16", **SMALL), Case(1, **SMALL), Case(1, "bf16", optimizer="lamb", **SMALL), Case(2, **SMALL),
        Case(2, "bf16", zero=OVERLAP, accumulation=2, **SMALL), Case(3, **SMALL), Case(3, "bf16", accumulation=2),
    ],
}  # fmt: skip
LONG = {
    1: [
        Case(stage, precision, accumulation=accumulation, checkpointing=checkpointing)
        for stage in (0, 1, 2, 3)
        for precision in ("fp32", "bf16")
        for accumulation, checkpointing in ((1, False), (2, True))
    ],
    2: [
        Case(stage, precision, optimizer, accumulation, **SMALL)
        for stage in (0, 1, 2, 3)
        for precision in ("fp32", "bf16")
        for optimizer, accumulation in (("adamw", 1), ("lamb", 2), ("lion", 1), ("adafactor", 1), ("muon", 1))
    ],
    4: [
        Case(stage, precision, accumulation=accumulation, **SMALL)
        for stage in (0, 1, 2, 3)
        for precision in ("fp32", "bf16")
        for accumulation in (1, 2)
    ],
}


def estimate(case: Case, ranks: int) -> MemoryEstimate:
    return estimate_memory(
        arch=case.architecture(),
        objective=case.objective,
        settings=case.settings(ranks),
        optimizer=OptimizerConfig(name=case.optimizer),
        world_size=ranks,
        seq_length=case.seq_length,
        micro_batch_size=case.micro_batch_size,
        activation_checkpointing=case.checkpointing,
        device_type="cpu",
    )


def deviations(cases: list[Case], ranks: int, folder: Path) -> dict[str, float]:
    """Estimate over measured peak, less one, of the rank that needs most."""
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    measured = run_ranks("tests.engine.plan.peaks", "run_here", folder, ranks, timeout=550)
    found = {}
    for number, case in enumerate(cases):
        of_ranks = [results[number] for results in measured]
        assert all(result["after"] == result["before"] for result in of_ranks), (case, of_ranks)
        found[repr(case)] = estimate(case, ranks).total / max(result["peak"] for result in of_ranks) - 1
    return found


@pytest.mark.parametrize("ranks", QUICK)
def test_the_estimate_is_the_measured_peak(ranks: int, tmp_path: Path) -> None:
    found = deviations(QUICK[ranks], ranks, tmp_path)
    assert len(found) == len(QUICK[ranks])
    assert all(abs(deviation) <= TOLERANCE for deviation in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", LONG)
def test_every_stage_precision_and_optimizer(ranks: int, tmp_path: Path) -> None:
    found = deviations(LONG[ranks], ranks, tmp_path)
    assert len(found) == len(LONG[ranks])
    assert all(abs(deviation) <= TOLERANCE for deviation in found.values()), found


def test_the_reference_counts_bytes() -> None:
    def work() -> None:
        first = torch.empty(1000)  # 4,000 bytes
        second = torch.empty(500, dtype=torch.bfloat16)
        del first
        third = second.view(250, 2)  # no memory of its own
        del second, third

    changes = [change for _, change in allocations(work)]
    assert changes == [4000, 1000, -4000, -1000]


def base(**more: object) -> MemoryEstimate:
    case = Case(2, "bf16", **SMALL)
    given = {
        "arch": case.architecture(), "objective": "mlm", "settings": case.settings(2), "optimizer": OptimizerConfig(),
        "world_size": 2, "seq_length": 128, "micro_batch_size": 8, "device_type": "cuda",
    }  # fmt: skip
    return estimate_memory(**{**given, **more})  # type: ignore[arg-type]


def test_parts_follow_what_decides_them() -> None:
    whole, again = base(), base(activation_checkpointing=True)
    assert again.parts["activations"] < whole.parts["activations"]
    assert again.parts["optimizer"] == whole.parts["optimizer"] and again.parts["weights"] == whole.parts["weights"]
    assert base(micro_batch_size=16).parts["activations"] > 1.9 * whole.parts["activations"]


@pytest.mark.skipif(build.missing("cpu") is not None, reason=str(build.missing("cpu")))
def test_scores_are_kept_where_a_library_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = base(device_type="cpu").parts["activations"]
    monkeypatch.setattr(attention, "uses_operator", lambda *_: False)
    memory._sizes.cache_clear()
    memory._trace.cache_clear()
    kept = base(device_type="cpu").parts["activations"]
    assert kept > 1.05 * ours  # torch's bf16 products on a CPU
    assert base(device_type="cpu", lengths=(16,) * 64).parts["activations"] < 0.95 * kept  # scores are square
    memory._sizes.cache_clear()
    memory._trace.cache_clear()


def test_offload_moves_states_to_the_host() -> None:
    case = Case(2, "bf16", zero=(("offload_optimizer", {"device": "cpu"}),), **SMALL)
    there, here = base(settings=case.settings(2)), base()
    assert here.host_parts == {}
    assert there.parts["optimizer"] == 0 and there.host_parts["optimizer"] == here.parts["optimizer"]
    assert there.total < here.total


def test_frozen_parameters_have_neither_gradients_nor_states() -> None:
    frozen = base(optimizer=OptimizerConfig(freeze=["encoder.embeddings.*"]))
    assert frozen.parts["optimizer"] < base().parts["optimizer"]
    assert frozen.parts["weights"] == base().parts["weights"]


def test_a_model_that_cannot_learn_the_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="objective lm needs a causal model"):
        base(objective="lm")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_fused_adam_flattens_gradients_at_stage_0(precision: str) -> None:
    """Beside the fp32 sums a flat copy: 8 bytes a parameter; nothing of it in fp32, or with torch's AdamW."""
    case = Case(0, precision, **SMALL)
    one = {"settings": case.settings(1), "world_size": 1, "micro_batch_size": 1}  # no copy for an all-reduce

    def parts(device: str, backend: str) -> dict[str, int]:
        return base(optimizer=OptimizerConfig(backend=backend), device_type=device, **one).parts

    auto = parts("cuda", "auto")
    assert auto == parts("cuda", "apex") == parts("cuda", "deepspeed")
    assert parts("cpu", "auto") == parts("cpu", "torch")
    if precision == "fp32":
        assert auto == parts("cuda", "torch")
    else:
        trained = auto["weights"] // 2
        assert auto["gradients"] == pytest.approx(8 * trained, rel=0.01)
        assert parts("cuda", "torch")["gradients"] <= 4.01 * trained


def test_every_stretch_of_a_run_has_its_own_accumulation() -> None:
    """The file may be completed for another batch of the run, such as that of its last stage."""
    case = Case(2, "fp32", **SMALL)
    stage = replace(
        TrainConfig(batch_size=4, micro_batch_size=1, steps=4).completed().stage(128, {}), batch_ramp={2: 2}
    )
    first, last = [steps[:2] for steps in Timeline([stage], lambda _: 0.15).phases()]
    given = {
        "arch": case.architecture(), "objective": "mlm", "settings": case.settings(2), "world_size": 2,
        "activation_checkpointing": True, "device_type": "cpu",
    }  # fmt: skip
    step = first[0]
    assert (step.shape(2).accumulation, last[0].shape(2).accumulation) == (1, 2)
    accumulated = Case(2, "fp32", accumulation=2, **SMALL).settings(2)
    own = base(settings=accumulated, activation_checkpointing=True, device_type="cpu", micro_batch_size=1)
    assert estimate_phase(**given, steps=last) == own
    assert estimate_phase(**given, steps=first).total < own.total
