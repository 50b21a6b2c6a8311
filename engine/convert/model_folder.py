"""Model folders of Hugging Face's layout: config.json and model.safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.convert.configs import read_json
from preprocess.files import sync_to_disk

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
HEADS = "heads.safetensors"  # by our names: heads that no class of transformers has


def write_model_folder(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], heads: Mapping[str, Tensor] | None = None
) -> None:
    """Write a folder that AutoModel loads; each file appears whole or not at all, the weights last.

    Args:
        folder: made if missing.
        config: the content of config.json.
        tensors: CPU tensors by name, no two overlapping in memory.
        heads: further tensors by our own names, for ``read_heads``; no file where there are none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    replace_file(folder / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
    if heads:
        own = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in heads.items()}
        replace_file(folder / HEADS, lambda path: save_file(own, path))
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    replace_file(folder / WEIGHTS, lambda path: save_file(contiguous, path, metadata={"format": "pt"}))
    sync_to_disk(folder)


def read_model_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model folder, its weights in one file or in several.

    Returns:
        The content of config.json, and the tensors by name in the dtype they have on disk.

    Raises:
        ValueError: if config.json or the weights are missing or broken, or the weights are a pickle.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    config = read_json(folder / "config.json")
    weights = find_weights(folder)
    return config, read_safetensors(weights) if weights.name == WEIGHTS else read_sharded(folder)


def read_heads(folder: Path) -> dict[str, Tensor]:
    """The heads that no class of transformers has, by our names; empty where the folder has none."""
    path = folder / HEADS
    return {name: tensor.float() for name, tensor in read_safetensors(path).items()} if path.is_file() else {}


def find_weights(folder: Path) -> Path:
    """The file of a model folder that holds the weights, or the index of several files.

    Raises:
        ValueError: if there is neither; the text says what to do where the weights are a pickle.
    """
    for name in (WEIGHTS, WEIGHTS_INDEX):
        if (folder / name).is_file():
            return folder / name
    if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin")):
        raise ValueError(
            f"{folder}: the weights are a pickle ({pickles[0]}), which can run code when loaded, and are not read. "
            'If you trust them, write model.safetensors beside them: python -c "from transformers import AutoModel; '
            f"AutoModel.from_pretrained('{folder}').save_pretrained('{folder}')\" "
            "(AutoModelForMaskedLM or AutoModelForCausalLM keep the head)"
        )
    raise ValueError(f"{folder}: no weights: neither {WEIGHTS} nor {WEIGHTS_INDEX}")


def read_sharded(folder: Path) -> dict[str, Tensor]:
    """Read the files that an index names, and only files of this folder."""
    index = read_json(folder / WEIGHTS_INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{folder / WEIGHTS_INDEX}: weight_map must map tensors to file names")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{folder / WEIGHTS_INDEX}: {name!r} is not the name of a .safetensors file beside it")
        tensors.update(read_safetensors(folder / name))
    if missing := sorted(set(weight_map) - set(tensors)):
        raise ValueError(f"{folder}: {len(missing)} tensors of the index are in no file, such as {missing[0]}")
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read one file of tensors."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, bring it to the disk, and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
