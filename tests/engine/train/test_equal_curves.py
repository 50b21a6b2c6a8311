"""One loss curve, whatever the ranks, hosts, accumulation and ZeRO stage: that of a plain PyTorch loop."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.config.masking import MaskingConfig
from engine.config.presets import load_preset
from engine.data.draws import stable_seed
from engine.data.rows import RowReader
from engine.models.model import build_model
from engine.objectives.lm import CausalLM
from engine.objectives.mlm import MaskedLM
from engine.train.resolve import vocabulary_of
from preprocess.manifest import read_manifest
from preprocess.tokenizer import load_tokenizer
from tests import commands
from tests.launch.two_nodes import TwoNodes

STEPS, BATCH, MICRO, LENGTH, SEED, CLIP, RATE = 6, 16, 4, 64, 11, 0.5, 2e-3
TINY = ("--arch.hidden_size", "48", "--arch.num_heads", "3", "--arch.intermediate_size", "100")
TOLERANCE = 1e-6


def options(model: str, shards: Path, output: Path, ds_config: Path) -> list[str | Path]:
    return [
        "--ds_config", ds_config, "--model", model, *TINY, "--data.shards", shards, "--data.seq_length", str(LENGTH),
        "--train.output", output, "--train.steps", str(STEPS), "--train.batch_size", str(BATCH),
        "--train.micro_batch_size", str(MICRO), "--train.log_every", "1", "--train.save_every", "0",
        "--train.optimizer.lr", str(RATE), "--train.schedule.warmup_steps", "2", "--train.eval_rows", "20",
        "--seed", str(SEED),
    ]  # fmt: skip


def plain_loop(model_name: str, shards: Path) -> tuple[list[float], list[float], torch.nn.Module]:
    """The same training in plain PyTorch: one rank, sums of losses over a step divided by the step's targets."""
    tokenizer = load_tokenizer(shards / "tokenizer")
    vocabulary = vocabulary_of(tokenizer)
    fields, name = load_preset(model_name)
    sizes = {"vocab_size": tokenizer.vocab_size, "hidden_size": 48, "num_heads": 3, "intermediate_size": 100}
    arch = ArchConfig(**{**fields, **sizes})
    objective = MaskedLM(MaskingConfig(), vocabulary, SEED) if name == "mlm" else CausalLM(vocabulary)
    model = build_model(arch, objective.make_heads(arch), SEED)
    rows = RowReader(read_manifest(shards), LENGTH, objective.sequence_layout, SEED, ())
    decay = [p for p in model.parameters() if p.dim() > 1]
    no_decay = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}])
    curve, norms = [], []
    for step in range(STEPS):
        first = step * BATCH
        batches = [objective.collate(rows.in_order(range(p, p + MICRO))) for p in range(first, first + BATCH, MICRO)]
        targets = sum(batch.counts[name] for batch in batches)
        total = 0.0
        for number, batch in enumerate(batches):
            torch.manual_seed(stable_seed(3, SEED, step, number))
            loss = objective.losses(model, batch)[name].loss_sum
            (loss / targets).backward()
            total += loss.item()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        for group in optimizer.param_groups:  # warmup of 2 steps, then linear to just after the last
            group["lr"] = RATE * ((step + 1) / 2 if step < 2 else 1 - (step - 1) / (STEPS - 1))
        optimizer.step()
        optimizer.zero_grad()
        curve.append(total / targets)
    return curve, norms, model


@pytest.fixture(scope="module")
def expected(shards: Path) -> dict[str, tuple[list[float], list[float], torch.nn.Module]]:
    torch.set_num_threads(1)
    return {model: plain_loop(model, shards) for model in ("bert-tiny", "gpt2-tiny")}


def ds_config(folder: Path, stage: int) -> Path:
    return commands.write_ds_config(
        folder / f"zero{stage}.json", gradient_clipping=CLIP, zero_optimization={"stage": stage}
    )


@pytest.mark.parametrize(
    ("model", "ranks", "stage"),
    [
        pytest.param("bert-tiny", None, 0, marks=pytest.mark.runtime),
        ("bert-tiny", None, 1),
        ("bert-tiny", 2, 0),
        ("bert-tiny", 2, 1),
        ("bert-tiny", 2, 2),
        ("bert-tiny", 4, 2),
        ("bert-tiny", None, 3),
        ("bert-tiny", 2, 3),
        ("gpt2-tiny", 2, 3),
        ("gpt2-tiny", None, 2),
        pytest.param("gpt2-tiny", 2, 2, marks=pytest.mark.runtime),
        ("gpt2-tiny", 4, 1),
    ],
)
def test_curve_is_that_of_a_plain_loop(model, ranks, stage, shards, tmp_path, expected):
    run = tmp_path / "run"
    done = commands.run(commands.PRETRAIN, options(model, shards, run, ds_config(tmp_path, stage)), ranks)
    assert done.returncode == 0, done.stdout
    curve, norms, _ = expected[model]
    np.testing.assert_allclose(commands.losses(run), curve, rtol=TOLERANCE)
    found = [line["grad_norm"] for line in commands.metrics(run) if "grad_norm" in line]
    np.testing.assert_allclose(found, norms, rtol=1e-5)


def test_curve_on_two_hosts(nodes: TwoNodes, shards, tmp_path, expected, repository):
    run = tmp_path / "run"
    arguments = ["--num_nodes", "2", commands.PRETRAIN, *options("bert-tiny", shards, run, ds_config(tmp_path, 2))]
    done = nodes.run(arguments, cwd=repository)
    assert done.returncode == 0, done.stdout
    assert (run / "FINISHED").is_file()
    np.testing.assert_allclose(commands.losses(run), expected["bert-tiny"][0], rtol=TOLERANCE)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_follows_the_fp32_curve(stage, shards, tmp_path, expected):
    """Accumulated bf16 gradients too: DeepSpeed clears them only if it sees the loss in what the forward returns."""
    config = commands.write_ds_config(
        tmp_path / "bf16.json",
        bf16={"enabled": True, "immediate_grad_update": stage == 1},  # as ds_configs/bf16.json has it
        gradient_clipping=CLIP,
        zero_optimization={"stage": stage},
        data_types={"grad_accum_dtype": "fp32"},
        communication_data_type="fp32",
    )
    run = tmp_path / "run"
    done = commands.run(commands.PRETRAIN, options("bert-tiny", shards, run, config))
    assert done.returncode == 0, done.stdout
    curve, norms, _ = expected["bert-tiny"]
    np.testing.assert_allclose(commands.losses(run), curve, rtol=2e-3)
    found = [line["grad_norm"] for line in commands.metrics(run) if "grad_norm" in line]
    np.testing.assert_allclose(found, norms, rtol=0.03)


def test_mean_of_means_would_be_found(shards, tmp_path, expected):
    """The mistake that the plain loop is there to catch: each micro-batch divided by its own targets."""
    script = tmp_path / "mutant.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path[0] = {str(commands.REPOSITORY)!r}
        from engine.train.zero import ZeroEngine
        right = ZeroEngine.micro_step
        def mean_of_means(self, batch, counts, last):
            micro_batches = {BATCH // MICRO}
            ours = {{name: count * micro_batches for name, count in batch.counts.items()}}
            return right(self, batch, ours, last)
        ZeroEngine.micro_step = mean_of_means
        from engine.pretrain import main
        sys.exit(main())
        """)
    )
    run = tmp_path / "run"
    done = commands.run(script, options("bert-tiny", shards, run, ds_config(tmp_path, 0)))
    assert done.returncode == 0, done.stdout
    difference = np.abs(np.array(commands.losses(run)) / expected["bert-tiny"][0] - 1).max()
    assert difference > 5 * TOLERANCE
