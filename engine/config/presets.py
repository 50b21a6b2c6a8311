"""Named architectures, and what ``--model`` can mean. Never imports torch."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from engine.config.arch import check_fields
from engine.convert.configs import DEFAULT_OBJECTIVE, arch_from_huggingface, model_folder, read_json

PRESET_FOLDER = Path(__file__).resolve().parent.parent / "presets"
YAML_SUFFIXES = (".yaml", ".yml")


def preset_names() -> list[str]:
    """List the presets, sorted."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_preset(name: str) -> tuple[dict[str, Any], str]:
    """Read a preset: its ArchConfig fields (vocab_size comes from the tokenizer) and its default objective.

    Raises:
        ValueError: if there is no such preset; the nearest names are given.
    """
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the presets are {', '.join(names)}"
        raise ValueError(f"unknown model {name!r}: neither a preset nor a .yaml file nor a model folder; {hint}")
    return read_arch_file(PRESET_FOLDER / f"{name}.yaml")


def resolve_arch(model: str) -> tuple[dict[str, Any], str]:
    """Find the architecture that ``--model`` names.

    Args:
        model: a preset's name (it wins over a folder of that name: write ``./name`` for the folder), a path to a .yaml
            file of ArchConfig fields, or a model folder with a config.json.

    Returns:
        ArchConfig fields, perhaps not all, and the default objective (mlm or lm).

    Raises:
        ValueError: if it is none of these, or its content is wrong.
    """
    if model in preset_names():
        return load_preset(model)
    path = Path(model)
    if path.suffix in YAML_SUFFIXES:
        return read_arch_file(path)
    if path.is_dir():
        return read_arch_folder(model_folder(model))
    return load_preset(model)


def read_arch_file(path: Path) -> tuple[dict[str, Any], str]:
    """Read ArchConfig fields and ``objective`` (by default what fits ``causal``) from a .yaml file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: it must hold keys and values, such as num_layers: 12")
    fields = check_fields({key: value for key, value in content.items() if key != "objective"}, str(path))
    objective = content.get("objective", "lm" if fields.get("causal") else "mlm")
    if not isinstance(objective, str):
        raise ValueError(f"{path}: objective is {objective!r}: it must be a name such as mlm")
    return fields, objective


def read_arch_folder(folder: Path) -> tuple[dict[str, Any], str]:
    """Read all ArchConfig fields and the default objective from the config.json of a model folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: a model folder must hold a config.json")
    config = read_json(path)
    try:
        arch = arch_from_huggingface(config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return asdict(arch), DEFAULT_OBJECTIVE[config["model_type"]]
