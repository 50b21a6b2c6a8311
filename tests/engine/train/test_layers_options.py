"""Activation checkpointing and torch.compile through the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import commands

TINY = ("--model", "bert-tiny", "--arch.hidden_size", "48", "--arch.num_heads", "3", "--arch.intermediate_size", "100")


def losses(shards: Path, output: Path, stage: int, *more: str) -> list[float]:
    ds_config = commands.write_ds_config(
        output.parent / f"zero{stage}.json", gradient_clipping=1.0, zero_optimization={"stage": stage}
    )
    options = [
        "--ds_config", ds_config, *TINY, "--data.shards", shards, "--data.seq_length", "64", "--train.output", output,
        "--train.steps", "4", "--train.batch_size", "8", "--train.micro_batch_size", "4", "--train.log_every", "1",
        "--train.eval_rows", "8", "--train.tensorboard", "false", *more,
    ]  # fmt: skip
    done = commands.run(commands.PRETRAIN, options, 2)
    assert done.returncode == 0, done.stdout
    return commands.losses(output)


@pytest.mark.parametrize("stage", [1, 3])
def test_results_do_not_change(stage, shards, tmp_path):
    plain = losses(shards, tmp_path / "plain", stage)
    assert losses(shards, tmp_path / "kept", stage, "--train.activation_checkpointing") == plain
    np.testing.assert_allclose(losses(shards, tmp_path / "fused", stage, "--train.compile"), plain, rtol=1e-5)
