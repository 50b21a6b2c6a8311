"""Model folders as fine-tuning and prediction find and write them.

What a prediction must know beside transformers' own keys stands in config.json under ``finetuning``, a key that
transformers keeps and does not use: the task, its settings and max_length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.config.arch import ArchConfig
from engine.convert.configs import arch_from_huggingface, read_json
from engine.convert.huggingface import from_huggingface, to_huggingface
from engine.convert.model_folder import read_model_folder, write_model_folder
from engine.models.model import Model, build_model
from finetune.sequences import SequenceBuilder
from finetune.tasks.base import Task
from finetune.tasks.registry import TASKS
from preprocess.tokenizer import load_tokenizer

KEY = "finetuning"


@dataclass(frozen=True)
class FinetunedModel:
    """A fine-tuned model, ready to predict: in evaluation mode, in fp32, on its device."""

    model: Model
    task: Task
    builder: SequenceBuilder
    device: torch.device


def find_model_folder(path: str) -> Path:
    """The model folder that a path means: itself, or the newest model of a run folder.

    Raises:
        ValueError: if it is neither.
    """
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "config.json").is_file() and "model_type" in read_json(folder / "config.json"):
            return folder
    what = "does not exist" if not Path(path).exists() else "is neither a model folder nor a run folder with a model"
    raise ValueError(f"--model {path} {what}; it must hold config.json, model.safetensors and the tokenizer's files")


def read_architecture(folder: Path) -> ArchConfig:
    """The architecture of a model folder; ValueError naming the folder where it is not one of ours."""
    try:
        return arch_from_huggingface(read_json(folder / "config.json"))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """Names of the classes in the content of a config.json, in the order of the logits; empty where it has none."""
    names = config.get("id2label") or {}
    return [str(names[key]) for key in sorted(names, key=int)]


def write_finetuned_model(
    folder: Path,
    weights: dict[str, Tensor],
    arch: ArchConfig,
    task: Task,
    builder: SequenceBuilder,
    tokenizer_folder: Path,
) -> None:
    """Write weights as a Hugging Face folder, with what a prediction must know."""
    config, tensors = to_huggingface(weights, arch, [task.name], builder.tokenizer.special_ids, task.labels)
    config[KEY] = {"task": task.name, "max_length": builder.max_length, **task.settings()}
    write_model_folder(folder, config, tensors, tokenizer_folder)


@torch.no_grad()
def load_finetuned_model(path: str) -> FinetunedModel:
    """Load a fine-tuned model onto the GPU, where there is one.

    A classifier that another program made has no settings of ours: it takes one text, and its whole length.

    Args:
        path: model folder or run folder.

    Raises:
        ValueError: if it is no fine-tuned model, or its parts do not fit together.
    """
    folder = find_model_folder(path)
    arch = read_architecture(folder)
    config, tensors = read_model_folder(folder)
    settings = {"task": "classification", "max_length": arch.max_positions, "pair": False, **config.get(KEY, {})}
    if settings["task"] not in TASKS:
        raise ValueError(f"{folder}: its task is {settings['task']!r}; this version has {', '.join(TASKS)}")
    weights = from_huggingface(tensors, arch)
    task = TASKS[settings["task"]].from_settings(labels_of(config), settings)
    model = build_model(arch, {task.name: task.make_head(arch)}, seed=0)
    parameters = dict(model.named_parameters())
    missing = sorted(name for name in parameters if name not in weights)
    if missing:
        raise ValueError(
            f"{folder} is no classifier: {config.get('architectures', ['the model'])[0]} lacks {', '.join(missing)}; "
            "finetune/run.py makes one of it"
        )
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise ValueError(
                f"{folder}: {name} has the shape {list(weights[name].shape)}, but its config.json has "
                f"{len(task.labels)} labels"
            )
        parameter.copy_(weights[name])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    builder = SequenceBuilder(load_tokenizer(folder), arch, int(settings["max_length"]))
    return FinetunedModel(model.to(device).eval(), task, builder, device)
