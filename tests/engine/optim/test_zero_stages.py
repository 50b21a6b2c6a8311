"""Every optimizer at every ZeRO stage on two ranks: the losses and weights of a float64 loop on whole parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint.files import WEIGHTS, FragmentReader
from tests.engine.optim import references
from tests.engine.optim.zero_runs import CONFIGS, first_model
from tests.engine.ranks import run_ranks

SHAPES = {name: list(p.shape) for name, p in first_model().named_parameters()}
STAGES = (0, 1, 2, 3)
IN_TORCH = [("adamw", 0), ("adamw", 2), ("lamb", 0), ("lamb", 3)]  # where no kernels were built, or measured ahead


def deviation(folder: Path, expected: dict[str, torch.Tensor]) -> tuple[float, str]:
    """The largest relative deviation of a parameter, and its name."""
    found = FragmentReader(sorted(folder.glob("*.safetensors"))).full(WEIGHTS, SHAPES)
    deviations = [
        (float((found[name] - weights).norm() / weights.norm().clamp(min=1e-3)), name)
        for name, weights in expected.items()
    ]
    return max(deviations)


def run(folder: Path, runs: list[tuple[str, str, int, dict[str, Any]]], ranks: int) -> dict[str, Any]:
    """Losses and norms of runs in one process group, by name; weights are in folders of those names."""
    (folder / "runs.json").write_text(json.dumps(runs))
    return run_ranks("tests.engine.optim.zero_runs", "run_here", folder, ranks, timeout=400)[0]


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    torch.set_num_threads(1)
    return {name: references.train(config) for name, config in CONFIGS.items()}


def compare(folder: Path, result: dict[str, Any], reference: Any) -> None:
    losses, norms, weights, _ = reference
    np.testing.assert_allclose(result["losses"], losses, rtol=1e-6)
    np.testing.assert_allclose(result["norms"], norms, rtol=5e-6)
    largest, parameter = deviation(folder, weights)
    assert largest < 1e-5, parameter


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two micro-batches on each of two ranks."""
    folder = tmp_path_factory.mktemp("stages")
    runs = [(f"{name}-{stage}", name, stage, {}) for name in CONFIGS for stage in STAGES]
    runs += [(f"{name}-{stage}-torch", name, stage, {"backend": "torch"}) for name, stage in IN_TORCH]
    runs += [(f"partitions-{stage}", "lamb", stage, {"partitions": True}) for stage in (2, 3)]
    return folder, run(folder, runs, 2)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_equal_the_reference(name, stage, two_ranks, expected):
    folder, results = two_ranks
    compare(folder / f"{name}-{stage}", results[f"{name}-{stage}"], expected[name])


@pytest.mark.parametrize(("name", "stage"), IN_TORCH)
def test_without_our_kernels_too(name, stage, two_ranks, expected):
    folder, results = two_ranks
    found = results[f"{name}-{stage}-torch"]
    compare(folder / f"{name}-{stage}-torch", found, expected[name])
    assert ("of torch" in found["optimizer"]) == (name == "adamw")


@pytest.mark.parametrize("stage", [2, 3])
def test_trust_ratios_of_partitions_would_be_found(stage, two_ranks, expected):
    folder, _ = two_ranks
    assert deviation(folder / f"partitions-{stage}", expected["lamb"][2])[0] > 1e-4


def test_trust_ratios_were_clamped_on_both_sides_and_not(expected):
    ratios = [ratio for state in expected["lamb"][3].values() for ratio in state.get("ratios", ())]
    assert min(ratios) < 0.105 and max(ratios) > 0.22 and any(0.11 < ratio < 0.21 for ratio in ratios)


def test_four_ranks_some_with_padding_alone_equal_the_reference(tmp_path, expected):
    runs = [(f"{name}-{stage}", name, stage, {}) for name, stage in (("lamb", 3), ("adafactor", 3), ("muon", 2))]
    results = run(tmp_path, runs, 4)
    for name, optimizer, _, _ in runs:
        compare(tmp_path / name, results[name], expected[optimizer])


def test_offloaded_states_equal_the_reference(tmp_path, expected):
    """AdamW by DeepSpeed's kernel for the CPU."""
    offload = {"zero": {"offload_optimizer": {"device": "cpu"}}}
    runs = [(f"{name}-{stage}", name, stage, offload) for name in CONFIGS for stage in (2, 3)]
    results = run(tmp_path, runs, 2)
    for name, optimizer, _, _ in runs:
        compare(tmp_path / name, results[name], expected[optimizer])
    assert results["adamw-2"]["optimizer"].startswith("optimizer: DeepSpeedCPUAdam of DeepSpeed;")


def test_bf16_lamb_follows_fp32(tmp_path, expected):
    fp32 = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    runs = [
        (f"bf16-{stage}", "lamb", stage, {"bf16": {"enabled": True}, **(fp32 if stage else {})}) for stage in STAGES
    ]
    results = run(tmp_path, runs, 2)
    for name, result in results.items():
        np.testing.assert_allclose(result["losses"], expected["lamb"][0], rtol=3e-3, err_msg=name)
