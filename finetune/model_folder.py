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
from engine.convert.configs import arch_from_huggingface, pad_id_of, read_json
from engine.convert.huggingface import from_huggingface, to_huggingface
from engine.convert.model_folder import read_model_folder, write_model_folder
from engine.models.model import Model, build_model
from finetune.sequences import SequenceBuilder
from finetune.tasks.base import Task
from finetune.tasks.registry import TASKS
from preprocess.tokenizer import BERT, CAUSAL_TEXTS, load_tokenizer

KEY = "finetuning"
LAST_WEIGHTS = ("heads.classification.classifier.weight", "heads.classification.score.weight")


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
) -> None:
    """Write weights as a Hugging Face folder, with what a prediction must know.

    The tokenizer is written anew, so that transformers adds the special tokens of ``builder``.
    """
    config, tensors = to_huggingface(weights, arch, [task.name], builder.tokenizer.special_ids, task.labels)
    config[KEY] = {"task": task.name, "max_length": builder.max_length, **task.settings()}
    builder.tokenizer.save(folder, CAUSAL_TEXTS if arch.causal else BERT, builder.max_length)
    write_model_folder(folder, config, tensors)


@torch.no_grad()
def load_finetuned_model(path: str) -> FinetunedModel:
    """Load a fine-tuned model onto the GPU, where there is one.

    A classifier that another program made lacks our settings: it takes one text of any length that the model allows.

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
    weights = from_huggingface(tensors, arch, pad_id_of(config))
    task = TASKS[settings["task"]].from_settings(_labels(folder, config, weights), settings)
    model = build_model(arch, {task.name: task.make_head(arch)}, seed=0)
    for name, parameter in model.named_parameters():
        if name not in weights or weights[name].shape != parameter.shape:
            found = f"the shape {list(weights[name].shape)}" if name in weights else "no such tensor"
            raise ValueError(f"{folder}: {name} should have the shape {list(parameter.shape)}, but there is {found}")
        parameter.copy_(weights[name])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    builder = SequenceBuilder(load_tokenizer(folder), arch, int(settings["max_length"]))
    return FinetunedModel(model.to(device).eval(), task, builder, device)


def _labels(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the classes; transformers leaves them out of config.json where they are LABEL_0 and so on."""
    sizes = [len(weights[name]) for name in LAST_WEIGHTS if name in weights]
    if not sizes or config.get("problem_type") not in (None, "single_label_classification"):
        kind = config.get("problem_type") or ", ".join(config.get("architectures") or ["no classification head"])
        raise ValueError(f"--model {folder} is no classifier ({kind}); finetune/run.py trains one from it")
    return labels_of(config) or [f"LABEL_{number}" for number in range(sizes[0])]
