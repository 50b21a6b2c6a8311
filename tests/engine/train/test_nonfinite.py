"""A loss or a gradient that is not finite stops the run with step and rows, or is passed over, as the settings say."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest

from engine.data.rows import RowReader
from engine.objectives.mlm import MaskedLM
from preprocess.manifest import read_manifest
from tests import commands

STEPS, BATCH, MICRO, LENGTH, SEED = 6, 8, 2, 64, 3
TINY = ("--model", "bert-tiny", "--arch.hidden_size", "48", "--arch.num_heads", "3", "--arch.intermediate_size", "100")
POISON = """
    from engine.objectives.mlm import MaskedLM
    right, calls = MaskedLM.losses, 0
    def poisoned(self, model, batch, with_accuracy=False):
        global calls
        terms = right(self, model, batch, with_accuracy)
        if model.training:
            calls += 1
            if calls == {call} and os.environ.get("RANK", "0") == "{rank}":
                terms["mlm"] = terms["mlm"]._replace(loss_sum=terms["mlm"].loss_sum {how})
        return terms
    MaskedLM.losses = poisoned
"""


def options(shards: Path, output: Path, stage: int, *more: str) -> list[str | Path]:
    ds_config = commands.write_ds_config(
        output.parent / f"zero{stage}.json", gradient_clipping=1.0, zero_optimization={"stage": stage}
    )
    return [
        "--ds_config", ds_config, *TINY, "--data.shards", shards, "--data.seq_length", str(LENGTH), "--train.output",
        output, "--train.steps", str(STEPS), "--train.batch_size", str(BATCH), "--train.micro_batch_size", str(MICRO),
        "--train.log_every", "3", "--train.save_every", "1", "--train.eval_every", "0", "--train.eval_rows", "8",
        "--train.tensorboard", "false", "--seed", str(SEED), *more,
    ]  # fmt: skip


def poisoned_script(folder: Path, call: int, rank: int, how: str = "* float('nan')") -> Path:
    """The entry with one forward call of one rank spoilt."""
    script = folder / "poisoned.py"
    body = textwrap.dedent(POISON.format(call=call, rank=rank, how=how))
    script.write_text(
        f"import os, sys\nsys.path[0] = {str(commands.REPOSITORY)!r}\n{body}\n"
        "from engine.config.cli import exit_process\nfrom engine.pretrain import main\nexit_process(main())\n"
    )
    return script


def rows_of(shards: Path, position: int) -> str:
    """Rows of a micro-batch, as the message should name them."""
    rows = RowReader(read_manifest(shards), LENGTH, MaskedLM.sequence_layout, SEED, ())
    return ", ".join(f"{row.index} of epoch 0" for row in rows.in_order(range(position, position + MICRO)))


@pytest.mark.parametrize(("ranks", "stage"), [(None, 0), (2, 2), (2, 3)])
def test_stops_with_step_and_rows(ranks, stage, shards, tmp_path):
    # Each rank makes 4 / ranks forward calls a step: this is micro-batch 3 of step 5, of the last rank.
    call, rank = (20, 0) if ranks is None else (10, 1)
    script = poisoned_script(tmp_path, call, rank)
    done = commands.run(script, options(shards, tmp_path / "run", stage), ranks)
    assert done.returncode == 2, done.stdout
    expected = (
        f"step 5: the loss of micro-batch 3 is not finite (rows of {LENGTH} tokens: {rows_of(shards, 4 * BATCH + 6)})"
    )
    assert expected in done.stdout
    assert "--train.nonfinite skip" in done.stdout
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved[-1] == "step-4" and not (tmp_path / "run" / "FINISHED").exists()


def test_a_gradient_that_is_not_finite_stops_too(shards, tmp_path):
    """A finite loss whose gradient is not: the root of 0."""
    how = "+ (terms['mlm'].loss_sum * 0).sqrt()"
    done = commands.run(poisoned_script(tmp_path, 4, 0, how), options(shards, tmp_path / "run", 1))
    assert done.returncode == 2, done.stdout
    assert f"step 1: the gradient is not finite, though the losses are (positions 0 to {BATCH - 1} in" in done.stdout


@pytest.mark.parametrize(("ranks", "stage"), [(None, 0), (2, 1), (2, 3)])
def test_skip_passes_over_the_step_alone(ranks, stage, shards, tmp_path):
    call, rank = (20, 0) if ranks is None else (10, 1)
    script = poisoned_script(tmp_path, call, rank)
    arguments = options(shards, tmp_path / "run", stage, "--train.nonfinite", "skip", "--train.log_every", "1")
    done = commands.run(script, arguments, ranks)
    assert done.returncode == 0, done.stdout
    lines = [line for line in commands.metrics(tmp_path / "run") if "loss" in line]
    assert [line["loss"] is None for line in lines] == [False, False, False, False, True, False]
    assert lines[-1]["skipped_steps"] == 1
    whole = options(shards, tmp_path / "whole", stage, "--train.log_every", "1")
    assert commands.run(commands.PRETRAIN, whole, ranks).returncode == 0
    expected = commands.losses(tmp_path / "whole")
    np.testing.assert_allclose([line["loss"] for line in lines[:4]], expected[:4], rtol=1e-6)
    assert np.isfinite(lines[5]["loss"])
    digests = [
        json.loads((tmp_path / "run" / "checkpoints" / f"step-{step}" / "manifest.json").read_text())["files"]
        for step in (4, 5)
    ]
    assert {name: file["sha256"] for name, file in digests[0].items()} == {
        name: file["sha256"] for name, file in digests[1].items()
    }  # neither weights nor moments were touched


def test_too_many_skipped_steps_stop_the_run(shards, tmp_path):
    script = poisoned_script(tmp_path, 4, 0)
    script.write_text(script.read_text().replace("calls == 4", "calls >= 4"))
    arguments = options(shards, tmp_path / "run", 1, "--train.nonfinite", "skip", "--train.max_skipped_steps", "3")
    done = commands.run(script, arguments)
    assert done.returncode == 2, done.stdout
    assert (
        "step 3: the last 3 steps had no finite gradient and were skipped (train.max_skipped_steps is 3)" in done.stdout
    )
