"""Runs whose batches are filled up compute what others do, and say how much of it was filler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels import build
from tests import commands
from tests.finetune import tiny

TINY = ("--model", "bert-tiny", "--arch.hidden_size", "48", "--arch.num_heads", "3", "--arch.intermediate_size", "100")


def run(shards: Path, output: Path, *more: str, ranks: int | None = None, backend: str = "reference") -> None:
    ds_config = commands.write_ds_config(output.parent / "ds.json", gradient_clipping=1.0)
    options = [
        "--ds_config", ds_config, *TINY, "--data.shards", shards, "--data.seq_length", "64", "--train.output", output,
        "--train.steps", "6", "--train.batch_size", "8", "--train.micro_batch_size", "2", "--train.log_every", "1",
        "--train.save_every", "3", "--train.eval_rows", "8", "--train.tensorboard", "false", *more,
    ]  # fmt: skip
    done = commands.run(commands.PRETRAIN, options, ranks, env={"KERNELS_BACKEND": backend})
    assert done.returncode == 0, done.stdout


def lines(output: Path) -> list[dict]:
    return [line for line in commands.metrics(output) if "loss" in line]


@pytest.mark.parametrize(("objective", "ranks"), [("mlm", None), ("mlm,sop", 2)])
def test_losses_are_those_without_filler(objective, ranks, shards, tmp_path):
    """With dropout too, where the masks are keyed by the packed row: those of our kernels, for hidden states."""
    if reason := build.missing("cpu"):
        pytest.skip(reason)
    options = ("--objective", objective, "--arch.attention_dropout", "0")
    run(shards, tmp_path / "plain", *options, ranks=ranks, backend="cpu")
    run(shards, tmp_path / "fixed", *options, "--train.fixed_shapes", "true", ranks=ranks, backend="cpu")
    plain, fixed = lines(tmp_path / "plain"), lines(tmp_path / "fixed")
    np.testing.assert_allclose([line["loss"] for line in fixed], [line["loss"] for line in plain], rtol=1e-6)
    assert [line["tokens"] for line in fixed] == [line["tokens"] for line in plain]
    assert all("filler" not in line for line in plain)
    rows = 8 * np.diff([0, *(line["step"] for line in fixed)])
    tokens = np.diff([0, *(line["tokens"] for line in fixed)])
    np.testing.assert_allclose([line["filler"] for line in fixed], 1 - tokens / (64 * rows), atol=1e-12)
    held_out = [[line["heldout_loss"] for line in commands.metrics(tmp_path / name) if "heldout_loss" in line]
                for name in ("plain", "fixed")]  # fmt: skip
    np.testing.assert_allclose(held_out[0], held_out[1], rtol=1e-6)


def test_a_run_goes_on_with_the_other_setting(shards, tmp_path):
    options = ("--arch.hidden_dropout", "0", "--arch.attention_dropout", "0")
    run(shards, tmp_path / "whole", *options)
    run(shards, tmp_path / "run", *options, "--train.fixed_shapes", "true", "--train.steps", "3")
    run(shards, tmp_path / "run", *options, "--train.fixed_shapes", "false")
    losses = [[line["loss"] for line in lines(tmp_path / name)] for name in ("run", "whole")]
    np.testing.assert_allclose(losses[0][3:], losses[1][3:], rtol=1e-3)  # the schedule of the first ended at step 3
    assert ["filler" in line for line in lines(tmp_path / "run")] == [True] * 3 + [False] * 3


def test_fine_tuning_too(tmp_path):
    """There lengths vary more, and sizes are those of a scale."""
    fields = {**tiny.BERT, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    model = tiny.write_pretrained(tmp_path / "model", fields)
    table = tiny.write_table(tmp_path / "train.tsv", ("label", "text_a"), tiny.single_rows(24))
    for name, more in (("plain", ()), ("fixed", ("--train.fixed_shapes", "true"))):
        tiny.finetune(tiny.options(model, table, tmp_path / name, "--epochs", "2", *more))
    plain, fixed = lines(tmp_path / "plain"), lines(tmp_path / "fixed")
    np.testing.assert_allclose([line["loss"] for line in fixed], [line["loss"] for line in plain], rtol=1e-6)
    assert all(0 < line["filler"] < 0.2 for line in fixed)
