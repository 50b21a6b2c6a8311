"""Start from the weights of a model folder."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType

import torch

from engine.config.arch import ArchConfig
from engine.convert.configs import CHOICE_HEAD, SEQUENCE_HEADS, pad_id_of, read_json
from engine.convert.huggingface import arch_from_huggingface, from_huggingface
from engine.convert.model_folder import find_weights, read_heads, read_model_folder
from engine.models.model import Model
from engine.train.metrics import say
from preprocess.tokenizer import load_tokenizer

FREE_FIELDS = ("hidden_dropout", "attention_dropout", "init_std")  # they decide no parameter and no forward pass in use


def check_initial_weights(arch: ArchConfig, folder: Path, tokenizer_digest: str) -> None:
    """Compare a model folder with a run, without reading its weights.

    Args:
        arch: the run's architecture.
        folder: config.json, model.safetensors and the tokenizer.
        tokenizer_digest: of the run's tokenizer.

    Raises:
        ValueError: if the folder is of another architecture or of another tokenizer, or is no model folder.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"init_from {folder} is no model folder: it has no config.json")
    theirs = arch_from_huggingface(read_json(folder / "config.json"))
    find_weights(folder)
    different = [
        f"{field.name} {getattr(theirs, field.name)} there, {getattr(arch, field.name)} here"
        for field in fields(arch)
        if field.name not in FREE_FIELDS and getattr(theirs, field.name) != getattr(arch, field.name)
    ]
    if different:
        raise ValueError(
            f"the model in {folder} has another architecture: {'; '.join(different)}. "
            f"Give --model {folder} to take its own"
        )
    if load_tokenizer(folder).digest != tokenizer_digest:
        raise ValueError(
            f"the model in {folder} was trained with another tokenizer than the shards; "
            f"prepare the shards with --tokenizer {folder}"
        )


@torch.no_grad()
def load_initial_weights(
    model: Model,
    arch: ArchConfig,
    folder: Path,
    without: Collection[str] = (),
    named_otherwise: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Copy the weights of a Hugging Face folder into a model; heads that it lacks keep their first weights.

    Args:
        model: built for ``arch``.
        arch: the run's architecture.
        folder: of the same architecture.
        without: names of parameters that keep their first weights, whatever the folder holds.
        named_otherwise: names of parameters that the folder lacks -> what it calls weights that serve for them.

    Raises:
        ValueError: if the folder has no readable weights of this architecture.
    """
    config, tensors = read_model_folder(folder)
    alone = next(iter(model.heads), "") if len(model.heads) == 1 else ""
    head = alone if alone in (*SEQUENCE_HEADS, CHOICE_HEAD) else SEQUENCE_HEADS[0]
    weights = from_huggingface(tensors, arch, pad_id_of(config), head) | read_heads(folder)
    weights |= {
        ours: weights[name] for ours, name in named_otherwise.items() if name in weights and ours not in weights
    }
    parameters = dict(model.named_parameters())
    for name, tensor in weights.items():
        if name in parameters and name not in without:
            parameters[name].copy_(tensor)
    absent = sorted(name for name in parameters if name not in weights or name in without)
    say(f"weights from {folder}" + (f"; first weights of their own: {', '.join(absent)}" if absent else ""))
    logging.getLogger(__name__).debug("unused: %s", sorted(set(weights) - set(parameters)))
