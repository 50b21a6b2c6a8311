"""Two stages in one run, with ramps: the curve of a plain loop over both, and starts again inside either."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from engine.config.arch import ArchConfig
from engine.config.masking import MaskingConfig
from engine.config.presets import load_preset
from engine.data.draws import stable_seed
from engine.data.rows import RowReader
from engine.models.model import build_model
from engine.objectives.mlm import MaskedLM
from engine.train.resolve import vocabulary_of
from preprocess.manifest import read_manifest
from preprocess.tokenizer import load_tokenizer
from tests import commands
from tests.engine.train.test_resume import copy_up_to, digests

SEED, CLIP = 5, 0.5
# By hand: (row length, rows of the step, rows of that length before it, rate) of each step.
STEPS = [
    (32, 4, 0, 1e-3 / 2), (32, 4, 4, 1e-3), (32, 8, 8, 1e-3 * 2 / 3), (32, 8, 16, 1e-3 / 3),
    (64, 8, 0, 5e-4), (64, 8, 8, 5e-4), (32, 8, 24, 5e-4),
]  # fmt: skip
BETAS = {0: (0.9, 0.999), 4: (0.8, 0.9)}  # from that step on
SIZES = {"hidden_size": 48, "num_heads": 3, "intermediate_size": 100}
SETTINGS = {
    "model": "bert-tiny",
    "arch": SIZES,
    "seed": SEED,
    "train": {
        "batch_size": 8, "micro_batch_size": 2, "log_every": 1, "save_every": 1, "keep_checkpoints": 0,
        "eval_every": 0, "eval_rows": 8, "tensorboard": False, "optimizer": {"lr": 1e-3},
    },
    "stages": [
        {"steps": 4, "seq_length": 32, "batch_ramp": {2: 4}, "schedule": {"warmup_steps": 2}},
        {
            "steps": 3, "length_ramp": {2: 64}, "seq_length": 32, "micro_batch_size": 4,
            "optimizer": {"lr": 5e-4, "betas": [0.8, 0.9]}, "schedule": {"name": "constant", "warmup_ratio": 0.0},
        },
    ],
}  # fmt: skip


def command(folder: Path, shards: Path, run: Path, stage: int) -> list[str | Path]:
    ds_config = commands.write_ds_config(
        folder / f"zero{stage}.json", gradient_clipping=CLIP, zero_optimization={"stage": stage}
    )
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(SETTINGS))
    return ["--config", file, "--ds_config", ds_config, "--data.shards", shards, "--train.output", run]


@pytest.fixture(scope="module")
def expected(shards: Path) -> tuple[list[float], torch.nn.Module]:
    """Losses and final model of the same steps in plain PyTorch."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(shards / "tokenizer")
    fields, _ = load_preset("bert-tiny")
    arch = ArchConfig(**{**fields, **SIZES, "vocab_size": tokenizer.vocab_size})
    objective = MaskedLM(MaskingConfig(), vocabulary_of(tokenizer), SEED)
    model = build_model(arch, objective.make_heads(arch), SEED)
    readers = {
        length: RowReader(read_manifest(shards), length, objective.sequence_layout, SEED, ()) for length in (32, 64)
    }
    groups = [([p for p in model.parameters() if (p.dim() > 1) is matrix], matrix) for matrix in (True, False)]
    optimizer = torch.optim.AdamW([{"params": ps, "weight_decay": 0.01 if decays else 0.0} for ps, decays in groups])
    curve = []
    for step, (length, rows, first, rate) in enumerate(STEPS):
        micro = 2 if step < 4 else 4
        batches = [
            objective.collate(readers[length].in_order(range(first + at, first + at + micro)))
            for at in range(0, rows, micro)
        ]
        targets = sum(batch.counts["mlm"] for batch in batches)
        total = 0.0
        for number, batch in enumerate(batches):
            torch.manual_seed(stable_seed(3, SEED, step, number))
            loss = objective.losses(model, batch)["mlm"].loss_sum
            (loss / targets).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group.update(lr=rate, betas=BETAS[0 if step < 4 else 4])
        optimizer.step()
        optimizer.zero_grad()
        curve.append(total / targets)
    return curve, model


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> Path:
    """The run on one rank."""
    folder = tmp_path_factory.mktemp("stages")
    done = commands.run(commands.PRETRAIN, command(folder, shards, folder / "run", 0))
    assert done.returncode == 0, done.stdout
    return folder / "run"


def test_curve_is_that_of_a_plain_loop(whole, expected):
    np.testing.assert_allclose(commands.losses(whole), expected[0], rtol=1e-6)
    lines = [line for line in commands.metrics(whole) if "loss" in line]
    assert [line["lr"] for line in lines] == pytest.approx([rate for *_, rate in STEPS])
    assert [line["batch_size"] for line in lines] == [rows for _, rows, _, _ in STEPS]
    assert [line["seq_length"] for line in lines] == [length for length, *_ in STEPS]
    assert [line["stage"] for line in lines] == [0] * 4 + [1] * 3
    config = json.loads((whole / "config.json").read_text())
    assert config["train"]["steps"] == len(STEPS)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_take_the_same_steps(stage, shards, tmp_path, expected):
    done = commands.run(commands.PRETRAIN, command(tmp_path, shards, tmp_path / "run", stage), 2)
    assert done.returncode == 0, done.stdout
    np.testing.assert_allclose(commands.losses(tmp_path / "run"), expected[0], rtol=1e-6)


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_it_goes_on_inside_either_stage(step, whole, shards, tmp_path):
    run = tmp_path / "run"
    copy_up_to(whole, run, step)
    done = commands.run(commands.PRETRAIN, command(tmp_path, shards, run, 0))
    assert done.returncode == 0 and f"going on from step {step} of {len(STEPS)}" in done.stdout, done.stdout
    assert digests(run, len(STEPS)) == digests(whole, len(STEPS))


def test_the_last_stage_may_grow_and_an_earlier_one_may_not(whole, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    arguments = command(tmp_path, shards, run, 0)
    file = tmp_path / "run.yaml"
    longer = {**SETTINGS, "stages": [SETTINGS["stages"][0], {**SETTINGS["stages"][1], "steps": 4}]}
    file.write_text(yaml.safe_dump(longer))
    done = commands.run(commands.PRETRAIN, arguments)
    assert done.returncode == 0, done.stdout
    assert [line["step"] for line in commands.metrics(run) if "loss" in line] == list(range(1, 9))
    changed = {**SETTINGS, "stages": [{**SETTINGS["stages"][0], "steps": 5}, SETTINGS["stages"][1]]}
    file.write_text(yaml.safe_dump(changed))
    done = commands.run(commands.PRETRAIN, arguments)
    assert done.returncode == 2 and "stages.0.steps: 4 there, 5 now" in done.stdout, done.stdout


def test_more_ranks_than_rows_is_refused(tmp_path, tokenizer):
    text = tmp_path / "text.txt"
    text.write_text("One short document.\n")
    done = commands.preprocess("shards", "--corpus", text, "--tokenizer", tokenizer, "--output", tmp_path / "shards")
    assert done.returncode == 0, done.stdout
    ds_config = commands.write_ds_config(tmp_path / "fp32.json")
    arguments = ["--ds_config", ds_config, "--model", "bert-tiny", "--data.shards", tmp_path / "shards"]
    done = commands.run(commands.PRETRAIN, [*arguments, "--train.output", tmp_path / "run"], 2)
    assert done.returncode == 2, done.stdout
    assert "hold 1 rows of 128 tokens, fewer than the 2 ranks; start fewer ranks" in done.stdout
    assert not (tmp_path / "run").exists()
