"""The model card of an exported folder: what the model is, what it saw, how it was computed, how to load it.

A pure function of the settings and of the figures until the checkpoint's step: no time, host or path, so that a run
that was killed and goes on writes the same card again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from engine.checkpoint.files import CheckpointManifest
from engine.checkpoint.metric_lines import read_metric_lines
from engine.config.masking import MaskingConfig
from engine.config.optimizer import OptimizerConfig
from engine.config.schedule import ScheduleConfig
from engine.convert.configs import read_json
from engine.convert.model_folder import WEIGHTS

CARD = "README.md"
MADE_BY = "pretraining-engine"
# the end of a class's name -> the Auto class that loads it, the pipeline that runs it
AUTO_CLASSES = {
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "ForPreTraining": ("AutoModelForPreTraining", "fill-mask"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
}
TOLD = ("loss", "accuracy", "perplexity", "lr", "heldout_")  # what a figure's name begins with; no speeds, no rows
TOLD_ALWAYS = ("name", "lr", "betas", "eps", "weight_decay", "warmup_steps", "warmup_ratio", "rate", "whole_word")
SETTINGS = ("train.batch_size", "train.micro_batch_size", "data.seq_length", "max_length", "gradient_clipping", "seed")


@dataclass(frozen=True)
class DataPart:
    """Some of the data that a run reads.

    Attributes:
        name: of the folder or file, without the way to it.
        digest: sha256 (hex) of what is learned from it; "" where there is none.
        counts: numbers by name: documents, tokens, examples.
        share: of the rows that come from it, where a run mixes several; else None.
    """

    name: str
    digest: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    share: float | None = None


def figures_until(metrics: Path, step: int) -> dict[str, float]:
    """The newest value until a step of every figure that another start of the run would give again."""
    found: dict[str, float] = {}
    for line in read_metric_lines(metrics)[0]:  # the loop may be writing one
        if line.step <= step:
            told = {name: value for name, value in line.figures.items() if name.startswith(TOLD)}
            found |= {name: value for name, value in told.items() if value is not None and math.isfinite(value)}
    return found


def model_card(
    settings: Mapping[str, Any],
    folder: Path,
    manifest: CheckpointManifest,
    figures: Mapping[str, float],
    data: Sequence[DataPart],
) -> str:
    """Markdown with YAML front matter, as huggingface.co shows it.

    Args:
        settings: of the run, as it keeps them.
        folder: the model folder, with config.json and weights.
        manifest: of the checkpoint: step and tokens.
        figures: what is known of the model.
        data: what it learned from.
    """
    config = read_json(folder / "config.json")
    architecture = (config.get("architectures") or ["unknown"])[0]
    auto, pipeline = _loaded_as(architecture)
    learned = str(settings.get("objective") or settings.get("task"))
    about = {
        "library_name": "transformers",
        **({"pipeline_tag": pipeline} if pipeline else {}),
        "tags": [MADE_BY, str(config["model_type"]), *learned.split(",")],
    }
    steps, total = manifest.step, settings["train"]["steps"]
    parts = [
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n",
        f"# {architecture}, {learned}, step {steps:,}\n",
        f"Made by {MADE_BY}: {steps:,} of {total:,} steps, {int(manifest.trainer['tokens']):,} real tokens seen"
        f"{_beginning(settings)}.\n",
        _section("Model", _model_rows(settings, folder, architecture)),
        _section("Figures at this step", [(name, f"{value:.6g}") for name, value in figures.items()]),
        _section("Training", _training_rows(settings)),
        _data_section(settings, data),
        _section("Computed with", _computed_rows(settings)),
        _usage(auto, "task" in settings),
    ]
    return "\n".join(part for part in parts if part)


def _loaded_as(architecture: str) -> tuple[str, str]:
    """The Auto class that loads a class of transformers, and the pipeline that runs it ("" for none)."""
    for ending, (auto, pipeline) in AUTO_CLASSES.items():
        if architecture.endswith(ending):
            return auto, pipeline
    return "AutoModel", ""


def _beginning(settings: Mapping[str, Any]) -> str:
    if settings.get("random_init"):
        return ", from random weights"
    model = settings.get("init_from") or ("" if "objective" in settings else settings.get("model"))
    return f", beginning with the weights of {_code(Path(str(model)).name)}" if model else ""


def _model_rows(settings: Mapping[str, Any], folder: Path, architecture: str) -> list[tuple[str, str]]:
    with safe_open(folder / WEIGHTS, "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 (not a dict)
    rows = [("class", architecture), ("parameters", f"{sum(map(math.prod, shapes)):,}")]
    arch = [(name.replace("_", " "), str(value)) for name, value in settings["arch"].items()]
    labels = [("labels", ", ".join(map(_code, settings["labels"])))] if "labels" in settings else []
    return rows + arch + labels


def _training_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [(name.rpartition(".")[2].replace("_", " "), _at(settings, name)) for name in SETTINGS]
    rows = [(name, str(value)) for name, value in found if value is not None]
    optimizer, schedule = settings["train"]["optimizer"], settings["train"]["schedule"]
    rows.append(("optimizer", _chosen(optimizer, OptimizerConfig(name=optimizer["name"]).completed())))
    rows.append(("schedule", _chosen(schedule, ScheduleConfig(name=schedule["name"]).completed())))
    if "mlm" in str(settings.get("objective", "")):
        rows.append(("masking", _chosen(settings["masking"], MaskingConfig())))
    rows += [(f"stage {number + 1}", _in_words(stage)) for number, stage in enumerate(settings.get("stages", ()))]
    return [("precision", str(settings["precision"])), *rows]


def _at(tree: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        tree = tree.get(part, {}) if isinstance(tree, Mapping) else {}
    return None if tree == {} else tree


def _chosen(group: Mapping[str, Any], default: OptimizerConfig | ScheduleConfig | MaskingConfig) -> str:
    """The settings of a group that matter always, and those that are not the default."""
    usual = json.loads(json.dumps(asdict(default)))
    now = json.loads(json.dumps(group))
    return _in_words({name: value for name, value in now.items() if name in TOLD_ALWAYS or value != usual.get(name)})


def _in_words(group: Mapping[str, Any]) -> str:
    given = {name: value for name, value in group.items() if value not in (None, {}, [])}
    nested = {name: f"({_in_words(value)})" if isinstance(value, Mapping) else value for name, value in given.items()}
    return _plain(", ".join(str(value) if name == "name" else f"{name} {value}" for name, value in nested.items()))


def _data_section(settings: Mapping[str, Any], data: Sequence[DataPart]) -> str:
    counts = list(dict.fromkeys(name for part in data for name in part.counts))
    mixed = any(part.share is not None for part in data)
    header = ["data", *(["share of rows"] if mixed else []), *counts, "sha256"]
    rows = []
    for part in data:
        numbers = [f"{part.counts[name]:,}" if name in part.counts else "" for name in counts]
        share = [f"{part.share:.2%}" if part.share is not None else ""] if mixed else []
        rows.append([_code(part.name), *share, *numbers, part.digest])
    rows.append(["tokenizer", *[""] * (len(header) - 2), str(settings["data"]["tokenizer_digest"])])
    return _table("Data", header, rows)


def _computed_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = dict(settings["versions"])
    device = versions.pop("device")
    stage = settings["deepspeed"].get("zero_optimization", {}).get("stage", 0)
    ranks = settings["world_size"]
    rows = [("device", _plain(str(device))), ("ranks", str(ranks)), ("ZeRO stage", str(stage))]
    return rows + [(name, _plain(str(version))) for name, version in versions.items()]


def _usage(auto: str, finetuned: bool) -> str:
    command = (
        "python -m finetune.predict --model FOLDER --input new.tsv --output predictions.tsv"
        if finetuned
        else "deepspeed finetune/run.py --task classification --model FOLDER --ds_config ds_configs/fp32.json "
        "--train_file train.tsv --dev_file dev.tsv --output runs/task"
    )
    return f"""## Use

```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {auto}.from_pretrained("FOLDER")
```

With {MADE_BY}:

```
{command}
```
"""


def _section(title: str, rows: Sequence[tuple[str, str]]) -> str:
    return _table(title, ["", ""], rows) if rows else ""


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join([f"## {title}", "", *lines, ""])


def _code(text: str) -> str:
    """A name from elsewhere, as code: nothing in it is markup."""
    visible = "".join(character if character.isprintable() else "?" for character in text)
    return "`" + visible.replace("`", "'").replace("|", "\\|") + "`"


def _plain(text: str) -> str:
    """Text in a table, without what would be markup."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|" else letter for letter in escaped)
