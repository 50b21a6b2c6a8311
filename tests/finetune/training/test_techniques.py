"""Whole runs with adapters, attacks, frozen and slowed layers, seeds, folds and the best checkpoint.

All runs of a number of ranks happen in one start: plainly on one rank, with weights divided at ZeRO stage 3 on two.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.train.selection import Selection
from finetune.model_folder import load_finetuned_model
from finetune.run import main
from finetune.training.repeated import join_folds, summary
from preprocess.files import sync_to_disk
from tests import commands
from tests.engine.ranks import run_ranks
from tests.finetune import tiny

MODULE = "tests.finetune.training.test_techniques"
RATE = 3e-3
NO_DECAY = ["--train.optimizer.weight_decay", "0"]
ADAPTED = ["--lora.rank", "2", "--lora.targets", "*.qkv", "*.mlp.up", "--adversarial.method", "pgd"]
ADAPTED += ["--adversarial.steps", "2", "--epochs", "2", "--train.keep_checkpoints", "0"]
SLOWED = ["--train.optimizer.layer_decay", "0.5", "--train.optimizer.freeze", "encoder.embeddings.*", "*.0.mlp.*"]
SLOWED += ["--train.steps", "1", "--train.schedule.name", "constant", *NO_DECAY]
SLOWED += ["--train.schedule.warmup_ratio", "0"]
CHOSEN = ["--seeds", "1", "2", "--train.early_stopping", "2", "--train.keep_best", "true"]
CHOSEN += ["--train.keep_checkpoints", "1", "--epochs", "9"]


def arguments(folder: Path, name: str, *more: str) -> list[str]:
    """The command of a run; its DeepSpeed file and data lie in the folder."""
    dev = [] if "--folds" in more else ["--dev_file", folder / "dev.tsv"]
    found = [
        "--ds_config", folder / "ds.json", "--model", folder.parent / "bert", "--train_file", folder / "train.tsv",
        *dev, "--output", folder / name, "--max_length", "40", "--train.batch_size", "8", "--train.micro_batch_size",
        "4", "--train.tensorboard", "false", "--train.optimizer.lr", str(RATE), *more,
    ]  # fmt: skip
    return [str(word) for word in found]


def runs(folder: Path) -> list[int]:
    """All runs; the adapted one goes on from its first checkpoint, as after a kill, in a copy."""
    ranks = torch.distributed.get_world_size()
    here = folder / f"ranks-{ranks}"
    codes = [main(arguments(here, "lora", *ADAPTED))]
    if torch.distributed.get_rank() == 0:
        shutil.copytree(here / "lora", here / "resumed", symlinks=True)
        (here / "resumed" / "FINISHED").unlink()
        for newer in (here / "resumed" / "checkpoints").iterdir():
            if newer.name != "step-3":
                shutil.rmtree(newer)
        sync_to_disk(here)
    torch.distributed.barrier()
    for name, more in (("resumed", ADAPTED), ("slowed", SLOWED), ("seeds", CHOSEN), ("seeds", CHOSEN)):
        codes.append(main(arguments(here, name, *more)))
    return [*codes, main(arguments(here, "folds", "--folds", "3", "--epochs", "1"))]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders of the runs on one rank and on two."""
    folder = tmp_path_factory.mktemp("techniques")
    tiny.write_pretrained(folder / "bert", tiny.BERT)
    found = {}
    for ranks, stage in ((1, 0), (2, 3)):
        found[ranks] = folder / f"ranks-{ranks}"
        found[ranks].mkdir()
        zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
        (found[ranks] / "ds.json").write_text(json.dumps({"zero_optimization": zero, "gradient_clipping": 1.0}))
        rows = tiny.single_rows(40)
        tiny.write_table(found[ranks] / "train.tsv", ["label", "text_a"], rows[:22])
        doubtful = [(label if number % 3 else "no", text) for number, (label, text) in enumerate(rows[20:])]
        tiny.write_table(found[ranks] / "dev.tsv", ["label", "text_a"], doubtful)
        assert run_ranks(MODULE, "runs", folder, ranks, timeout=400) == [[0] * 6] * ranks
    return found


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def close(one: dict[str, Any], other: dict[str, Any]) -> None:
    names = [name for name in one if name.startswith("dev_")]
    assert len(names) >= 3
    np.testing.assert_allclose([one[name] for name in names], [other[name] for name in names], rtol=2e-4)


def dev_loss(run: Path, rows: list[tuple[str, str]]) -> float:
    """Of the folder that a run wrote, by a plain forward pass."""
    model = load_finetuned_model(str(run))
    sequences, _ = model.builder.build([text for _, text in rows])
    with torch.no_grad():
        logits = model.task.logits(model.model, model.builder.pack(sequences))  # type: ignore[attr-defined]
    labels = torch.tensor([model.task.labels.index(label) for label, _ in rows])
    return float(torch.nn.functional.cross_entropy(logits, labels))


def read_rows(file: Path) -> list[tuple[str, str]]:
    return [tuple(line.split("\t")) for line in file.read_text().splitlines()[1:]]  # type: ignore[misc]


def test_adapters_are_merged_into_an_ordinary_folder(done):
    close(results(done[1] / "lora"), results(done[2] / "lora"))
    for folder in done.values():
        before, after = weights(folder.parent / "bert"), weights(folder / "lora" / "model")
        moved = {name for name in after if name in before and not torch.equal(after[name], before[name])}
        attention = [
            f"bert.encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "key", "value")
        ]
        expected = [*attention, *(f"bert.encoder.layer.{i}.intermediate.dense" for i in (0, 1))]
        assert moved == {f"{name}.weight" for name in expected}
        assert not [name for name in after if "adapter" in name]
        for name in moved:
            sizes = torch.linalg.svdvals((after[name] - before[name]).double())
            assert sizes[0] > 1e-4 and sizes[2] < 1e-6 * sizes[0] + 1e-7  # a product of rank 2
        rows = read_rows(folder / "dev.tsv")
        assert dev_loss(folder / "lora", rows) == pytest.approx(results(folder / "lora")["dev_loss"], rel=1e-5)


def test_adapted_runs_go_on_as_if_nothing_had_been(done):
    for folder in done.values():
        assert results(folder / "resumed")["dev_loss"] == results(folder / "lora")["dev_loss"]
        one, other = (weights(folder / name / "model") for name in ("lora", "resumed"))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_lower_layers_take_smaller_steps_and_frozen_ones_none(done):
    """The first step of Adam moves each weight by its rate, whatever the gradient."""
    for folder in done.values():
        before, after = weights(folder.parent / "bert"), weights(folder / "slowed" / "model")
        assert results(folder / "slowed")["steps"] == 1
        shift = {name: float((after[name] - before[name]).abs().max()) for name in after if name in before}
        frozen = {name for name in shift if ".embeddings." in name or "layer.0.intermediate" in name}
        frozen |= {"bert.encoder.layer.0.output.dense.weight", "bert.encoder.layer.0.output.dense.bias"}
        assert len(frozen) == 9 and all(shift.pop(name) == 0.0 for name in frozen)
        scales = {"layer.0.": 0.25, "layer.1.": 0.5}
        checked = 0
        for name, moved in shift.items():
            expected = next((RATE * scale for part, scale in scales.items() if part in name), RATE)
            if not name.endswith("key.bias"):  # whose gradient is zero in exact arithmetic
                assert moved == pytest.approx(expected, rel=2e-2), name
                checked += 1
        assert checked > 20


def test_runs_stop_early_and_give_their_best(done):
    for folder in done.values():
        for seed in (1, 2):
            run = folder / "seeds" / f"seed-{seed}"
            lines = [line for line in commands.metrics(run) if "heldout_accuracy" in line]
            figures = [line["heldout_accuracy"] for line in lines]
            best = figures.index(max(figures))
            assert len(figures) == min(best + 3, 9)  # two more than the best, of at most 9 epochs
            step = lines[best]["step"]
            assert results(run)["step"] == step and results(run)["dev_accuracy"] == figures[best]
            assert results(run)["dev_loss"] == pytest.approx(lines[best]["heldout_loss"], rel=1e-6)
            assert (run / "model").resolve().parent.name == f"step-{step}"
            kept = {path.name for path in (run / "checkpoints").iterdir()}
            assert kept == {f"step-{step}", f"step-{lines[-1]['step']}"} and (run / "FINISHED").is_file()
            rows = read_rows(folder / "dev.tsv")
            assert dev_loss(run, rows) == pytest.approx(results(run)["dev_loss"], rel=1e-5)
    assert any(
        len([line for line in commands.metrics(done[1] / "seeds" / f"seed-{seed}") if "heldout_loss" in line]) < 9
        for seed in (1, 2)
    )


def test_seeds_are_summed_up(done):
    for folder in done.values():
        found = json.loads((folder / "seeds" / "summary.json").read_text())
        each = [results(folder / "seeds" / f"seed-{seed}") for seed in (1, 2)]
        assert found["runs"] == ["seed-1", "seed-2"] and found["main_figure"] == "accuracy"
        assert each[0]["dev_loss"] != each[1]["dev_loss"]
        for name in ("dev_loss", "dev_accuracy", "dev_macro_f1"):
            values = [one[name] for one in each]
            of = found["figures"][name]
            assert of["values"] == values and of["max"] == max(values)
            assert of["mean"] == pytest.approx(sum(values) / 2) and of["sd"] == pytest.approx(statistics.stdev(values))
    for seed in (1, 2):
        close(*(results(done[ranks] / "seeds" / f"seed-{seed}") for ranks in (1, 2)))


def test_every_record_is_predicted_by_a_model_that_did_not_learn_it(done):
    tables = []
    for folder in done.values():
        texts = [text for _, text in read_rows(folder / "train.tsv")]
        header, *lines = (folder / "folds" / "out_of_fold.tsv").read_text().splitlines()
        assert header.split("\t") == ["label", "probability_no", "probability_yes"] and len(lines) == 22
        table = np.array([[float(cell) for cell in line.split("\t")[1:]] for line in lines])
        seen: list[int] = []
        for fold in range(3):
            run = folder / "folds" / f"fold-{fold}"
            parts = [json.loads(line) for line in (run / "fold_predictions.jsonl").read_text().splitlines()]
            numbers = [part["record"] for part in parts]
            assert results(run)["num_examples"] == {"train": 22 - len(numbers), "dev": len(numbers)}
            seen += numbers
            model = load_finetuned_model(str(run))
            sequences, _ = model.builder.build([texts[number] for number in numbers])
            with torch.no_grad():
                logits = model.task.logits(model.model, model.builder.pack(sequences))  # type: ignore[attr-defined]
            np.testing.assert_allclose(table[numbers], logits.softmax(-1).numpy(), atol=2e-6)
        assert sorted(seen) == list(range(22))
        tables.append(table)
    np.testing.assert_allclose(*tables, atol=1e-4)


def test_predictions_may_hold_any_line_separator(tmp_path):
    folders = []
    for fold in (0, 1):
        folders.append(tmp_path / f"fold-{fold}")
        folders[-1].mkdir()
        line = json.dumps({"record": fold, "prediction": f"a\u2028b\u2029c\x85{fold}"}, ensure_ascii=False)
        (folders[-1] / "fold_predictions.jsonl").write_text(line + "\n", encoding="utf-8")
    assert join_folds(folders, tmp_path / "out_of_fold.jsonl") == 2
    lines = (tmp_path / "out_of_fold.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["prediction"] for line in lines] == [f"a\u2028b\u2029c\x85{n}" for n in (0, 1)]


def test_figures_that_are_not_finite_are_left_out_of_the_summary():
    runs = {"seed-1": {"dev_f1": 0.5, "dev_threshold": math.inf}, "seed-2": {"dev_f1": 0.7, "dev_threshold": 1.0}}
    assert list(summary(runs)["figures"]) == ["dev_f1"]


def write_lines(path: Path, values: dict[int, float | None]) -> Path:
    lines = [{"step": step, "heldout_f1": value} for step, value in values.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"step": 1, "loss": 3.0}, *lines]))
    return path


def test_selection_reads_the_evaluations(tmp_path):
    selection = Selection("heldout_f1", patience=2)
    file = tmp_path / "metrics.jsonl"
    assert selection.best(file) is None and not selection.is_over(file)
    cases = [
        ({2: 0.5, 4: 0.7, 6: 0.7}, 4, False),  # equal is not better
        ({2: 0.5, 4: 0.7, 6: 0.7, 8: 0.6}, 4, True),
        ({2: 0.5, 4: None, 6: 0.6, 8: 0.55}, 6, False),
        ({2: None, 4: None, 6: None}, 2, True),
    ]
    for values, best, over in cases:
        write_lines(file, values)
        assert (selection.best(file), selection.is_over(file)) == (best, over)
    assert selection.best(write_lines(file, {2: 0.5, 4: 0.7, 6: 0.6}), among=[2, 6]) == 6
    assert not Selection("heldout_f1").is_over(file)
