"""Every optimizer through the entry at every stage, going on from a checkpoint of stage 2: same state, same losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.config.optimizer import OPTIMIZERS
from tests.engine.train.layouts import Job, Layout, Outcome, run_jobs

SAVED, STEPS = 2, 5
LAYOUTS = [Layout(2, stage) for stage in (0, 1, 2, 3)]
SOURCE = LAYOUTS[2]
RATES = {"adamw": "1e-3", "lamb": "1e-2", "lion": "3e-4", "adafactor": "1e-3", "muon": "1e-3"}


def options(name: str, shards: Path, *more: str) -> list[str]:
    return [
        "--model", "bert-tiny", "--arch.hidden_size", "48", "--arch.num_heads", "3", "--arch.intermediate_size", "100",
        "--data.shards", str(shards), "--data.seq_length", "32", "--train.steps", str(STEPS),
        "--train.batch_size", "8", "--train.micro_batch_size", "2", "--train.log_every", "1",
        "--train.save_every", str(SAVED), "--train.keep_checkpoints", "0", "--train.eval_rows", "8",
        "--train.optimizer.name", name, "--train.optimizer.lr", RATES[name], "--train.tensorboard", "false",
        "--train.optimizer.layer_decay", "0.9", "--train.schedule.warmup_steps", "1",
        "--train.optimizer.freeze", "[encoder.layers.*.attention.qkv.bias]", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> dict[tuple[str, str], Outcome]:
    """By optimizer and layout: the whole run at stage 2 ("source"), and those that go on from it."""
    folder = tmp_path_factory.mktemp("resume")
    sources = {(name, "source"): Job(str(folder / name), options(name, shards), SOURCE) for name in OPTIMIZERS}
    found = run_jobs(folder / "sources", list(sources.values()))
    assert [outcome.error for outcome in found.values() if outcome.error] == []
    targets = {
        (name, str(layout)): Job(
            str(folder / f"{name} {layout}"), options(name, shards), layout, str(folder / name), SAVED
        )
        for name in OPTIMIZERS
        for layout in LAYOUTS
    }
    found |= run_jobs(folder / "targets", list(targets.values()))
    return {key: found[job.output] for key, job in {**sources, **targets}.items()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_goes_on_in_any_stage(name, layout, outcomes):
    source, target = outcomes[name, "source"], outcomes[name, str(layout)]
    assert (source.error, target.error) == ("", "")
    assert [text for text in target.restored if "differs" in text] == []
    steps = [str(step) for step in range(SAVED + 1, STEPS + 1)]
    assert [target.rows[step] for step in steps] == [source.rows[step] for step in steps]
    losses = [[outcome.losses[step] for step in steps] for outcome in (source, target)]
    if layout == SOURCE:
        assert losses[0] == losses[1] and source.files == target.files
    else:
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


def run_offloaded(folder: Path, shards: Path, layout: Layout, source: Path | None) -> dict[str, Outcome]:
    """Every optimizer, in PyTorch's own arithmetic: DeepSpeed's kernels for the CPU differ in the seventh digit."""
    jobs = [
        Job(
            str(folder / name),
            options(name, shards, "--train.optimizer.backend", "torch"),
            layout,
            source and str(source / name),
            SAVED if source else 0,
        )
        for name in OPTIMIZERS
    ]
    found = run_jobs(folder, jobs)
    assert [outcome.error for outcome in found.values() if outcome.error] == []
    return dict(zip(OPTIMIZERS, found.values(), strict=True))


@pytest.mark.parametrize("offload", ["nvme", pytest.param("all", marks=pytest.mark.slow)])
def test_offloaded_runs_have_the_same_losses_and_go_on_bit_exact(offload, outcomes, tmp_path, shards):
    layout = Layout(2, 3, offload=offload)
    whole = run_offloaded(tmp_path / "whole", shards, layout, None)
    resumed = run_offloaded(tmp_path / "resumed", shards, layout, tmp_path / "whole")
    for name in OPTIMIZERS:
        expected = outcomes[name, "source"].losses
        found = whole[name].losses
        np.testing.assert_allclose([found[step] for step in expected], list(expected.values()), rtol=1e-6, err_msg=name)
        assert len(resumed[name].losses) >= STEPS - SAVED
        assert resumed[name].losses.items() <= found.items(), name
        assert resumed[name].files == whole[name].files, name
