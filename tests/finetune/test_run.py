"""Whole runs by the command line: what they learn, write, resume, and that ranks do not change them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.model_folder import load_finetuned_model
from tests import commands
from tests.finetune import tiny


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def evaluations(run: Path) -> list[dict[str, float]]:
    return [line for line in commands.metrics(run) if "heldout_loss" in line]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def logits_of(run: Path, texts: list[str], others: list[str] | None) -> torch.Tensor:
    model = load_finetuned_model(str(run))
    sequences, _ = model.builder.build(texts, others)
    with torch.no_grad():
        return model.task.logits(model.model, model.builder.pack(sequences))  # type: ignore[attr-defined]


def their_logits(run: Path, texts: list[str], others: list[str] | None) -> torch.Tensor:
    """One text at a time, with whatever AutoTokenizer returns."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    rows = []
    for text, other in zip(texts, others or itertools.repeat(None), strict=False):
        inputs = tokenizer(text, other, return_tensors="pt", truncation=True, max_length=40)
        with torch.no_grad():
            rows.append(model(**inputs).logits[0])
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_learns_by_heart_and_transformers_computes_the_same(kind, request, tmp_path):
    """BERT on single texts with labels that are words, GPT-2 on pairs with three classes."""
    transformers = pytest.importorskip("transformers")
    rows = tiny.single_rows(16) if kind == "bert" else tiny.pair_rows(16)
    header = ["label", "text_a", "text_b"][: len(rows[0])]
    file, run = tiny.write_table(tmp_path / "train.tsv", header, rows), tmp_path / "run"
    folder = request.getfixturevalue(kind)
    arguments = tiny.options(folder, file, run, "--test_file", file, "--epochs", "40")
    tiny.finetune(arguments)
    found = results(run)
    assert found["dev_accuracy"] == found["test_accuracy"] == found["dev_macro_f1"] == 1.0
    assert found["dev_loss"] == found["test_loss"] < 0.1
    assert found["labels"] == (["no", "yes"] if kind == "bert" else ["0", "1", "2"])
    assert found["num_examples"] == {"train": 16, "dev": 16, "test": 16} and found["steps"] == 80
    assert found["num_truncated"] == {"train": 0, "dev": 0, "test": 0} and found["seconds"] > 0
    assert found["model"] == str(folder) and found["task"] == "classification" and found["precision"] == "fp32"
    last = evaluations(run)[-1]
    assert last["step"] == 80 and last["heldout_loss"] == found["dev_loss"] and last["heldout_macro_f1"] == 1.0
    assert [line["step"] for line in evaluations(run)] == list(range(2, 81, 2))  # once an epoch
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-78", "step-80"]

    config = transformers.AutoConfig.from_pretrained(run / "model")
    assert config.id2label == dict(enumerate(found["labels"])) and config.label2id["0" if kind == "gpt2" else "no"] == 0
    assert config.finetuning == {"task": "classification", "max_length": 40, "pair": kind == "gpt2"}
    texts = [row[1] for row in rows]
    others = [row[2] for row in rows] if kind == "gpt2" else None
    expected = their_logits(run, texts, others)
    torch.testing.assert_close(logits_of(run, texts, others), expected, atol=1e-5, rtol=1e-5)

    again = tiny.finetune(arguments)
    assert "is finished at step 80" in again.stdout
    refused = commands.run(tiny.FINETUNE, [*arguments, "--seed", "2"])
    assert refused.returncode == 2 and "holds a run with other settings:\n  seed: 1 there, 2 now" in refused.stdout


def test_two_ranks_equal_one(bert, tmp_path):
    train = tiny.write_table(tmp_path / "train.tsv", ["label", "text_a", "text_b"], tiny.pair_rows(27))
    dev = tiny.write_table(
        tmp_path / "dev.tsv", ["text_b", "label", "text_a"], [(b, x, a) for x, a, b in tiny.pair_rows(11)]
    )
    runs = []
    for name, ranks, config in (("one", None, "fp32.json"), ("two", 2, "fp32.json"), ("zero", 2, "stage2.json")):
        file = commands.write_ds_config(tmp_path / "stage2.json", zero_optimization={"stage": 2}, gradient_clipping=1.0)
        file = tiny.FP32 if config == "fp32.json" else file
        more = ("--ds_config", file, "--train.eval_every", "2", "--train.steps", "6", "--epochs", "1")
        tiny.finetune(tiny.options(bert, train, tmp_path / name, *more, dev=dev), ranks)
        runs.append(tmp_path / name)
    one, *others = runs
    filler = [json.loads(line).get("filler") for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert any(filler)  # shapes are few on a CPU too
    for other in others:
        assert commands.losses(other) == pytest.approx(commands.losses(one), abs=1e-6)
        assert len(evaluations(one)) == 3
        for mine, theirs in zip(evaluations(one), evaluations(other), strict=True):
            assert theirs == pytest.approx(mine, abs=1e-6)
        for name in ("dev_loss", "dev_accuracy", "dev_macro_f1"):
            assert results(other)[name] == pytest.approx(results(one)[name], abs=1e-6)


def test_a_killed_run_ends_bit_identical(bert, tmp_path):
    file = tiny.write_table(tmp_path / "train.tsv", ["label", "text_a"], tiny.single_rows(21))
    more = ("--train.steps", "120", "--train.save_every", "5", "--train.eval_every", "40")
    unbroken, broken = (tiny.options(bert, file, tmp_path / name, *more) for name in ("unbroken", "broken"))
    tiny.finetune(unbroken)
    step = int(np.random.default_rng().integers(1, 100))  # anywhere, also before the first checkpoint
    kill_at_step(commands.launch_command(tiny.FINETUNE, broken, None), tmp_path / "broken", step)
    assert not (tmp_path / "broken" / "results.json").exists()
    done = tiny.finetune(broken)
    assert "going on from step" in done.stdout, f"killed at step {step}"
    assert weights(tmp_path / "unbroken") == weights(tmp_path / "broken"), f"killed at step {step}"
    differing = {"seconds"}
    kept = [
        {k: v for k, v in results(tmp_path / name).items() if k not in differing} for name in ("unbroken", "broken")
    ]
    assert kept[0] == kept[1], f"killed at step {step}"
    assert commands.losses(tmp_path / "unbroken") == commands.losses(tmp_path / "broken"), f"killed at step {step}"


def kill_at_step(command: list[str], run: Path, step: int) -> None:
    """Start a command and kill it with SIGKILL once its metrics show a step."""
    process = subprocess.Popen(
        command, env=commands.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").is_file() or f'"step": {step},' not in (run / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline, f"to be killed at step {step}"
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (run / "FINISHED").exists()


def test_results_are_written_by_the_start_that_finishes(bert, tmp_path):
    """Killed between the last checkpoint and results.json: the same command writes it and changes no weight."""
    file = tiny.write_table(tmp_path / "train.tsv", ["label", "text_a"], tiny.single_rows(8))
    arguments = tiny.options(bert, file, tmp_path / "run", "--epochs", "2")
    tiny.finetune(arguments)
    before, content = weights(tmp_path / "run"), results(tmp_path / "run")
    os.remove(tmp_path / "run" / "results.json")
    os.remove(tmp_path / "run" / "FINISHED")
    tiny.finetune(arguments)
    assert weights(tmp_path / "run") == before
    assert results(tmp_path / "run")["dev_loss"] == content["dev_loss"] and (tmp_path / "run" / "FINISHED").is_file()


def test_first_weights(bert, tmp_path):
    """From the folder's weights, from random ones, and from a classifier of the same and of other labels."""
    file = tiny.write_table(tmp_path / "train.tsv", ["label", "text_a"], tiny.single_rows(8))
    other = tiny.write_table(tmp_path / "other.tsv", ["label", "text_a"], tiny.single_rows(8, ("x", "y", "z")))
    first = ("--train.steps", "1", "--train.optimizer.lr", "1e-9", "--train.optimizer.weight_decay", "0")

    def start(model: Path, train: Path, name: str, *more: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        tiny.finetune(tiny.options(model, train, tmp_path / name, *first, *more))
        return load_file(tmp_path / name / "model" / "model.safetensors")

    def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], name: str) -> bool:
        return one[name].shape == two[name].shape and torch.allclose(one[name], two[name], atol=1e-6)

    from safetensors.torch import load_file

    word, pooler, classifier = (
        f"{name}.weight" for name in ("bert.embeddings.word_embeddings", "bert.pooler.dense", "classifier")
    )
    tuned = start(bert, file, "tuned")
    assert same(tuned, load_file(bert / "model.safetensors"), word)
    assert not same(start(bert, file, "random", "--random_init"), tuned, word)
    on = start(tmp_path / "tuned", file, "on", "--seed", "9")
    assert same(on, tuned, word) and same(on, tuned, pooler) and same(on, tuned, classifier)
    moved = start(tmp_path / "tuned", other, "moved", "--seed", "9")
    assert same(moved, tuned, pooler) and moved[classifier].shape == (3, 32)


@pytest.mark.parametrize(
    ("folder", "files", "columns"),
    [
        ("cls_zh_book_review", ("train.tsv", "dev.tsv"), None),
        ("pair_zh_afqmc", ("dev.tsv", "dev.tsv"), "text_a,text_b,label"),
        ("cls_en_sst2", ("train.tsv", "dev.tsv"), "text_a,label"),
    ],
)
def test_real_files(folder, files, columns, bert, shared_data, tmp_path):
    train, dev = (shared_data / folder / name for name in files)
    short = ("--train.steps", "2", "--train.eval_every", "1", "--train.eval_rows", "40")
    named = ("--columns", columns) if columns else ()
    done = tiny.finetune(tiny.options(bert, train, tmp_path / "run", *short, *named, dev=dev))
    found = results(tmp_path / "run")
    lines = len(dev.read_bytes().splitlines()) - (columns is None)
    assert found["labels"] == ["0", "1"] and found["num_examples"]["dev"] == lines
    assert found["num_truncated"]["dev"] > 0 and f"{dev}: {found['num_truncated']['dev']:,} of" in done.stdout
