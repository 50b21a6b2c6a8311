"""The benchmark of saving, on a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.checkpoint import SIDES, Window, measure, summary
from tests import commands

SCRIPT = commands.REPOSITORY / "benchmarks" / "checkpoint.py"


def test_every_side_is_measured_and_leaves_nothing(tmp_path: Path) -> None:
    output, folder = tmp_path / "results.json", tmp_path / "checkpoints"
    folder.mkdir()
    options = ["--model", "bert-tiny", "--batch_size", "2", "--steps", "1", "--rounds", "2", "--folder", folder]
    done = commands.run(SCRIPT, [*options, "--output", output])
    assert done.returncode == 0, done.stdout
    result = json.loads(output.read_text())
    assert result["num_parameters"] > 4e6 and result["sides"].keys() == set(SIDES)
    for side, figures in result["sides"].items():
        assert len(figures["windows"]) == 2 and figures["window_seconds"] > figures["stall_seconds"] > 0
        # fp32 weights, two moments, and a model or the weights of the forward pass: 16 bytes a parameter
        expected = 0 if side == "none" else 16 * result["num_parameters"] / 2**20
        assert figures["megabytes"] == pytest.approx(expected, rel=0.05)
    assert list(folder.iterdir()) == []


def test_medians_and_shares() -> None:
    without = [Window(0.0, 4.0, 0), Window(0.0, 5.0, 0), Window(0.0, 6.0, 0)]
    windows = [Window(0.3, 5.0, 9), Window(0.1, 10.0, 9), Window(0.2, 6.0, 9)]
    figures = summary(windows, without)
    assert (figures["stall_seconds"], figures["window_seconds"], figures["share_of_time"]) == (0.2, 6.0, 0.2)


def test_sides_take_turns() -> None:
    seen: list[str] = []

    def window(side: str) -> Window:
        seen.append(side)
        return Window(0.0, 1.0, 0)

    measure(window, 2)
    assert seen == [*SIDES, *SIDES]
