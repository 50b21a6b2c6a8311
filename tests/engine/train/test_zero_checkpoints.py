"""Engines of every layout and offload go on from their own checkpoints to the bit, and frozen weights stay exact."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.files import FragmentReader
from engine.checkpoint.state import restore
from tests.engine.ranks import run_ranks
from tests.engine.train.zero_layouts import ARCH, FP32_SUMS, FROZEN, Layout, begin, build, save, tiny_model, train

MODULE = "tests.engine.train.test_zero_checkpoints"
CPU = {"device": "cpu"}
SMALL = (("sub_group_size", 1500), ("stage3_param_persistence_threshold", 60))
OPTIONS = [
    (1, "allgather_partitions", False),
    (2, "contiguous_gradients", False),
    (2, "reduce_scatter", False),
    (2, "use_multi_rank_bucket_allreduce", False),
    (3, "stage3_use_all_reduce_for_fetch_params", True),
    (3, "stage3_allgather_sequential", True),
    (3, "stage3_model_persistence_threshold", 500),
    (3, "stage3_max_live_parameters", 0),
    (3, "stage3_max_reuse_distance", 0),
    (3, "stage3_prefetch_bucket_size", 0),
]
LARGE = dataclasses.replace(ARCH, vocab_size=4001, hidden_size=96, intermediate_size=200)  # NVMe takes 1 MiB and more


def layouts(folder: Path) -> dict[str, Layout]:
    """Those that the four plain stages do not cover."""
    nvme = {"device": "nvme", "nvme_path": str(folder / "nvme")}
    cpu, both = ("offload_optimizer", CPU), ("offload_param", CPU)
    return {
        **{f"frozen {stage} {p}": Layout(stage, p, frozen=True) for stage in range(4) for p in ("fp32", "bf16")},
        "sub-groups": Layout(3, zero=SMALL, frozen=True),
        "round robin": Layout(2, zero=(("round_robin_gradients", True),)),
        "BF16_Optimizer": Layout(1, "bf16", top=FP32_SUMS, frozen=True),
        **{f"optimizer on cpu {stage}": Layout(stage, "bf16", zero=(cpu,)) for stage in (1, 2, 3)},
        "all on cpu": Layout(3, "bf16", zero=(cpu, both, *SMALL), frozen=True),
        "parameters on cpu": Layout(3, zero=(both,)),
        "fast start": Layout(3, zero=(("offload_optimizer", {**CPU, "fast_init": True, "pin_memory": False}),)),
        **{f"{key} {value}": Layout(stage, zero=((key, value),)) for stage, key, value in OPTIONS},
        "prescaled": Layout(1, top=(("gradient_predivide_factor", 2.0), ("prescale_gradients", True))),
        "DeepSpeed's linear map": Layout(3, "bf16", zero=(("memory_efficient_linear", True),)),
        "nvme": Layout(3, "fp32", zero=(("offload_optimizer", nvme), ("offload_param", nvme))),
        "optimizer on nvme": Layout(3, "bf16", zero=(("offload_optimizer", nvme),), frozen=True),
    }


def resume(folder: Path) -> dict[str, Any]:
    """For each layout the losses of an unbroken run and of one that goes on in an engine with other weights."""
    begin()
    found = {}
    for name, layout in layouts(folder).items():
        arch = LARGE if "nvme" in name else ARCH
        engine = build(layout, folder, 0, arch)
        train(engine, range(3), arch=arch)
        assert "nvme" not in name or engine.deepspeed.optimizer._swappable_optimizer_subgroup(0)
        manifest = save(engine, folder, 3)
        unbroken = train(engine, range(3, 6), arch=arch)
        again = build(layout, folder, 1, arch)
        train(again, range(7, 8), arch=arch)  # it has optimizer state of its own already
        restore(again.deepspeed, again.model, folder, manifest)
        found[name] = (unbroken, train(again, range(3, 6), arch=arch))
        reader = FragmentReader([folder / file for file in manifest.files])
        weights = reader.full("weights", manifest.shapes)
        frozen_is_exact = torch.equal(weights[FROZEN], tiny_model(0, arch=arch).get_parameter(FROZEN))
        assert frozen_is_exact == layout.frozen, name
        del engine, again
        gc.collect()
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_same_layout_goes_on_to_the_bit(ranks, tmp_path):
    for found in run_ranks(MODULE, "resume", tmp_path, ranks, timeout=600):  # libaio is compiled once, for minutes
        assert len(found) == len(layouts(tmp_path))
        for name, (unbroken, resumed) in found.items():
            assert unbroken == resumed, name
