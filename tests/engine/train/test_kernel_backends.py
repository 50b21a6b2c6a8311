"""One run on every backend of the kernels: the same losses, dropout's masks included."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.config.cli import SharedError
from engine.train import run
from engine.train.distributed import global_rank
from kernels import build, dispatch, overview
from tests import commands
from tests.engine.ranks import run_ranks

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


def expected(operation: str, backend: str) -> str:
    """Whose code runs an operation of a model on a CPU."""
    if backend != "auto":
        return backend
    return "cpu" if dispatch.is_ahead(operation, "cpu", torch.device("cpu")) else "torch"


def losses(model: str, shards: Path, folder: Path, backend: str) -> list[float]:
    """Losses of a short run with dropout, accumulation and clipping."""
    output = folder / backend
    ds_config = commands.write_ds_config(folder / "zero0.json", zero_optimization={"stage": 0}, gradient_clipping=1.0)
    options = [
        "--ds_config", ds_config, "--model", model, "--arch.hidden_size", "64", "--arch.num_heads", "2",
        "--arch.intermediate_size", "128", "--arch.num_layers", "2", "--arch.hidden_dropout", "0.1",
        "--arch.attention_dropout", "0.1", "--train.optimizer.lr", "2e-3", "--data.shards", shards,
        "--data.seq_length", "64", "--train.output", output, "--train.steps", str(STEPS), "--train.batch_size", "4",
        "--train.micro_batch_size", "2", "--train.log_every", "1", "--train.save_every", "1000",
        "--train.tensorboard", "false",
    ]  # fmt: skip
    done = commands.run(commands.PRETRAIN, options, env={"KERNELS_BACKEND": backend})
    assert done.returncode == 0, done.stdout
    runs = "cpu" if backend == "auto" else backend
    line = f"kernels: {', '.join(f'{each.name} {expected(each.name, backend)}' for each in overview.OF_MODELS)}"
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


DIFFERENT = {  # what is different on rank 1
    "reference": ("KERNELS_BACKEND", "reference"),
    "unknown": ("KERNELS_BACKEND", "fast"),
    "no_folder": ("KERNELS_BUILD_FOLDER", "/dev/null/built"),
}


def lines_of() -> list[str]:
    parts = SimpleNamespace(
        arch=ArchConfig(vocab_size=40, attention_dropout=0.1),
        settings=SimpleNamespace(precision="bf16"),
        timeline=SimpleNamespace(lengths=lambda: [128]),
    )
    return run._agree_on_kernels(torch.device("cpu"), parts)  # type: ignore[arg-type]


def agreement(folder: Path) -> list[str]:
    """What each rank is told where rank 1 is different, and the log's line where it is not."""
    os.environ.pop("KERNELS_BACKEND", None)
    told = list(lines_of())
    for name, value in DIFFERENT.values():
        if global_rank() == 1:
            os.environ[name] = value
            dispatch._candidates.cache_clear()
            dispatch.unavailable.cache_clear()
            dispatch.load.cache_clear()
        try:
            told += lines_of()
        except SharedError as error:
            told.append(str(error))
        if global_rank() == 1:
            os.environ.pop("KERNELS_BACKEND", None)
    return told


@pytest.mark.skipif(build.missing("cpu") is not None, reason=str(build.missing("cpu")))
def test_ranks_that_would_compute_by_other_kernels_end_the_run(tmp_path):
    found = run_ranks("tests.engine.train.test_kernel_backends", "agreement", tmp_path)
    assert found[0] == found[1]
    same, attention, reference, unknown, no_folder = found[0]
    assert attention == "attention: packed_attention on cpu, dropout 0.1"
    assert same.startswith("kernels: norm cpu, ")
    rank = f"rank 1 on {platform.node()} would compute by other kernels than rank 0: adamw:"
    assert reference.startswith(f"{rank} reference there (KERNELS_BACKEND asks for it), cpu on rank 0; give all")
    assert unknown.startswith("rank 1: KERNELS_BACKEND is 'fast'; it must be one of auto")
    assert no_folder.startswith(f"{rank} torch there (cpu, but none of /dev/null/built can be written;")
    assert no_folder.endswith("or set KERNELS_BACKEND=reference on all")
