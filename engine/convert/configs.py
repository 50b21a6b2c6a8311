"""Architectures to and from the config.json of transformers. Never imports torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config.arch import ArchConfig, check_fields

logger = logging.getLogger(__name__)

PRE_NORM = "roberta-prelayernorm"  # the one pre-norm BERT of transformers

# model type -> (field of ArchConfig, key of config.json, transformers' default)
FIELDS: dict[str, tuple[tuple[str, str, Any], ...]] = {
    "bert": (
        ("vocab_size", "vocab_size", 30522),
        ("hidden_size", "hidden_size", 768),
        ("num_layers", "num_hidden_layers", 12),
        ("num_heads", "num_attention_heads", 12),
        ("intermediate_size", "intermediate_size", 3072),
        ("max_positions", "max_position_embeddings", 512),
        ("num_segments", "type_vocab_size", 2),
        ("activation", "hidden_act", "gelu"),
        ("norm_eps", "layer_norm_eps", 1e-12),
        ("hidden_dropout", "hidden_dropout_prob", 0.1),
        ("attention_dropout", "attention_probs_dropout_prob", 0.1),
        ("init_std", "initializer_range", 0.02),
    ),
    "gpt2": (
        ("vocab_size", "vocab_size", 50257),
        ("hidden_size", "n_embd", 768),
        ("num_layers", "n_layer", 12),
        ("num_heads", "n_head", 12),
        ("intermediate_size", "n_inner", None),  # 4 * n_embd
        ("max_positions", "n_positions", 1024),
        ("activation", "activation_function", "gelu_new"),
        ("norm_eps", "layer_norm_epsilon", 1e-5),
        ("hidden_dropout", "resid_pdrop", 0.1),
        ("attention_dropout", "attn_pdrop", 0.1),
        ("init_std", "initializer_range", 0.02),
    ),
}
FIELDS[PRE_NORM] = tuple(
    (ours, theirs, 50265 if ours == "vocab_size" else default) for ours, theirs, default in FIELDS["bert"]
)

# What a class of theirs fixes; the head of PRE_NORM for masked tokens has its own gelu, whatever hidden_act says.
FIXED: dict[str, dict[str, Any]] = {
    "bert": {"norm_position": "post", "causal": False, "embedding_norm": True},
    PRE_NORM: {"norm_position": "pre", "causal": False, "embedding_norm": True, "activation": "gelu"},
    "gpt2": {"norm_position": "pre", "causal": True, "embedding_norm": False, "num_segments": 0},
}

# Keys of theirs that change the computation, with the only value that our models compute.
REQUIRED: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}

# model type -> (a dropout they set apart, the one that ours uses in its place)
MERGED_DROPOUT = {
    "bert": ("classifier_dropout", "hidden_dropout_prob"),
    PRE_NORM: ("classifier_dropout", "hidden_dropout_prob"),
    "gpt2": ("embd_pdrop", "resid_pdrop"),
}

OUR_ACTIVATION = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
THEIR_ACTIVATION = {"gelu": "gelu", "gelu_tanh": "gelu_new"}

# Heads that give numbers for each sequence; their classes are one to transformers, which tells them by problem_type.
SEQUENCE_HEADS = ("classification", "regression", "ranking")
CHOICE_HEAD = "multiple_choice"

# model type -> head -> class; "" is the encoder alone
CLASSES = {
    "bert": {
        "": "BertModel",
        "mlm": "BertForMaskedLM",
        "mlm + nsp": "BertForPreTraining",
        "mlm + sop": "BertForPreTraining",
        **dict.fromkeys(SEQUENCE_HEADS, "BertForSequenceClassification"),
        CHOICE_HEAD: "BertForMultipleChoice",
        "token_classification": "BertForTokenClassification",
        "question_answering": "BertForQuestionAnswering",
    },
    PRE_NORM: {
        "": "RobertaPreLayerNormModel",
        "mlm": "RobertaPreLayerNormForMaskedLM",
        **dict.fromkeys(SEQUENCE_HEADS, "RobertaPreLayerNormForSequenceClassification"),
        CHOICE_HEAD: "RobertaPreLayerNormForMultipleChoice",
        "token_classification": "RobertaPreLayerNormForTokenClassification",
        "question_answering": "RobertaPreLayerNormForQuestionAnswering",
    },
    "gpt2": {
        "": "GPT2Model",
        "lm": "GPT2LMHeadModel",
        **dict.fromkeys(SEQUENCE_HEADS, "GPT2ForSequenceClassification"),
        "token_classification": "GPT2ForTokenClassification",
        "question_answering": "GPT2ForQuestionAnswering",
    },
}
DEFAULT_OBJECTIVE = {"bert": "mlm", PRE_NORM: "mlm", "gpt2": "lm"}


def huggingface_class(arch: ArchConfig) -> str:
    """Tell which model_type of transformers computes this architecture: ``bert``, ``roberta-prelayernorm`` or ``gpt2``.

    Raises:
        ValueError: if none does; the text names the settings that stand in the way.
    """
    model_type = "gpt2" if arch.causal else PRE_NORM if arch.norm_position == "pre" else "bert"
    wrong = [
        f"arch.{name} is {getattr(arch, name)!r}, {model_type} has {value!r}"
        for name, value in FIXED[model_type].items()
        if getattr(arch, name) != value
    ]
    if model_type != "gpt2" and arch.num_segments < 1:
        wrong.append(f"arch.num_segments is 0, {model_type} has at least 1")
    if wrong:
        raise ValueError(f"no transformers class: {'; '.join(wrong)}")
    return model_type


def class_name(arch: ArchConfig, heads: Sequence[str]) -> str:
    """Name the transformers class of an architecture with no head, one of mlm, lm, a task's, or mlm and a pair's.

    Raises:
        ValueError: if there is none.
    """
    model_type = huggingface_class(arch)
    classes = CLASSES[model_type]
    head = " + ".join(heads)
    if head not in classes:
        allowed = ", ".join(sorted(filter(None, classes)))
        raise ValueError(f"no transformers class: a {model_type} with the head {head}; it may have none or {allowed}")
    return classes[head]


def unused_positions(model_type: str, pad_id: int | None) -> int:
    """Rows of their table of positions before the first that is used: PRE_NORM counts from its padding token on.

    Raises:
        ValueError: if there is no such token.
    """
    if model_type != PRE_NORM:
        return 0
    if pad_id is None:
        raise ValueError(f"{PRE_NORM} counts positions from the id of the padding token, and there is none")
    return pad_id + 1


def pad_id_of(config: Mapping[str, Any]) -> int | None:
    """Id of the padding token by a config.json; where it says nothing, that of transformers' PRE_NORM class."""
    found: int | None = config.get("pad_token_id", 1)
    return found


def config_to_huggingface(
    arch: ArchConfig, heads: Sequence[str], special_ids: Mapping[str, int], labels: Sequence[str] | None = None
) -> dict[str, Any]:
    """Describe a model as the content of a config.json.

    Args:
        arch: the architecture.
        heads: none; one of those in CLASSES; or mlm and one of nsp, sop.
        special_ids: token ids by role; pad, bos and eos are written, null where the vocabulary has none.
        labels: names of the classes in the order of the logits.

    Raises:
        ValueError: if no class of transformers computes it, a label comes twice, or the vocabulary lacks a token.
    """
    model_type = huggingface_class(arch)
    config: dict[str, Any] = {"architectures": [class_name(arch, heads)], "model_type": model_type}
    config |= {theirs: getattr(arch, ours) for ours, theirs, _ in FIELDS[model_type]}
    activation_key = next(theirs for ours, theirs, _ in FIELDS[model_type] if ours == "activation")
    config[activation_key] = THEIR_ACTIVATION[arch.activation]
    config[MERGED_DROPOUT[model_type][0]] = arch.hidden_dropout
    if unused := unused_positions(model_type, special_ids.get("pad")):
        config["max_position_embeddings"] += unused
    config |= {f"{role}_token_id": special_ids.get(role) for role in ("pad", "bos", "eos")}
    config |= {"tie_word_embeddings": True, "dtype": "float32"}
    if labels is not None:
        if len(set(labels)) < len(labels):
            raise ValueError(f"labels must differ from each other, found {', '.join(labels)}")
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    return config


def arch_from_huggingface(config: Mapping[str, Any]) -> ArchConfig:
    """Read an architecture from the content of a config.json; a key left out has transformers' default.

    Raises:
        ValueError: if it is no BERT (post-norm or pre-norm) or GPT-2, or asks for what our models do not compute.
    """
    model_type = config.get("model_type")
    if model_type not in FIELDS:
        raise ValueError(f"config.json: model_type is {model_type!r}: it must be one of {', '.join(FIELDS)}")
    for key, needed in REQUIRED.items():
        if config.get(key, needed) not in (needed, None):
            raise ValueError(f"config.json: {key} is {config[key]!r}: only {needed!r} is supported")
    values = {ours: default if config.get(key) is None else config[key] for ours, key, default in FIELDS[model_type]}
    if values["intermediate_size"] is None:
        values["intermediate_size"] = 4 * values["hidden_size"]
    if values["activation"] not in OUR_ACTIVATION:
        allowed = ", ".join(OUR_ACTIVATION)
        raise ValueError(f"config.json: the activation is {values['activation']!r}: it must be one of {allowed}")
    values["activation"] = OUR_ACTIVATION[values["activation"]]
    if FIXED[model_type].get("activation", values["activation"]) != values["activation"]:
        raise ValueError(f"config.json: hidden_act is {config['hidden_act']!r}: a {model_type} must have 'gelu'")
    if model_type == PRE_NORM and isinstance(values["max_positions"], int):
        values["max_positions"] -= unused_positions(model_type, pad_id_of(config))
    merged, kept = MERGED_DROPOUT[model_type]
    if config.get(merged) not in (None, values["hidden_dropout"]):
        logger.warning("config.json: %s %s is not kept; %s is used there too", merged, config[merged], kept)
    arch = ArchConfig(**check_fields(values | FIXED[model_type], "config.json"))
    if problems := arch.problems():
        raise ValueError(f"config.json: {'; '.join(problems)}")
    return arch


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ValueError: if it is missing or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: it must hold one JSON object")
    return content


def model_folder(path: str) -> Path:
    """The model folder that a path means: the newest model where it is a run folder, else the path itself."""
    folder = Path(path)
    config = folder / "config.json"
    is_run = config.is_file() and "model_type" not in read_json(config) and (folder / "model" / "config.json").is_file()
    return folder / "model" if is_run else folder
