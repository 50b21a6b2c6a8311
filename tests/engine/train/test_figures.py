"""The figures that docs/looking.md names are there, for every objective and stage, and no others."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands
from tests.engine.train import wandb_files
from tests.finetune import tiny

STEPS = {
    "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "memory_bytes", "data_wait", "eta", "perplexity",
}  # fmt: skip
SMALL = (
    "--arch.num_layers", "1", "--arch.hidden_size", "32", "--arch.num_heads", "2", "--arch.intermediate_size", "64",
    "--data.seq_length", "64", "--train.batch_size", "8", "--train.micro_batch_size", "4", "--train.eval_rows", "16",
    "--train.log_every", "1", "--train.peak_tflops", "0.01",
)  # fmt: skip


def options(shards: Path, run: Path, objective: str, stage: int, *more: str) -> list[str | Path]:
    model = "gpt2-tiny" if objective == "lm" else "bert-tiny"
    config = commands.write_ds_config(run.parent / f"ds-{stage}.json", zero_optimization={"stage": stage})
    chosen = ["--ds_config", config, "--model", model, "--objective", objective, "--data.shards", shards]
    return [*chosen, "--train.output", run, *SMALL, *more]


def documented() -> list[re.Pattern[str]]:
    """A pattern for each figure of the table, which stand in its first column."""
    text = (commands.REPOSITORY / "docs" / "looking.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| `([^`]+)` \|", text.partition("| figure |")[2].partition("\n\n")[0], re.MULTILINE)
    assert len(names) > 20
    return [re.compile(name.replace("TERM", "(mlm|nsp|sop|lm)").replace("SOURCE", ".+")) for name in names]


def undocumented(run: Path) -> set[str]:
    keys = {key for line in commands.metrics(run) for key in line if key != "step"}
    return {key for key in keys if not any(name.fullmatch(key) for name in documented())}


LAYOUTS = [("mlm", None, 0), ("mlm,nsp", 2, 1), ("mlm,sop", None, 2), ("lm", 2, 3)]
OTHERS = [
    (objective, ranks, stage)
    for objective in ("mlm", "mlm,nsp", "mlm,sop", "lm")
    for ranks in (None, 2)
    for stage in range(4)
    if (objective, ranks, stage) not in LAYOUTS
]


@pytest.mark.parametrize(
    ("objective", "ranks", "stage"), [*LAYOUTS, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)]
)
def test_figures_of_a_pretraining(objective, ranks, stage, shards, tmp_path):
    run = tmp_path / "run"
    done = commands.run(commands.PRETRAIN, options(shards, run, objective, stage, "--train.steps", "2"), ranks)
    assert done.returncode == 0, done.stdout
    first, second, held_out = commands.metrics(run)
    terms = objective.split(",")
    several = {f"loss_{term}" for term in terms} | {f"accuracy_{term}" for term in terms[1:]} if terms[1:] else set()
    for line in (first, second):
        assert set(line) == {"step"} | STEPS | several
        assert all(isinstance(value, int | float) and value >= 0 for value in line.values())
        main = line.get(f"loss_{terms[0]}", line["loss"])
        assert line["perplexity"] == pytest.approx(math.exp(main))
    assert first["grad_norm"] > 0 and second["tokens"] > first["tokens"] > 0 and first["eta"] > second["eta"] == 0
    names = {f"{figure}_{term}" for figure in ("loss", "accuracy") for term in terms} if terms[1:] else {"accuracy"}
    assert set(held_out) == {"step"} | {f"heldout_{name}" for name in {"loss", "perplexity"} | names}
    main = held_out.get(f"heldout_loss_{terms[0]}", held_out["heldout_loss"])
    assert held_out["heldout_perplexity"] == pytest.approx(math.exp(main))
    assert undocumented(run) == set()


def test_figures_that_change_on_the_way(shards, tmp_path):
    run = tmp_path / "run"
    stages = "[{steps: 1, seq_length: 32}, {steps: 1, seq_length: 64, batch_size: 16}]"
    more = ("--stages", stages, "--masking.final_rate", "0.3")
    done = commands.run(commands.PRETRAIN, options(shards, run, "mlm", 0, *more))
    assert done.returncode == 0, done.stdout
    first, second, _ = commands.metrics(run)
    changing = ("stage", "seq_length", "batch_size")
    assert [first[name] for name in changing] == [0, 32, 8] and [second[name] for name in changing] == [1, 64, 16]
    assert first["masking_rate"] < second["masking_rate"] and undocumented(run) == set()


def test_figures_of_a_fine_tuning(tmp_path):
    model = tiny.write_pretrained(tmp_path / "model", tiny.BERT)
    file = tiny.write_table(tmp_path / "train.tsv", ["label", "text_a"], tiny.single_rows(8))
    done = tiny.finetune(tiny.options(model, file, tmp_path / "run", "--epochs", "1"))
    assert done.returncode == 0, done.stdout
    lines = commands.metrics(tmp_path / "run")
    assert not any("perplexity" in key for line in lines for key in line)
    found = {key for line in lines for key in line if key.startswith("heldout_")}
    assert {"heldout_loss", "heldout_accuracy"} <= found
    assert {key for key in undocumented(tmp_path / "run") if not key.startswith("heldout_")} == set()


def test_an_extended_run_is_one_run_everywhere(shards, tmp_path):
    """A finished run, extended by the command line: metrics, TensorBoard, W&B and the report show one run."""
    pytest.importorskip("wandb")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, env = tmp_path / "run", {"WANDB_MODE": "offline", "HOME": str(tmp_path)}
    for steps in ("3", "5"):
        more = ("--train.steps", steps, "--train.wandb", "project", "--train.save_every", "2")
        done = commands.run(commands.PRETRAIN, options(shards, run, "mlm", 0, *more), env=env)
        assert done.returncode == 0 and "W&B: offline; to send it: wandb sync " in done.stdout, done.stdout
    lines = commands.metrics(run)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "heldout_loss" in line] == [3, 5]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name, steps in (("loss", [1, 2, 3, 4, 5]), ("heldout_perplexity", [3, 5])):
        assert [event.step for event in events.Scalars(name)] == steps
    files = wandb_files.offline_files(run)
    assert len(files) == 2 and files[0].name == files[1].name
    rows = [row for file in files for row in wandb_files.history(file)]
    assert rows == [{key: value for key, value in line.items() if value is not None} for line in lines]
    assert [wandb_files.config(file)["train"]["steps"] for file in files] == [3, 5]
    report = [sys.executable, "-m", "engine.report", str(run), "--output", str(tmp_path / "x.html")]
    environment = commands.environment({"PYTHONPATH": str(commands.REPOSITORY)})
    shown = subprocess.run(report, env=environment, capture_output=True, text=True, check=False)
    assert shown.stdout.startswith("run: finished at step 5\n"), shown.stderr
    assert json.loads((run / "config.json").read_text())["train"]["steps"] == 5


def test_wandb_changes_nothing(shards, tmp_path):
    weights = []
    for name, more in (("with", ("--train.wandb", "project")), ("without", ())):
        run = tmp_path / name
        settings = options(shards, run, "mlm", 0, "--train.steps", "3", *more)
        done = commands.run(commands.PRETRAIN, settings, env={"WANDB_MODE": "offline", "HOME": str(tmp_path)})
        assert done.returncode == 0, done.stdout
        weights.append((run / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_no_key_is_told_before_any_work(shards, tmp_path):
    env = {"WANDB_MODE": "online", "HOME": str(tmp_path), "WANDB_API_KEY": ""}
    settings = options(shards, tmp_path / "run", "mlm", 0, "--train.wandb", "project")
    done = commands.run(commands.PRETRAIN, settings, env=env)
    assert done.returncode == 2, done.stdout
    assert "error: train.wandb: no W&B key that it takes: set WANDB_API_KEY" in done.stdout
    assert not (tmp_path / "run").exists()
