"""A dry run of a fine-tuning: all that a start would check, told in examples, and nothing is written."""

from __future__ import annotations

import re

import pytest

from engine.config.cli import UsageError, parse_config
from finetune.config.run import FinetuneConfig
from finetune.training.dry_run import dry_run
from tests import commands


@pytest.fixture
def options(bert, tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    lines = "".join(f"{number % 2}\tword {number}\n" for number in range(20))
    (tmp_path / "train.tsv").write_text("label\ttext_a\n" + lines)
    (tmp_path / "dev.tsv").write_text("label\ttext_a\n0\tword\n1\tother\n")
    files = ["--train_file", "train.tsv", "--dev_file", "dev.tsv"]
    train = ["--train.batch_size", "8", "--train.micro_batch_size", "2", "--epochs", "4", "--max_length", "64"]
    return ["--ds_config", str(commands.DS_CONFIGS / "fp32.json"), "--model", str(bert), *files, *train, "--dry_run"]


def run(*argv: str) -> None:
    dry_run(parse_config(FinetuneConfig, argv, prog="run.py"))


def test_the_plan(options, bert, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    run(*options)
    text = capsys.readouterr().out
    for line in (
        # ceil(20 / 8) = 3 steps an epoch, 4 epochs
        "  steps 1-12: 8 examples = 1 rank(s) x 4 micro-batch(es) x 2 examples\n",
        "  in all 12 steps, 96 examples\n",
        "  train train.tsv: 20 examples, ",
        "  dev dev.tsv: 2 examples, ",
        f"  4.80 epochs; labels 0, 1; begins from the weights of {bert}\n",
        "; objective classification\n",
        "computation: fp32, ZeRO stage 0 (",
        "memory of a rank (estimated, in micro-batches of 2 of the longest examples): ",
        "\n  activations ",
        "run folder: runs/finetune is new: the run begins at step 0 of 12\n",
    ):
        assert line in text, text
    size = int(re.findall(r"  ([\d,]+) parameters: ", text)[0].replace(",", ""))
    assert f"\n  weights {4 * size / 2**20:.1f} MiB\n" in text and f"\n  optimizer {8 * size / 2**20:.1f} MiB\n" in text
    assert sorted(tmp_path.iterdir()) == before


def test_what_refuses_a_start_refuses_a_dry_run(options, tmp_path):
    with pytest.raises(UsageError, match=r"backend is 'mpi'; it must be nccl or gloo") as raised:
        run(*options, "--backend", "mpi", "--train.batch_size", "9")
    assert "nearest legal train.batch_size: 8 or 10" in str(raised.value)
    (tmp_path / "runs" / "finetune").mkdir(parents=True)
    (tmp_path / "runs" / "finetune" / "mine").write_text("")
    with pytest.raises(UsageError, match=r"holds files but no config.json of a run"):
        run(*options)


def test_a_rank_that_is_not_the_first_of_its_host_says_nothing(options, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    run(*options)
    assert capsys.readouterr().out == ""


def test_the_command(options, tmp_path):
    done = commands.run(commands.REPOSITORY / "finetune" / "run.py", options, cwd=tmp_path)
    assert done.returncode == 0 and "run folder: runs/finetune is new" in done.stdout, done.stdout
    assert "rank 0 of 1, 1 rank(s) here, in " in done.stdout and not (tmp_path / "runs").exists()


def test_techniques_and_several_runs_are_told(options, capsys):
    run(*options, "--lora.rank", "2", "--adversarial.method", "pgd", "--seeds", "3", "5", "--output", "runs/x")
    text = capsys.readouterr().out
    # each of 2 layers: rank 2 x (32 + 96), (32 + 32), (32 + 48) and (48 + 32); the head: 32 x 32 + 32 and 32 x 2 + 2
    assert "  lora: rank 2 in 8 linear maps; 2,530 parameters are trained\n" in text, text
    assert "  adversarial: pgd, 3 step(s) of 0.833333 within 1\n" in text
    assert "run folder: runs/x/seed-3 is new" in text
    assert "the first of 2 runs in runs/x, one after the other: seed-3, seed-5\n" in text
    with pytest.raises(UsageError, match=r"seeds and folds are both given"):
        run(*options, "--seeds", "1", "2", "--folds", "3")
    with pytest.raises(UsageError, match=r"lora\.targets: '\*\.key' matches no linear map of the encoder"):
        run(*options, "--lora.rank", "2", "--lora.targets", "*.key")
