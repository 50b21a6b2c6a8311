"""One run on every backend of the kernels: the same losses, dropout's masks included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels import overview
from tests import commands

STEPS = 50
OURS = "AdamW of this engine's kernels"
BACKENDS = ("reference", "cpu", "emulator", "auto")


@pytest.fixture(scope="module")
def bpe_shards(tmp_path_factory: pytest.TempPathFactory, corpus: list[Path]) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    steps = [
        ("tokenizer", "--corpus", *corpus, "--type", "bpe", "--vocab_size", "500", "--output", folder / "tokenizer"),
        ("shards", "--corpus", *corpus, "--tokenizer", folder / "tokenizer", "--output", folder / "shards"),
    ]
    for step in steps:
        done = commands.preprocess(*step)
        assert done.returncode == 0, done.stdout
    return folder / "shards"


def losses(model: str, shards: Path, folder: Path, backend: str) -> list[float]:
    """Losses of a short run with dropout, accumulation and clipping."""
    output = folder / backend
    ds_config = commands.write_ds_config(folder / "zero0.json", zero_optimization={"stage": 0}, gradient_clipping=1.0)
    options = [
        "--ds_config", ds_config, "--model", model, "--arch.hidden_size", "64", "--arch.num_heads", "2",
        "--arch.intermediate_size", "128", "--arch.num_layers", "2", "--arch.hidden_dropout", "0.1",
        "--arch.attention_dropout", "0", "--train.optimizer.lr", "2e-3", "--data.shards", shards,
        "--data.seq_length", "64", "--train.output", output, "--train.steps", str(STEPS), "--train.batch_size", "4",
        "--train.micro_batch_size", "2", "--train.log_every", "1", "--train.save_every", "1000",
        "--train.tensorboard", "false",
    ]  # fmt: skip
    done = commands.run(commands.PRETRAIN, options, env={"KERNELS_BACKEND": backend})
    assert done.returncode == 0, done.stdout
    runs = "cpu" if backend == "auto" else backend
    line = f"kernels: {', '.join(f'{operation.name} {runs}' for operation in overview.OF_MODELS)}"
    assert line in done.stdout.splitlines(), done.stdout
    assert f"optimizer: {'AdamW (fused) of torch' if runs == 'reference' else OURS};" in done.stdout, done.stdout
    return [line["loss"] for line in commands.metrics(output) if "loss" in line]


def test_a_backend_that_is_not_there_is_an_error(shards, tmp_path):
    options = [
        "--ds_config", commands.DS_CONFIGS / "fp32.json", "--model", "bert-tiny", "--data.shards", shards,
        "--train.output", tmp_path / "run", "--train.steps", "1",
    ]  # fmt: skip
    for backend, message in {
        "cuda": "error: KERNELS_BACKEND is cuda, but torch sees no CUDA device; or unset KERNELS_BACKEND",
        "fast": "error: KERNELS_BACKEND is 'fast'; it must be one of auto, reference, cpu, cuda, emulator, apex",
    }.items():
        done = commands.run(commands.PRETRAIN, options, env={"KERNELS_BACKEND": backend})
        assert done.returncode == 2 and message in done.stdout, done.stdout


@pytest.mark.parametrize("model", ["bert-tiny", "gpt2-tiny"])
def test_curves_are_the_same(model, shards, bpe_shards, tmp_path):
    curves = {
        backend: losses(model, shards if model.startswith("bert") else bpe_shards, tmp_path, backend)
        for backend in BACKENDS
    }
    assert all(len(curve) == STEPS for curve in curves.values())
    assert curves["reference"][-1] < curves["reference"][0] - 0.5
    for backend in BACKENDS[1:]:
        np.testing.assert_allclose(curves[backend], curves["reference"], rtol=1e-5, err_msg=backend)
