"""The engine of every ZeRO stage and precision against a plain loop in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.ranks import run_ranks
from tests.engine.train.zero_layouts import FP32_SUMS, Layout, begin, build, plain_loop, train

MODULE = "tests.engine.train.test_zero"
STEPS = range(5)
IMMEDIATE = (("bf16", {"immediate_grad_update": True}),)
FP32 = [Layout(stage) for stage in range(4)]
BF16 = [
    *(Layout(stage, "bf16", top=FP32_SUMS) for stage in range(4)),
    Layout(1, "bf16", top=FP32_SUMS + IMMEDIATE),
]


def curves(folder: Path) -> list[Any]:
    """Losses and norms of every layout, with fixed and with varying accumulation."""
    begin()
    found = []
    for layout in [*FP32, *BF16]:
        fixed = train(build(layout, folder), STEPS)
        found.append((fixed, train(build(layout, folder), STEPS, [2, 1, 3, 2, 6])))
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_curves_follow_a_plain_loop(ranks, tmp_path):
    expected = plain_loop(STEPS)
    for found in run_ranks(MODULE, "curves", tmp_path, ranks):
        for layout, (fixed, varying) in zip([*FP32, *BF16], found, strict=True):
            loose = layout.precision == "bf16"
            for losses, norms in (fixed, varying):
                np.testing.assert_allclose(losses, expected[0], rtol=5e-3 if loose else 1e-6, err_msg=str(layout))
                np.testing.assert_allclose(norms, expected[1], rtol=0.03 if loose else 1e-5, err_msg=str(layout))
