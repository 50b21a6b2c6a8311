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
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.convert.configs import CHOICE_HEAD, SEQUENCE_HEADS, arch_from_huggingface, pad_id_of, read_json
from engine.convert.huggingface import from_huggingface, to_huggingface
from engine.convert.model_folder import read_heads, read_model_folder, write_model_folder
from engine.models.model import Model, build_model
from finetune.features.sequences import SequenceBuilder
from finetune.sentence_folder import read_sentence_settings
from finetune.tasks.base import Task
from finetune.tasks.registry import TASKS
from preprocess.tokenizer import load_tokenizer

KEY = "finetuning"
SEVERAL_LABELS = "multi_label_classification"
THEIR_LAST_WEIGHTS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")
LAST_WEIGHTS = ("heads.classification.classifier.weight", "heads.classification.score.weight")


@dataclass(frozen=True)
class FinetunedModel:
    """A fine-tuned model, ready to predict: in evaluation mode, in fp32, on its device."""

    model: Model
    task: Task[Any]
    builder: SequenceBuilder
    device: torch.device


def find_model_folder(path: str) -> Path:
    """The model folder that a path means: itself, or the newest model of a run folder.

    Raises:
        ValueError: if it is neither.
    """
    for folder in (Path(path), Path(path) / "model", Path(path) / "0_Transformer"):  # the last: sentence-transformers
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


def same_task(config: Mapping[str, Any], task: Task[Any]) -> bool:
    """Whether the head of a model with this config.json predicts what a task learns."""
    there = config.get(KEY, {}).get("task", "classification")
    tasks = config.get(KEY, {}).get("tasks")  # of several, which have labels each
    same = not task.labels or _labels_of(config) == list(task.labels)
    return bool(there == task.kind and same and tasks == task.settings().get("tasks"))


def write_finetuned_model(
    folder: Path,
    weights: dict[str, Tensor],
    arch: ArchConfig,
    task: Task[Any],
    builder: SequenceBuilder,
) -> None:
    """Write weights as a Hugging Face folder, with what a prediction must know.

    The tokenizer is written anew, so that transformers adds the special tokens of ``builder``. Heads that no class of
    transformers has are written into heads.safetensors.
    """
    heads = task.exported_heads(arch)
    labels = task.labels if heads and task.labels else None
    config, tensors = to_huggingface(weights, arch, heads, builder.tokenizer.special_ids, labels)
    config[KEY] = {"task": task.kind, "max_length": builder.max_length, **task.settings()}
    if task.labels and not heads:
        config[KEY]["labels"] = list(task.labels)
    config |= task.config_keys(arch)
    builder.tokenizer.save(folder, task.tokenizer_template(arch), builder.max_length)
    written = tuple(f"heads.{head}." for head in heads)
    others = {name: weights[name] for name in weights if name.startswith("heads.") and not name.startswith(written)}
    write_model_folder(folder, config, tensors, others)
    task.finish_folder(folder, arch, builder)


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
    settings: dict[str, Any] = {"task": "classification", "max_length": arch.max_positions, "pair": False}
    settings |= config.get(KEY) or _sentence_settings(folder, arch) or _problem_settings(config, tensors)
    if settings["task"] not in TASKS:
        raise ValueError(f"{folder}: its task is {settings['task']!r}; this version has {', '.join(TASKS)}")
    head = settings["task"] if settings["task"] in (*SEQUENCE_HEADS, CHOICE_HEAD) else SEQUENCE_HEADS[0]
    weights = from_huggingface(tensors, arch, pad_id_of(config), head) | read_heads(folder)
    labels = _labels_of(config)
    if settings["task"] == "classification" and "labels" not in settings:
        labels = _labels_of_classifier(folder, config, weights)
    task = TASKS[settings["task"]].from_settings(labels, settings)
    model = filled_model(folder, arch, task.make_heads(arch), weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    builder = SequenceBuilder(load_tokenizer(folder), arch, int(settings["max_length"]))
    return FinetunedModel(model.to(device).eval(), task, builder, device)


@torch.no_grad()
def filled_model(
    folder: Path, arch: ArchConfig, heads: Mapping[str, nn.Module], weights: Mapping[str, Tensor]
) -> Model:
    """A model with weights by our names; ValueError naming the folder where one is missing or of another shape."""
    model = build_model(arch, heads, seed=0)
    for name, parameter in model.named_parameters():
        if name not in weights or weights[name].shape != parameter.shape:
            found = f"the shape {list(weights[name].shape)}" if name in weights else "no such tensor"
            raise ValueError(f"{folder}: {name} should have the shape {list(parameter.shape)}, but there is {found}")
        parameter.copy_(weights[name])
    return model


def _sentence_settings(folder: Path, arch: ArchConfig) -> dict[str, Any]:
    """Settings of the task similarity for a folder of sentence-transformers; none for another folder."""
    found = read_sentence_settings(folder)
    if found is None:
        return {}
    length = min(found.max_length or arch.max_positions, arch.max_positions)
    return {"task": "similarity", "max_length": length, "pooling": found.pooling, "normalize": found.normalize}


def _problem_settings(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of another program's model that gives numbers for sequences; transformers takes one for a score."""
    problem = config.get("problem_type")
    if any("MultipleChoice" in name for name in config.get("architectures") or ()):
        return {}
    rows = next((len(tensors[name]) for name in THEIR_LAST_WEIGHTS if name in tensors), 0)
    if rows == 1 and problem in (None, "regression"):
        return {"task": "regression"}
    return {"multi_label": True} if problem == SEVERAL_LABELS else {}


def _labels_of(config: Mapping[str, Any]) -> list[str]:
    """Names of the classes in the content of a config.json, in the order of the logits; empty where it has none."""
    if labels := config.get(KEY, {}).get("labels"):
        return [str(label) for label in labels]
    names = config.get("id2label") or {}
    return [str(names[key]) for key in sorted(names, key=int)]


def _labels_of_classifier(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """Those of another program's classifier; transformers leaves them out where they are LABEL_0 and so on."""
    sizes = [len(weights[name]) for name in LAST_WEIGHTS if name in weights]
    if not sizes or config.get("problem_type") not in (None, "single_label_classification", SEVERAL_LABELS):
        kind = config.get("problem_type") or ", ".join(config.get("architectures") or ["no classification head"])
        raise ValueError(f"--model {folder} is no classifier ({kind}); finetune/run.py trains one from it")
    return _labels_of(config) or [f"LABEL_{number}" for number in range(sizes[0])]
