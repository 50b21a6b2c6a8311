"""Stage 1 in bf16 collects gradients in fewer passes: the steps are those of DeepSpeed's own methods, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.state import model_snapshot
from engine.data.batch import PackedBatch
from engine.models.model import Model
from engine.objectives.base import LossTerm, encode
from engine.train import zero
from tests.engine.ranks import run_ranks
from tests.engine.train.zero_layouts import FP32_SUMS, Layout, Objective, begin, build, train

MODULE = "tests.engine.train.test_bf16_gradients"
IMMEDIATE = (("bf16", {"immediate_grad_update": True}),)
LAYOUTS = [Layout(1, "bf16", top=FP32_SUMS + more, clip=0.0) for more in ((), IMMEDIATE)]


class SometimesWithoutHead(Objective):
    """Every third call on the last rank leaves the head out, whose weights then have no gradient."""

    calls = 0

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        self.calls += 1
        last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
        if last and self.calls % 3 == 0:
            return {"mlm": LossTerm(encode(model, batch).float().square().mean(), 1)}
        return super().losses(model, batch, with_accuracy)


def followed(layout: Layout, folder: Path) -> dict[str, Any]:
    """Losses and norms of five steps of two micro-batches and two of one, and a digest of the weights."""
    engine = build(layout, folder)
    engine.deepspeed.module.objective = SometimesWithoutHead()
    losses, norms = train(engine, range(7), accumulation=[2, 2, 2, 2, 2, 1, 1])
    weights = model_snapshot(engine.model)
    return {
        "losses": losses,
        "norms": norms,
        "weights": {name: float(w.double().norm()) for name, w in weights.items()},
    }


def both_ways(folder: Path) -> list[list[dict[str, Any]]]:
    begin()
    found, ours = [], zero.collect_in_one_pass
    for layout in LAYOUTS:
        zero.collect_in_one_pass = ours
        mine = followed(layout, folder)
        zero.collect_in_one_pass = lambda wrapper: None
        found.append([mine, followed(layout, folder)])
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_steps_are_those_of_deepspeed_s_own_passes(ranks, tmp_path):
    found = run_ranks(MODULE, "both_ways", tmp_path, ranks)
    for rank in found:
        for ours, theirs in rank:
            assert (ours["losses"], ours["weights"]) == (theirs["losses"], theirs["weights"])
            assert ours["norms"] == found[0][0][0]["norms"] and len(set(ours["norms"])) == 7
            assert ranks > 1 or ours["norms"] == theirs["norms"]
