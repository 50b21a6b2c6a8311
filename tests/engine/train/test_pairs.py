"""Pairs through the command line: training, evaluation, the exported folder, what it starts, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.convert.model_folder import WEIGHTS
from tests import commands
from tests.finetune import tiny

FP32 = commands.DS_CONFIGS / "fp32.json"
SMALL = (
    "--model", "bert-tiny", "--arch.num_layers", "1", "--data.seq_length", "64", "--train.batch_size", "8",
    "--train.micro_batch_size", "4", "--train.log_every", "1", "--train.eval_rows", "16", "--train.steps", "3",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train with an objective; a run of the same settings is made once."""
    runs: dict[tuple[Any, ...], Path] = {}

    def train(objective: str, *more: str | Path, ranks: int | None = None, ds_config: Path = FP32) -> Path:
        key = (objective, more, ranks, ds_config)
        if key not in runs:
            folder = tmp_path_factory.mktemp("pairs") / "run"
            options = ["--ds_config", ds_config, "--data.shards", shards, "--objective", objective, *SMALL, *more]
            done = commands.run(commands.PRETRAIN, [*options, "--train.output", folder], ranks=ranks)
            assert done.returncode == 0, done.stdout
            runs[key] = folder
        return runs[key]

    return train


@pytest.mark.parametrize("pair", ["nsp", "sop"])
def test_accuracy_is_logged_and_evaluated(pair: str, trained: Callable[..., Path]) -> None:
    lines = commands.metrics(trained(f"mlm,{pair}"))
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert line["loss"] == pytest.approx(line["loss_mlm"] + line[f"loss_{pair}"])
        assert 0 <= line[f"accuracy_{pair}"] <= 1
        assert 0.4 < line[f"loss_{pair}"] < 1.2  # chance is 0.69
    (held_out,) = (line for line in lines if "heldout_loss" in line)
    assert 0 <= held_out[f"heldout_accuracy_{pair}"] <= 1 and 0 <= held_out["heldout_accuracy_mlm"] <= 1


@pytest.mark.parametrize(("pair", "stage"), [("nsp", 3), ("sop", 2)])
def test_two_ranks_compute_what_one_does(pair: str, stage: int, trained: Callable[..., Path], tmp_path: Path) -> None:
    content = json.loads(FP32.read_text()) | {"zero_optimization": {"stage": stage}}
    config = commands.write_ds_config(tmp_path / "ds.json", **content)
    one, two = trained(f"mlm,{pair}"), trained(f"mlm,{pair}", ranks=2, ds_config=config)
    for first, second in zip(commands.metrics(one), commands.metrics(two), strict=True):
        names = [name for name in first if "loss" in name or "accuracy" in name]
        assert len(names) >= 3
        for name in names:
            assert first[name] == pytest.approx(second[name], rel=1e-5)


@pytest.mark.parametrize("pair", ["nsp", "sop"])
def test_transformers_reads_the_exported_folder(pair: str, trained: Callable[..., Path]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = trained(f"mlm,{pair}") / "model"
    model, report = transformers.AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "BertForPreTraining"
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("She had a very good opinion.", "天上有月", return_tensors="pt")
    assert set(inputs["token_type_ids"][0].tolist()) == {0, 1}
    assert model(**inputs).seq_relationship_logits.shape == (1, 2)


def test_a_run_starts_from_a_folder_of_pairs(trained: Callable[..., Path]) -> None:
    """With a rate of next to nothing the weights stay those of the folder."""
    first = trained("mlm,nsp") / "model"
    options = ("--init_from", first, "--train.optimizer.lr", "1e-30", "--train.optimizer.weight_decay", "0")
    for objective in ("mlm,nsp", "mlm,sop", "mlm"):
        weights = load_file(trained(objective, *options) / "model" / WEIGHTS)
        expected = load_file(first / WEIGHTS)
        assert all(torch.equal(weights[name], expected[name]) for name in weights)
        assert len(expected) - len(weights) == (4 if objective == "mlm" else 0)


def test_fine_tuning_takes_the_pooler_along(trained: Callable[..., Path], tmp_path: Path) -> None:
    folder = trained("mlm,nsp") / "model"
    file = tiny.write_table(tmp_path / "train.tsv", ["label", "text_a"], tiny.single_rows(8))
    still = ("--epochs", "1", "--train.optimizer.lr", "1e-30", "--train.optimizer.weight_decay", "0")
    done = tiny.finetune(tiny.options(folder, file, tmp_path / "run", *still))
    assert "first weights of their own: heads.classification.classifier.bias, heads.classification" in done.stdout
    name = "bert.pooler.dense.weight"
    after = load_file(tmp_path / "run" / "model" / WEIGHTS)
    assert torch.equal(after[name], load_file(folder / WEIGHTS)[name])


def test_pairs_go_on_where_they_stopped(trained: Callable[..., Path], shards: Path) -> None:
    whole = trained("mlm,nsp", "--masking.span", "geometric")
    run = trained("mlm,nsp", "--masking.span", "geometric", "--train.save_every", "2")
    (run / "FINISHED").unlink()
    shutil.rmtree(run / "checkpoints" / "step-3")
    options = ["--ds_config", FP32, "--data.shards", shards, "--objective", "mlm,nsp", *SMALL]
    more = ["--masking.span", "geometric", "--train.save_every", "2", "--train.output", run]
    done = commands.run(commands.PRETRAIN, [*options, *more])
    assert done.returncode == 0, done.stdout
    assert (run / "model" / WEIGHTS).read_bytes() == (whole / "model" / WEIGHTS).read_bytes()


def fails(*options: str | Path) -> str:
    """What a run that must not start prints."""
    done = commands.run(commands.PRETRAIN, options)
    assert done.returncode == 2, done.stdout
    return done.stdout


def test_what_is_refused(shards: Path, tokenizer: Path, tmp_path: Path) -> None:
    base = ("--ds_config", FP32, "--data.shards", shards, "--train.output", tmp_path / "run", *SMALL)
    assert "unknown objective 'mlm,nps'; there are mlm, mlm,nsp, mlm,sop, lm; did you mean mlm,nsp" in fails(
        *base, "--objective", "mlm,nps"
    )
    text = fails(*base, "--objective", "mlm,sop", "--arch.num_segments", "1")
    assert "objective mlm,sop needs segments 0 and 1, and arch.num_segments is 1" in text
    text = fails(*base, "--masking.span", "long", "--masking.final_rate", "2", "--data.short_seq_prob", "7")
    assert "masking.span is 'long'; it must be one of none, geometric, ngram" in text
    assert "masking.final_rate is 2.0; it must be above 0 and below 1" in text
    assert "data.short_seq_prob is 7.0; it must be in [0, 1]" in text
    text = fails(*base, "--masking.max_span", "3", "--masking.rate_schedule", "cosine")
    assert "masking.max_span is 3, but masking.span is none; set masking.span too" in text
    assert "masking.rate_schedule is cosine, but masking.final_rate is not given" in text


def test_one_document_cannot_be_its_own_other(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "One sentence. Another one. " * 100}) + "\n")
    options = ["--tokenizer", tokenizer, "--output", tmp_path / "shards", "--heldout", "0"]
    made = commands.preprocess("shards", "--corpus", tmp_path / "one.jsonl", *options)
    assert made.returncode == 0, made.stdout
    base = ("--ds_config", FP32, "--data.shards", tmp_path / "shards", "--train.output", tmp_path / "run", *SMALL)
    text = fails(*base, "--objective", "mlm,nsp")
    assert "holds one document, and the objective nsp takes text of another one; make the shards of more" in text
