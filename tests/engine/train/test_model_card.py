"""Model cards: what they say, that huggingface_hub reads them, and that a run that goes on writes the same again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from engine.checkpoint.files import CheckpointManifest
from engine.train.model_card import DataPart, figures_until, model_card
from tests import commands
from tests.finetune import tiny

FP32 = commands.DS_CONFIGS / "fp32.json"
SMALL = (
    "--model", "bert-tiny", "--arch.num_layers", "1", "--data.seq_length", "64", "--train.batch_size", "8",
    "--train.micro_batch_size", "4", "--train.log_every", "2", "--train.eval_rows", "16", "--train.steps", "4",
    "--train.save_every", "2", "--train.eval_every", "3", "--objective", "mlm,nsp",
)  # fmt: skip


def pretrain(shards: Path, run: Path, *more: str | Path) -> None:
    options = ["--ds_config", FP32, "--data.shards", shards, *SMALL, "--train.output", run, *more]
    done = commands.run(commands.PRETRAIN, options)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "run"
    pretrain(shards, folder)
    return folder


def rows(text: str) -> dict[str, str]:
    """The first two columns of the card's tables."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in cells if len(row) > 1}


def test_a_pretrained_model(run, shards):
    text = (run / "model" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["pretraining-engine", "bert", "mlm", "nsp"],
    }
    last = next(line for line in reversed(commands.metrics(run)) if "loss" in line)
    assert f"4 of 4 steps, {last['tokens']:,} real tokens seen." in body
    found = rows(body)
    assert float(found["loss_nsp"]) == pytest.approx(last["loss_nsp"], rel=1e-5)
    assert {"heldout_loss", "heldout_accuracy_mlm", "heldout_perplexity", "accuracy_nsp"} <= found.keys()
    assert not {"tokens_per_second", "memory_bytes", "data_wait", "eta"} & found.keys()
    manifest = json.loads((shards / "manifest.json").read_text())
    assert found["`shards`"] == f"{manifest['counts']['documents']:,}" and manifest["digest"] in body
    assert manifest["tokenizer"]["digest"] in body
    assert found["class"] == "BertForPreTraining" and found["num layers"] == "1" and found["ranks"] == "1"
    assert found["optimizer"].startswith("adamw, ") and "lr 0.0001" in found["optimizer"]
    assert "from transformers import AutoModelForPreTraining, AutoTokenizer" in body
    for secret in (str(run.parent), str(shards.parent), commands.REPOSITORY.name + "/"):
        assert secret not in text


def test_numbers_of_parameters_and_the_hub_library(run):
    transformers = pytest.importorskip("transformers")
    import huggingface_hub

    card = huggingface_hub.ModelCard.load(run / "model" / "README.md")
    assert card.data.pipeline_tag == "fill-mask" and card.data.license is None
    model = transformers.AutoModelForPreTraining.from_pretrained(run / "model")
    assert rows(card.text)["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert transformers.AutoTokenizer.from_pretrained(run / "model").mask_token == "[MASK]"


def test_earlier_cards_know_no_later_figures(run, shards, tmp_path):
    cards = {step: (run / f"checkpoints/step-{step}/model/README.md").read_text() for step in (0, 2, 4)}
    assert "0 of 4 steps, 0 real tokens seen" in cards[0] and "Figures" not in cards[0]
    assert "loss" in rows(cards[2]) and "heldout_loss" not in rows(cards[2])
    assert "heldout_loss" in rows(cards[4])
    again = tmp_path / "again"
    shutil.copytree(run, again, symlinks=True)
    (again / "FINISHED").unlink()
    shutil.rmtree(again / "checkpoints" / "step-4")
    pretrain(shards, again)
    assert (again / "model" / "README.md").read_text() == cards[4]
    pretrain(shards, again, "--train.steps", "6")
    assert "6 of 6 steps" in (again / "model" / "README.md").read_text()


def test_a_fine_tuned_model(run, tmp_path):
    file = tiny.write_table(tmp_path / "train.tsv", ["label", "text_a"], tiny.single_rows(8))
    done = tiny.finetune(tiny.options(run / "model", file, tmp_path / "tuned", "--epochs", "1"))
    assert done.returncode == 0, done.stdout
    text = (tmp_path / "tuned" / "model" / "README.md").read_text()
    about = yaml.safe_load(text.split("---\n")[1])
    assert about["pipeline_tag"] == "text-classification" and about["tags"][-1] == "classification"
    assert "beginning with the weights of `model`" in text
    assert rows(text)["`train: train.tsv`"] == "8" and "heldout_accuracy" in rows(text)
    assert "python -m finetune.predict --model FOLDER" in text
    assert str(tmp_path) not in text


def folder_of(path: Path, architecture: str | None) -> Path:
    path.mkdir()
    config = {"model_type": "bert", **({"architectures": [architecture]} if architecture else {})}
    (path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(2)}, path / "model.safetensors")
    return path


SETTINGS = {
    "objective": "mlm", "seed": 1,
    "train": {
        "steps": 9, "batch_size": 4, "optimizer": {"name": "lamb", "betas": (0.9, 0.999), "momentum": 0.5},
        "schedule": {"name": "wsd", "power": None, "decay_ratio": 0.2, "decay_shape": "linear"},
    },
    "masking": {}, "data": {"tokenizer_digest": "ff"}, "arch": {"num_layers": 1}, "precision": "fp32", "world_size": 2,
    "deepspeed": {"zero_optimization": {"stage": 3}}, "versions": {"device": "GPU|<b>*", "torch": "2"},
    "stages": [{"steps": 4, "optimizer": None}, {"steps": 5, "schedule": {"name": "y", "warmup": 1}}],
}  # fmt: skip
MANIFEST = CheckpointManifest(3, {}, {}, {"tokens": 1234}, {})


@pytest.mark.parametrize(
    ("architecture", "auto", "pipeline"),
    [
        ("RobertaPreLayerNormForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
        ("GPT2LMHeadModel", "AutoModelForCausalLM", "text-generation"),
        ("GPT2ForSequenceClassification", "AutoModelForSequenceClassification", "text-classification"),
        ("BertModel", "AutoModel", None),
        (None, "AutoModel", None),
    ],
)
def test_what_loads_it(architecture, auto, pipeline, tmp_path):
    text = model_card(SETTINGS, folder_of(tmp_path / "m", architecture), MANIFEST, {}, [])
    assert f"from transformers import {auto}, AutoTokenizer" in text
    assert yaml.safe_load(text.split("---\n")[1]).get("pipeline_tag") == pipeline


def test_names_from_elsewhere_are_no_markup(tmp_path):
    data = [DataPart("a|`b`\n<i>", "00", {"tokens": 5}, 0.25), DataPart("c", share=0.75)]
    text = model_card(SETTINGS, folder_of(tmp_path / "m", "BertForMaskedLM"), MANIFEST, {"loss": 2.0}, data)
    assert "| `a\\|'b'?<i>` | 25.00% | 5 | 00 |" in text and "| `c` | 75.00% |  |  |" in text
    assert "| device | GPU\\|&lt;b&gt;\\* |" in text
    found = rows(text)
    assert found["optimizer"] == "lamb, betas \\[0.9, 0.999\\], momentum 0.5"
    assert found["schedule"] == "wsd, decay\\_ratio 0.2"
    assert found["parameters"] == "17" and found["ZeRO stage"] == "3"
    assert found["stage 2"] == "steps 5, schedule (y, warmup 1)" and found["stage 1"] == "steps 4"
    headers = [line.count(" | ") for line in text.splitlines() if line.startswith("| data")]
    assert headers == [3]


def test_figures_until_a_step(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert figures_until(file, 5) == {}
    lines = [
        {"step": 1, "loss": 3.0, "mfu": 0.5}, {"step": 2, "loss": 2.0, "heldout_loss/wiki": None},
        {"step": 2, "downstream_x_f1": 1.0, "heldout_loss": 2.5}, {"step": 3, "loss": 1.0},
    ]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert figures_until(file, 2) == {"loss": 2.0, "heldout_loss": 2.5}
    with file.open("a") as opened:
        opened.write('{"step": 3, "lo')  # the loop writes while a checkpoint's thread makes the card
    assert figures_until(file, 9) == {"loss": 1.0, "heldout_loss": 2.5}
