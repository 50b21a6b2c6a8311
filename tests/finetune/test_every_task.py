"""Every task: dev scores that ranks and ZeRO stages do not change, a run that goes on, predictions from its folder.

All runs of a number of ranks happen in one start.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune import load
from finetune.config.tasks import TASK_NAMES
from finetune.run import main
from tests import commands
from tests.engine.ranks import run_ranks
from tests.finetune import tiny

MODULE = "tests.finetune.test_every_task"
LAYOUTS = {"one": (1, 0), "two": (2, 2), "three": (2, 3)}  # name -> ranks, ZeRO stage
RESUMED = "classification"
WORDS = tiny.WORDS


def write_files(folder: Path) -> None:
    """A small file for each task, to train and to measure on."""
    folder.mkdir()
    pairs = [(label, a, b) for label, a, b in tiny.pair_rows(18, ("0", "1"))]
    tiny.write_table(folder / "classification", ["label", "text_a", "text_b"], pairs)
    scored = [(f"{number % 5}.5", a, b) for number, (_, a, b) in enumerate(pairs)]
    for kind in ("regression", "similarity"):
        tiny.write_table(folder / kind, ["label", "text_a", "text_b"], scored)
    ranked = [(f"q{number // 3}", str(int(number % 3 == 1)), a, b) for number, (_, a, b) in enumerate(pairs)]
    tiny.write_table(folder / "ranking", ["qid", "label", "text_a", "text_b"], ranked)
    written = [(a, b) for _, a, b in pairs]
    tiny.write_table(folder / "lm", ["prompt", "completion"], written)
    tiny.write_table(folder / "seq2seq", ["source", "target"], written)
    tagged = [tiny.sentence(number, 3 + number % 6).split() for number in range(14)]
    tags = [["B-X" if len(word) > 5 else "O" for word in words] for words in tagged]
    (folder / "token_classification").write_text(
        "\n".join("".join(f"{w} {t}\n" for w, t in zip(*s, strict=True)) for s in zip(tagged, tags, strict=True)),
        encoding="utf-8",
    )
    choices = [
        {"context": a, "question": "", "choices": b.split()[:3], "label": n % 3} for n, (_, a, b) in enumerate(pairs)
    ]
    lines = "".join(json.dumps(choice, ensure_ascii=False) + "\n" for choice in choices)
    (folder / "multiple_choice.jsonl").write_text(lines, encoding="utf-8")
    (folder / "question_answering.json").write_text(json.dumps({"data": [{"paragraphs": list(paragraphs())}]}))
    entries = [
        {"name": "first", "task": "classification", "train_file": str(folder / "classification")},
        {"name": "second", "task": "token_classification", "train_file": str(folder / "token_classification")},
    ]
    for entry in entries:
        entry["dev_file"] = entry["train_file"]
    (folder / "multitask.yaml").write_text(json.dumps({"multitask": {"tasks": entries}}))


def paragraphs() -> list[dict[str, Any]]:
    """Questions in SQuAD's layout on texts longer than the model takes, one in three without an answer."""
    found = []
    for number in range(9):
        text = tiny.sentence(number, 40)
        word = text.split()[7 * (number % 5)]
        answer = {"text": word, "answer_start": text.index(word)}
        question = {"id": str(number), "question": WORDS[number], "is_impossible": number % 3 == 2}
        found.append({"context": text, "qas": [{**question, "answers": [] if number % 3 == 2 else [answer]}]})
    return found


def arguments(folder: Path, kind: str, output: Path) -> list[str]:
    """The command of a run."""
    suffix = {"multiple_choice": ".jsonl", "question_answering": ".json"}.get(kind, "")
    file = folder / "data" / f"{kind}{suffix}"
    model = folder / ("gpt2" if kind == "lm" else "bert")
    files = ["--train_file", file, "--dev_file", file]
    if kind == "multitask":
        files = ["--config", folder / "data" / "multitask.yaml"]
    stride = ["--question_answering.doc_stride", "8"] if kind == "question_answering" else []
    found = [
        "--task", kind, "--ds_config", output.parent / "ds.json", "--model", model, *files, "--output", output,
        "--max_length", "32", "--train.batch_size", "8", "--train.micro_batch_size", "4", "--train.steps", "4",
        "--train.save_every", "2", "--train.tensorboard", "false", "--train.optimizer.lr", "2e-3", *stride,
    ]  # fmt: skip
    return [str(word) for word in found]


def runs(folder: Path) -> list[int]:
    """Fine-tune every task; one goes on from its first checkpoint, as after a kill, in a copy."""
    home = folder.parent
    codes = [main(arguments(home, kind, folder / kind)) for kind in TASK_NAMES]
    if torch.distributed.get_rank() == 0:
        shutil.copytree(folder / RESUMED, folder / "resumed", symlinks=True)
        (folder / "resumed" / "FINISHED").unlink()
        shutil.rmtree(folder / "resumed" / "checkpoints" / "step-4")
    torch.distributed.barrier()
    return [*codes, main(arguments(home, RESUMED, folder / "resumed"))]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs."""
    folder = tmp_path_factory.mktemp("every-task")
    write_files(folder / "data")
    tiny.write_pretrained(folder / "bert", tiny.BERT)
    tiny.write_pretrained(folder / "gpt2", tiny.GPT2)
    for name, (ranks, stage) in LAYOUTS.items():
        (folder / name).mkdir()
        zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
        commands.write_ds_config(folder / name / "ds.json", zero_optimization=zero, gradient_clipping=1.0)
        assert run_ranks(MODULE, "runs", folder / name, ranks, timeout=500) == [[0] * (len(TASK_NAMES) + 1)] * ranks
    return folder


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("kind", TASK_NAMES)
def test_ranks_and_stages_change_no_score(done: Path, kind: str) -> None:
    one = results(done / "one" / kind)
    names = [name for name in one if name.startswith("dev_")]
    assert "dev_loss" in names and len(names) >= 2
    for layout in ("two", "three"):
        other = results(done / layout / kind)
        np.testing.assert_allclose([other[name] for name in names], [one[name] for name in names], atol=1e-4, rtol=1e-4)
    losses = [line["loss"] for line in commands.metrics(done / "one" / kind) if "loss" in line]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_goes_on(done: Path, layout: str) -> None:
    for name in ("dev_loss", "dev_accuracy"):
        assert results(done / layout / "resumed")[name] == results(done / layout / RESUMED)[name]


RECORDS: dict[str, Any] = {
    "ranking": {"qid": "1", "text_a": "apple", "text_b": "bread"},
    "token_classification": {"text": "apple bread mountain"},
    "question_answering": {"question": "apple", "context": "a mountain and a valley"},
    "multiple_choice": {"context": "apple", "question": "", "choices": ["bread", "cloud"]},
    "lm": {"prompt": "apple"},
    "seq2seq": {"source": "apple bread"},
}


@pytest.mark.parametrize("kind", [name for name in TASK_NAMES if name != "multitask"])
def test_the_folder_predicts(done: Path, kind: str) -> None:
    record = RECORDS.get(kind, {"text_a": "apple", "text_b": "bread"})
    (answer, again) = load(done / "three" / kind).predict([record, record])
    assert answer and answer.keys() == again.keys()
