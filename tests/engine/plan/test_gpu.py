"""Estimates of memory against what torch counted on a CUDA device in a real run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests import commands

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = 0.08
FILES = ("zero0_bf16", "zero1_bf16", "zero2_bf16", "zero3_bf16")
ROWS, LENGTH = 16, 512


@pytest.fixture(scope="module")
def gzip_shards(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Shards that need no plugin of HDF5."""
    pytest.importorskip("deepspeed", reason="training needs deepspeed")
    pytest.importorskip("jsonargparse", reason="the command line needs jsonargparse")
    folder = tmp_path_factory.mktemp("plan")
    corpus = sorted((repository / "examples" / "corpus").glob("*.txt"))
    options = ["--type", "wordpiece", "--vocab_size", "8000", "--output", folder / "tokenizer"]
    done = commands.preprocess("tokenizer", "--corpus", *corpus, *options)
    assert done.returncode == 0, done.stdout
    options = ["--tokenizer", folder / "tokenizer", "--output", folder / "shards", "--compression", "gzip"]
    done = commands.preprocess("shards", "--corpus", *corpus, *options, "--heldout", "0")
    assert done.returncode == 0, done.stdout
    return folder / "shards"


@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("name", FILES)
def test_the_estimate_is_what_torch_counts(
    name: str, checkpointing: str, gzip_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BERT-base, with attention by the flash kernel, and torch's AdamW, whichever else is installed."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bf16 needs an Ampere GPU or newer")
    from engine.plan.__main__ import main

    run = [
        "--ds_config", str(commands.DS_CONFIGS / f"{name}.json"), "--model", "bert-base", "--objective", "mlm",
        "--data.shards", str(gzip_shards), "--data.seq_length", str(LENGTH), "--train.batch_size", str(2 * ROWS),
        "--train.micro_batch_size", str(ROWS), "--train.steps", "6", "--train.log_every", "1",
        "--train.optimizer.backend", "torch", "--train.activation_checkpointing", checkpointing,
        "--train.tensorboard", "false", "--train.output", str(tmp_path / "run"),
    ]  # fmt: skip
    done = commands.run(commands.PRETRAIN, run, env={"DS_ACCELERATOR": "cuda"})
    assert done.returncode == 0, done.stdout
    measured = max(line["memory_bytes"] for line in commands.metrics(tmp_path / "run") if "memory_bytes" in line)
    assert main([*run, "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)["best"]["total_bytes"]
    assert estimate == pytest.approx(measured, rel=TOLERANCE), (estimate, measured)
