"""Runs on several shard folders mixed by weight."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.config.cli import SharedError
from engine.data.mixture import Mixture
from engine.train.distributed import global_rank, refuse_disagreement
from preprocess.manifest import read_manifest
from tests import commands
from tests.engine.ranks import run_ranks

STEPS, BATCH, SEED = 6, 16, 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, corpus: list[Path], tokenizer: Path) -> dict[str, Path]:
    """English with held-out documents, and Chinese without."""
    made = {}
    for name, held_out in (("en", "0.1"), ("zh", "0"), ("reviews", "0.2")):
        made[name] = tmp_path_factory.mktemp("mixture") / name
        text = next(path for path in corpus if name in path.name)
        options = ["--tokenizer", tokenizer, "--output", made[name], "--heldout", held_out]
        done = commands.preprocess("shards", "--corpus", text, *options)
        assert done.returncode == 0, done.stdout
    return made


def options(shards: str, output: Path, *more: str | Path) -> list[str | Path]:
    ds_config = commands.write_ds_config(output.parent / "fp32.json", zero_optimization={"stage": 1})
    return [
        "--ds_config", ds_config, "--model", "bert-tiny", "--arch.hidden_size", "48", "--arch.num_heads", "3",
        "--arch.intermediate_size", "100", "--data.shards", shards, "--data.seq_length", "64", "--train.output", output,
        "--train.steps", str(STEPS), "--train.batch_size", str(BATCH), "--train.micro_batch_size", "4",
        "--train.log_every", "1", "--train.save_every", "3", "--train.eval_rows", "10", "--train.optimizer.lr", "1e-3",
        "--train.tensorboard", "false", "--seed", str(SEED), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def mixed(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of a run on one rank, its shards and what it printed."""
    run = tmp_path_factory.mktemp("mixed") / "run"
    shards = f"{folders['en']}:0.5,{folders['zh']}:0.2,{folders['reviews']}:0.3"
    done = commands.run(commands.PRETRAIN, options(shards, run))
    assert done.returncode == 0, done.stdout
    return run, shards, done.stdout


def by_digest(folders: dict[str, Path]) -> list[str]:
    return sorted(folders, key=lambda name: read_manifest(folders[name]).digest)


def test_rows_of_each_source_are_counted(mixed, folders):
    run, _, text = mixed
    lines = [line for line in commands.metrics(run) if "loss" in line]
    names = by_digest(folders)
    shares = {"en": 5000, "zh": 2000, "reviews": 3000}
    sources = Mixture([shares[name] for name in names], SEED).sources(range(STEPS * BATCH)).tolist()
    for line in lines:
        seen = sources[: line["step"] * BATCH]
        assert {name: line[f"rows/{name}"] for name in names} == {n: seen.count(k) for k, n in enumerate(names)}
    last = lines[-1]
    assert f"note: zh: 20.00% of the rows, {last['rows/zh']} in this run; it holds " in text


def test_each_source_is_evaluated_by_itself(mixed):
    (line,) = [line for line in commands.metrics(mixed[0]) if "heldout_loss" in line]
    assert "heldout_loss/zh" not in line  # it has no held-out documents
    mean = (0.5 * line["heldout_loss/en"] + 0.3 * line["heldout_loss/reviews"]) / 0.8
    assert line["heldout_loss"] == pytest.approx(mean, rel=1e-12)
    assert line["heldout_loss/en"] != line["heldout_loss/reviews"]
    for source in ("", "/en", "/reviews"):  # of the mean loss, not the mean of the sources' perplexities
        assert line[f"heldout_perplexity{source}"] == pytest.approx(math.exp(line[f"heldout_loss{source}"]))


def test_two_ranks_learn_the_same_from_a_mixture(mixed, tmp_path):
    run, shards, _ = mixed
    turned = ",".join(reversed(shards.split(",")))  # nor does the order matter in which folders are named
    done = commands.run(commands.PRETRAIN, options(turned, tmp_path / "run"), ranks=2)
    assert done.returncode == 0, done.stdout
    assert commands.losses(tmp_path / "run") == pytest.approx(commands.losses(run), rel=1e-6)
    assert _counts(tmp_path / "run") == _counts(run)


def _counts(run: Path) -> list[dict[str, Any]]:
    return [{key: line[key] for key in line if key.startswith("rows/")} for line in commands.metrics(run)]


def test_mixed_run_goes_on_to_the_bit_and_keeps_its_mixture(mixed, folders, tmp_path):
    run, shards, _ = mixed
    again = tmp_path / "again"
    shutil.copytree(run, again, symlinks=True)
    (again / "FINISHED").unlink()
    shutil.rmtree(again / "checkpoints" / "step-6")
    other = f"{folders['en']}:0.5,{folders['zh']}:0.3,{folders['reviews']}:0.2"
    refused = commands.run(commands.PRETRAIN, options(other, again))
    assert refused.returncode == 2
    digest = read_manifest(folders["zh"]).digest[:16]
    assert f"data.weights.{digest}: 0.2 there, 0.3 now" in refused.stdout
    done = commands.run(commands.PRETRAIN, options(shards, again))
    assert done.returncode == 0 and "going on from step 3" in done.stdout, done.stdout
    assert commands.losses(again) == commands.losses(run)
    assert _counts(again) == _counts(run)


def test_config_names_every_source_by_its_digest(mixed, folders):
    data = json.loads((mixed[0] / "config.json").read_text())["data"]
    digests = {name: read_manifest(folder).digest for name, folder in folders.items()}
    assert data["weights"] == {digests["en"][:16]: 0.5, digests["zh"][:16]: 0.2, digests["reviews"][:16]: 0.3}
    assert data["manifest_digest"] not in digests.values()


def test_another_tokenizer_is_refused(folders, corpus, tmp_path):
    arguments = ["--type", "char", "--vocab_size", "500", "--output", tmp_path / "tokenizer"]
    done = commands.preprocess("tokenizer", "--corpus", *corpus, *arguments)
    assert done.returncode == 0, done.stdout
    arguments = ["--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "chars"]
    done = commands.preprocess("shards", "--corpus", *corpus, *arguments)
    assert done.returncode == 0, done.stdout
    text = f"{folders['en']}:1,{tmp_path / 'chars'}:1"
    done = commands.run(commands.PRETRAIN, options(text, tmp_path / "run"))
    assert done.returncode == 2
    assert f"error: data.shards: {tmp_path / 'chars'} was made with another tokenizer (" in done.stdout
    assert "prepare all folders of a mixture with one tokenizer" in done.stdout


def test_a_folder_named_twice_is_refused(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders["en"].parent)
    for text in (f"en:1,{folders['en']}:1", "en:1,./en/:1"):
        done = commands.run(commands.PRETRAIN, options(text, tmp_path / "run"))
        assert done.returncode == 2 and "twice; give each folder once, with one weight" in done.stdout
    shutil.copytree(folders["en"], tmp_path / "copy")
    done = commands.run(commands.PRETRAIN, options(f"{folders['en']}:1,{tmp_path / 'copy'}:1", tmp_path / "run"))
    assert done.returncode == 2
    assert f"{tmp_path / 'copy'} holds the same text as {folders['en']}; give one of them" in done.stdout


def test_a_missing_folder_of_a_mixture_is_named(folders, tmp_path):
    done = commands.run(commands.PRETRAIN, options(f"{folders['en']}:1,{tmp_path / 'none'}:1", tmp_path / "run"))
    assert done.returncode == 2
    assert f"data.shards {tmp_path / 'none'} does not exist; make it with" in done.stdout


def disagree(folder: Path) -> list[str]:
    """What each rank is told where rank 1 sees fewer rows."""
    told = []
    for rows in ((100, 100), (100, 90)):
        facts = {"steps of the run": "10", "rows of 64 tokens in en": str(rows[global_rank()])}
        try:
            refuse_disagreement(facts, "train on other rows", "give all hosts the same shards")
            told.append("")
        except SharedError as error:
            told.append(str(error))
    return told


def test_ranks_that_see_other_rows_are_refused(tmp_path):
    first, second = run_ranks("tests.engine.train.test_mixture", "disagree", tmp_path)
    assert first == second and first[0] == ""
    assert first[1].startswith("rank 1 on ")
    assert "rows of 64 tokens in en: 90 there, 100 on rank 0; give all hosts the same shards" in first[1]
