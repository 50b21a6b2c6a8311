"""Several tasks over one encoder: their order, their files, their run, their predictions."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engine.config.cli import UsageError, parse_config
from engine.data.filler import filled
from engine.data.source import positions_of
from engine.train.timeline import Timeline
from finetune import predict
from finetune.config.multitask import MultitaskConfig, TaskEntry
from finetune.config.predict import PredictConfig
from finetune.config.run import FinetuneConfig
from finetune.inference.prediction import choose_task
from finetune.model_folder import load_finetuned_model
from finetune.tasks.base import Task
from finetune.tasks.multitask import Multitask
from finetune.training.finetuning import initial_model, make_source, resolve
from finetune.training.labelled import read_labelled_files
from finetune.training.multitask_source import TaskOrder, steps_of_round
from tests import commands
from tests.finetune import tiny

INHERITED = {  # of Task, right for several tasks as it is
    "settings_for": "the settings of an entry are read before",
    "has_answers": "a file is read by its own task",
    "groups": "files are divided by their own tasks",
    "weigh_classes": "each task weighs its own, before they are joined",
    "exported_heads": "no class of transformers has several heads",
    "config_keys": "as for exported_heads",
    "tokenizer_template": "the encoder decides",
    "finish_folder": "what other libraries read has one task",
}


def test_every_hook_of_a_task_is_forwarded():
    hooks = {name for name, item in vars(Task).items() if callable(getattr(Task, name)) and not name.startswith("_")}
    assert len(hooks) > 20 and hooks - set(vars(Multitask)) == set(INHERITED)


def test_lines_and_classes_of_an_entry(tmp_path):
    rows = [("no", "apple"), ("no", "bread"), ("no", "cloud"), ("yes", "dance"), ("no",)]
    file = str(tiny.write_table(tmp_path / "a.tsv", ["label", "text_a"], rows))
    entry = TaskEntry(name="a", train_file=file, dev_file=file, bad_lines="skip", class_weights="balanced")
    config = FinetuneConfig(ds_config="", model="", task="multitask", multitask=MultitaskConfig(tasks=[entry]))
    problems: list[str] = []
    task, files = read_labelled_files(config, problems)
    assert not problems and len(files["train"].records) == 4
    assert task.tasks["a"]._weights.tolist() == pytest.approx([4 / 6, 2])  # type: ignore[union-attr]
    wrong = TaskEntry(name="a", train_file=file, bad_lines="drop", class_weights="even").problems()
    assert [text.split(" is ")[0] for text in wrong] == ["bad_lines", "class_weights"]
    assert replace(config, class_weights="balanced", bad_lines="skip").problems() == [
        f"{name} is given with --task multitask; give it for each of multitask.tasks"
        for name in ("bad_lines", "class_weights")
    ]


def test_a_round_has_the_steps_of_an_epoch_and_each_counts_those_before():
    steps = steps_of_round([100, 9, 33], 8, power=1)
    assert steps == [13, 2, 5]
    order = TaskOrder(steps, seed=3)
    tasks = [order.at(step)[0] for step in range(60)]
    for first in (0, 20, 40):
        assert Counter(tasks[first : first + 20]) == {0: 13, 1: 2, 2: 5}
    assert tasks[:20] != tasks[20:40] != sorted(tasks[20:40])
    for step in range(60):
        assert order.at(step)[1] == tasks[:step].count(tasks[step])
    again = TaskOrder(steps, seed=3)
    assert [again.at(step) for step in reversed(range(60))] == [order.at(step) for step in reversed(range(60))]
    assert [TaskOrder(steps, seed=4).at(step)[0] for step in range(60)] != tasks


def test_the_power_of_the_sizes_makes_small_tasks_more_frequent():
    assert steps_of_round([900, 100], 10, power=0) == [50, 50]
    assert steps_of_round([900, 100], 10, power=0.5) == [75, 25]
    assert steps_of_round([100_000, 1], 100, power=1) == [1000, 1]


@pytest.fixture
def entries(tmp_path) -> list[dict[str, Any]]:
    """Words of single texts, classes of pairs without a dev file, cosines of pairs."""
    words = tiny.write_table(tmp_path / "words.tsv", ["label", "text_a"], tiny.single_rows(40))
    tested = tiny.write_table(tmp_path / "untold.tsv", ["text_a"], [(row[1],) for row in tiny.single_rows(5, start=90)])
    pairs = tiny.write_table(tmp_path / "pairs.tsv", ["label", "text_a", "text_b"], tiny.pair_rows(30))
    scores = tiny.write_table(tmp_path / "scores.tsv", ["label", "text_a", "text_b"], tiny.pair_rows(12))
    return [
        {"name": "words", "task": "classification", "train_file": str(words), "dev_file": str(words),
         "test_file": str(tested)},
        {"name": "pairs", "task": "classification", "train_file": str(pairs), "test_file": str(pairs)},
        {"name": "scores", "task": "similarity", "train_file": str(scores), "dev_file": str(scores)},
    ]  # fmt: skip


def config_file(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text(yaml.safe_dump({"task": "multitask", "multitask": {"tasks": entries}}))
    return path


def options(model: Path, file: Path, output: Path, *more: str | Path) -> list[str | Path]:
    given = tiny.options(model, Path("-"), output, *more)
    kept = [pair for pair in zip(given[::2], given[1::2], strict=True) if pair[0] not in ("--train_file", "--dev_file")]
    return ["--config", file, *(argument for pair in kept for argument in pair)]


def resolved(model: Path, entries: list[dict[str, Any]], tmp_path: Path, *more: str):
    given = options(model, config_file(tmp_path / "tasks.yaml", entries), tmp_path / "run", *more)
    return resolve(parse_config(FinetuneConfig, list(map(str, given)), "run.py"))


def test_the_files_of_all_tasks_are_read_as_those_of_each(bert, entries, tmp_path):
    found = resolved(bert, entries, tmp_path)
    counts = {name: Counter(record.task for record in file.records) for name, file in found.files.items()}
    assert counts == {
        "train": {"words": 40, "pairs": 27, "scores": 12},
        "dev": {"words": 40, "pairs": 3, "scores": 12},
        "test": {"pairs": 30},
        "untold": {"words": 5},
    }
    assert [example.record for example in found.examples["train"]] == list(range(79))
    assert found.config.train.steps == 3 * 10 and found.task.main_figure == "mean_score"
    assert any(note.startswith("pairs: 3 records of its training file are split off") for note in found.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "words"}, "the name words is there twice"),
        ({"name": "a.b"}, "its name must be a letter and then"),
        ({"task": "classificatoin"}, "unknown task 'classificatoin'.*did you mean classification"),
        ({"task": "multitask"}, "unknown task 'multitask'"),
        ({"train_file": "absent.tsv"}, "multitask.tasks: pairs: absent.tsv: no such file"),
        ({"trian_file": "x"}, r"unknown key multitask\.tasks\.1\.trian_file; did you mean train_file"),
    ],
)
def test_mistakes_name_the_task(bert, entries, tmp_path, change, message):
    entries[1] |= change
    with pytest.raises(UsageError, match=message):
        resolved(bert, entries, tmp_path)


def test_files_of_the_whole_run_are_refused(bert, entries, tmp_path):
    with pytest.raises(UsageError, match="columns is given with --task multitask; give it for each"):
        resolved(bert, entries, tmp_path, "--columns", "label,text_a")
    with pytest.raises(UsageError, match="folds is given with --task multitask"):
        resolved(bert, entries, tmp_path, "--folds", "3")
    with pytest.raises(UsageError, match=r"multitask.tasks is empty"):
        resolved(bert, [], tmp_path)
    with pytest.raises(UsageError, match="train_file is missing"):
        resolve(FinetuneConfig(ds_config=str(tiny.FP32), model=str(bert)))


def figures(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def test_learns_all_and_ranks_and_stages_change_nothing(bert, entries, tmp_path, capsys):
    """One rank at stage 0, and two at stage 2; then predictions of one of the tasks."""
    file, one, two = config_file(tmp_path / "tasks.yaml", entries), tmp_path / "one", tmp_path / "two"
    zero2 = commands.write_ds_config(tmp_path / "zero2.json", zero_optimization={"stage": 2})
    tiny.finetune(options(bert, file, one, "--epochs", "12"))
    tiny.finetune(options(bert, file, two, "--epochs", "12", "--ds_config", zero2), ranks=2)
    first, second = figures(one), figures(two)
    keys = [key for key, value in first.items() if key.startswith(("dev_", "test_")) and isinstance(value, float)]
    assert {"dev_loss", "dev_mean_score", "dev_words_accuracy", "dev_pairs_loss", "test_pairs_accuracy"} <= set(keys)
    for key in keys:
        assert first[key] == pytest.approx(second[key], abs=2e-4), key
    assert first["dev_words_accuracy"] > 0.75
    expected = np.mean([first["dev_words_accuracy"], first["dev_pairs_accuracy"], first["dev_scores_spearman"]])
    assert first["dev_mean_score"] == pytest.approx(expected)
    untold = (one / "untold_predictions.tsv").read_text().splitlines()
    assert untold[0].split("\t")[:2] == ["task", "label"] and len(untold) == 6

    model = load_finetuned_model(str(one))
    with pytest.raises(ValueError, match="it has learned several tasks; give --task_name pairs or scores or words"):
        choose_task(model, None)
    with pytest.raises(ValueError, match=r"--task_name wrods is none of its tasks; .*did you mean words"):
        choose_task(model, "wrods")
    with pytest.raises(ValueError, match="the model has learned one task, classification; leave it out"):
        choose_task(choose_task(model, "words"), "words")
    out = tmp_path / "out.tsv"
    given = ["--model", one, "--input", tmp_path / "untold.tsv", "--output", out, "--task_name", "words"]
    assert predict.main(list(map(str, given))) == 0
    assert out.read_text().splitlines()[1:] == [line.split("\t")[1] for line in untold[1:]]
    assert PredictConfig(model="", input="", output="").task_name is None


def test_a_step_touches_every_head_and_one_task(bert, entries, tmp_path):
    """All micro-batches of a step are of its task, filled up too, and idle heads get gradients of zero."""
    found = resolved(bert, entries, tmp_path)
    task, source = found.task, make_source(found, found.examples["train"])
    model = initial_model(found, fresh=True)
    timeline = Timeline([found.config.train.stage(seq_length=0, length_ramp={})])
    seen = set()
    for number in range(6):
        step = timeline.at(number)
        batches = [source.batch(positions_of(step, place), step) for place in range(2)]
        names = {name for batch in batches for name in batch.counts}
        assert len(names) == 1
        name = names.pop()
        seen.add(name)
        model.zero_grad()
        plain = task.losses(model, batches[0])[name].loss_sum
        plain.backward()
        for head, module in model.heads.items():
            for parameter in module.parameters():
                assert parameter.grad is not None
                assert bool(parameter.grad.any()) <= (head == name)
        again = task.losses(model.eval(), batches[0])[name].loss_sum
        fuller = task.losses(model, filled(batches[0]))[name].loss_sum
        assert float(fuller.detach()) == pytest.approx(float(again.detach()), rel=1e-4)
        model.train()
    assert len(seen) > 1
    assert source.describe(positions_of(timeline.at(0), 0), timeline.at(0)).split(":")[0] in seen
