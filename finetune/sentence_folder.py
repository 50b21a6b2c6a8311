"""What sentence-transformers keeps beside the weights: how the vectors of tokens become the vector of a text.

modules.json lists the parts of a model: a transformer, a pooling, and perhaps a division by the length of the vector.
We read the layouts of its versions 2 to 6, and write that of version 2, which all of them read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.convert.configs import read_json
from preprocess.files import write_atomically

MODULES, LENGTH_FILE, OWN_FILE = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
THEIR_POOLINGS = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}  # theirs -> ours
OLD_KEYS = {  # of 1_Pooling/config.json, as versions before 6 write it
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceSettings:
    """How a model folder makes a text's vector.

    Attributes:
        pooling: first, mean, max or last.
        normalize: whether the vector is divided by its length.
        max_length: tokens of a text, special tokens included; None where the folder does not say.
    """

    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None


def read_sentence_settings(folder: Path) -> SentenceSettings | None:
    """What a folder of sentence-transformers says; None for another folder.

    Args:
        folder: with config.json and the weights; modules.json may lie beside them or, in old folders, one level up.

    Raises:
        ValueError: if the model has a part that ours does not compute.
    """
    root = next((place for place in (folder, folder.parent) if _transformer_of(place) == folder), None)
    if root is None:
        return None
    modules = _read_modules(root)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise ValueError(
            f"{root / MODULES}: the parts are {', '.join(kinds) or 'none'}; they must be Transformer, Pooling and "
            "perhaps Normalize"
        )
    pooling = read_pooling(root / Path(str(modules[1].get("path", ""))).name / "config.json")
    _check_texts(root, folder)
    return SentenceSettings(pooling, "Normalize" in kinds, _read_max_length(folder))


def _transformer_of(root: Path) -> Path | None:
    """The folder with the weights, which old versions keep one level below modules.json; None without that file."""
    if not (root / MODULES).is_file():
        return None
    modules = _read_modules(root)
    return root / Path(str(modules[0].get("path", ""))).name if modules else None


def _read_modules(root: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads((root / MODULES).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{root / MODULES}: not a JSON file: {error}") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ValueError(f"{root / MODULES}: it must hold a list of JSON objects")
    return modules


def read_pooling(path: Path) -> str:
    """The pooling that a file of sentence-transformers names, by our name.

    Raises:
        ValueError: if it is none of ours, or several at once.
    """
    config = read_json(path)
    found = config.get("pooling_mode", [theirs for key, theirs in OLD_KEYS.items() if config.get(key)] or "mean")
    modes = [found] if isinstance(found, str) else list(found)
    if len(modes) != 1 or modes[0] not in THEIR_POOLINGS:
        raise ValueError(f"{path}: the pooling is {' and '.join(modes)}; it must be one of {', '.join(THEIR_POOLINGS)}")
    if config.get("include_prompt") is False:
        raise ValueError(f"{path}: include_prompt is false; only models whose prompt counts are supported")
    return THEIR_POOLINGS[modes[0]]


def _check_texts(root: Path, folder: Path) -> None:
    """Refuse a model that changes its texts before they become tokens."""
    for path, key in ((folder / LENGTH_FILE, "do_lower_case"), (root / OWN_FILE, "default_prompt_name")):
        if path.is_file() and (value := read_json(path).get(key)):
            raise ValueError(
                f"{path}: {key} is {value!r}, and texts are not changed here: set it to "
                f"{'false' if value is True else 'null'}, and put into your texts what it would do to them"
            )


def _read_max_length(folder: Path) -> int | None:
    """The tokens that a text is cut to: that of sentence_bert_config.json, else of tokenizer_config.json."""
    for name, key in ((LENGTH_FILE, "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        length = read_json(folder / name).get(key) if (folder / name).is_file() else None
        if isinstance(length, int) and 0 < length < 10**9:  # transformers writes 10^30 for no limit
            return length
    return None


def write_sentence_settings(folder: Path, settings: SentenceSettings, hidden_size: int) -> None:
    """Write what sentence-transformers wants beside the weights and the tokenizer."""
    names = ["Transformer", "Pooling", *(["Normalize"] if settings.normalize else [])]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": "" if number == 0 else f"{number}_{name}",
            "type": f"sentence_transformers.models.{name}",
        }
        for number, name in enumerate(names)
    ]
    pooling = {key: THEIR_POOLINGS.get(theirs) == settings.pooling for key, theirs in OLD_KEYS.items()}
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **pooling})
    if settings.normalize:
        _write(folder / "2_Normalize" / "config.json", {})
    _write(folder / LENGTH_FILE, {"max_seq_length": settings.max_length, "do_lower_case": False})
    _write(folder / OWN_FILE, {"prompts": {}, "similarity_fn_name": "cosine"})
    _write(folder / MODULES, modules)


def _write(path: Path, content: Mapping[str, Any] | list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
