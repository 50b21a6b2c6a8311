"""Weights to and from the names and shapes of transformers' BERT, pre-norm BERT (RobertaPreLayerNorm) and GPT-2."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.config.arch import ArchConfig, padded_vocab_size
from engine.convert.configs import (
    CHOICE_HEAD,
    PRE_NORM,
    SEQUENCE_HEADS,
    arch_from_huggingface,
    class_name,
    config_to_huggingface,
    huggingface_class,
    unused_positions,
)
from engine.models.transformer import Transformer

__all__ = ["arch_from_huggingface", "from_huggingface", "huggingface_class", "to_huggingface"]

logger = logging.getLogger(__name__)

# Each line is (ours, theirs, what differs): {i} a layer, {p} weight and bias, ~ the encoder's prefix of their classes
# with a head. SAME: nothing; ROWS: ours has padding rows; STACKED: ours is one matrix of their queries, keys, values;
# TRANSPOSED: theirs is [in, out] (GPT-2's Conv1D, weights only); LATER: theirs begins with rows that are not used.
SAME, ROWS, STACKED, TRANSPOSED, LATER = "same", "rows", "stacked", "transposed", "later"

BERT = (
    ("encoder.embeddings.word.weight", "~embeddings.word_embeddings.weight", ROWS),
    ("encoder.embeddings.position.weight", "~embeddings.position_embeddings.weight", SAME),
    ("encoder.embeddings.segment.weight", "~embeddings.token_type_embeddings.weight", SAME),
    ("encoder.embeddings.norm.{p}", "~embeddings.LayerNorm.{p}", SAME),
    ("encoder.layers.{i}.attention.qkv.{p}", "~encoder.layer.{i}.attention.self.{qkv}.{p}", STACKED),
    ("encoder.layers.{i}.attention.output.{p}", "~encoder.layer.{i}.attention.output.dense.{p}", SAME),
    ("encoder.layers.{i}.attention_norm.{p}", "~encoder.layer.{i}.attention.output.LayerNorm.{p}", SAME),
    ("encoder.layers.{i}.mlp.up.{p}", "~encoder.layer.{i}.intermediate.dense.{p}", SAME),
    ("encoder.layers.{i}.mlp.down.{p}", "~encoder.layer.{i}.output.dense.{p}", SAME),
    ("encoder.layers.{i}.mlp_norm.{p}", "~encoder.layer.{i}.output.LayerNorm.{p}", SAME),
    ("heads.mlm.dense.{p}", "cls.predictions.transform.dense.{p}", SAME),
    ("heads.mlm.norm.{p}", "cls.predictions.transform.LayerNorm.{p}", SAME),
    ("heads.mlm.bias", "cls.predictions.bias", ROWS),
    ("heads.nsp.pooler.{p}", "~pooler.dense.{p}", SAME),
    ("heads.nsp.classifier.{p}", "cls.seq_relationship.{p}", SAME),
    ("heads.sop.pooler.{p}", "~pooler.dense.{p}", SAME),
    ("heads.sop.classifier.{p}", "cls.seq_relationship.{p}", SAME),
    *((f"heads.{head}.pooler.{{p}}", "~pooler.dense.{p}", SAME) for head in (*SEQUENCE_HEADS, CHOICE_HEAD)),
    *((f"heads.{head}.classifier.{{p}}", "classifier.{p}", SAME) for head in (*SEQUENCE_HEADS, CHOICE_HEAD)),
    ("heads.token_classification.classifier.{p}", "classifier.{p}", SAME),
    ("heads.question_answering.outputs.{p}", "qa_outputs.{p}", SAME),
)
ROBERTA_PRE_NORM = (
    ("encoder.embeddings.word.weight", "~embeddings.word_embeddings.weight", ROWS),
    ("encoder.embeddings.position.weight", "~embeddings.position_embeddings.weight", LATER),
    ("encoder.embeddings.segment.weight", "~embeddings.token_type_embeddings.weight", SAME),
    ("encoder.embeddings.norm.{p}", "~embeddings.LayerNorm.{p}", SAME),
    ("encoder.layers.{i}.attention.qkv.{p}", "~encoder.layer.{i}.attention.self.{qkv}.{p}", STACKED),
    ("encoder.layers.{i}.attention.output.{p}", "~encoder.layer.{i}.attention.output.dense.{p}", SAME),
    ("encoder.layers.{i}.attention_norm.{p}", "~encoder.layer.{i}.attention.LayerNorm.{p}", SAME),
    ("encoder.layers.{i}.mlp.up.{p}", "~encoder.layer.{i}.intermediate.dense.{p}", SAME),
    ("encoder.layers.{i}.mlp.down.{p}", "~encoder.layer.{i}.output.dense.{p}", SAME),
    ("encoder.layers.{i}.mlp_norm.{p}", "~encoder.layer.{i}.intermediate.LayerNorm.{p}", SAME),
    ("encoder.final_norm.{p}", "~LayerNorm.{p}", SAME),
    ("heads.mlm.dense.{p}", "lm_head.dense.{p}", SAME),
    ("heads.mlm.norm.{p}", "lm_head.layer_norm.{p}", SAME),
    ("heads.mlm.bias", "lm_head.bias", ROWS),
    *((f"heads.{head}.pooler.{{p}}", "classifier.dense.{p}", SAME) for head in SEQUENCE_HEADS),
    *((f"heads.{head}.classifier.{{p}}", "classifier.out_proj.{p}", SAME) for head in SEQUENCE_HEADS),
    (f"heads.{CHOICE_HEAD}.pooler.{{p}}", "~pooler.dense.{p}", SAME),
    (f"heads.{CHOICE_HEAD}.classifier.{{p}}", "classifier.{p}", SAME),
    ("heads.token_classification.classifier.{p}", "classifier.{p}", SAME),
    ("heads.question_answering.outputs.{p}", "qa_outputs.{p}", SAME),
)
GPT2 = (
    ("encoder.embeddings.word.weight", "~wte.weight", ROWS),
    ("encoder.embeddings.position.weight", "~wpe.weight", SAME),
    ("encoder.layers.{i}.attention_norm.{p}", "~h.{i}.ln_1.{p}", SAME),
    ("encoder.layers.{i}.attention.qkv.{p}", "~h.{i}.attn.c_attn.{p}", TRANSPOSED),
    ("encoder.layers.{i}.attention.output.{p}", "~h.{i}.attn.c_proj.{p}", TRANSPOSED),
    ("encoder.layers.{i}.mlp_norm.{p}", "~h.{i}.ln_2.{p}", SAME),
    ("encoder.layers.{i}.mlp.up.{p}", "~h.{i}.mlp.c_fc.{p}", TRANSPOSED),
    ("encoder.layers.{i}.mlp.down.{p}", "~h.{i}.mlp.c_proj.{p}", TRANSPOSED),
    ("encoder.final_norm.{p}", "~ln_f.{p}", SAME),
    *((f"heads.{head}.score.weight", "score.weight", SAME) for head in SEQUENCE_HEADS),
    ("heads.token_classification.classifier.{p}", "classifier.{p}", SAME),
    ("heads.question_answering.outputs.{p}", "qa_outputs.{p}", SAME),
)
TABLES = {"bert": BERT, PRE_NORM: ROBERTA_PRE_NORM, "gpt2": GPT2}
PAIR_HEADS = ("heads.nsp.", "heads.sop.")
PREFIXES = {"bert": "bert.", PRE_NORM: "roberta_prelayernorm.", "gpt2": "transformer."}
# Names that differ in the bare encoder of a class, whose pooler computes what its classifier begins with.
BARE = {PRE_NORM: {"classifier.dense.{p}": "pooler.dense.{p}"}}

# Theirs that may stand in a file as a second name of another tensor.
TIED = {
    "bert": (
        ("cls.predictions.decoder.weight", "~embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    PRE_NORM: (
        ("lm_head.decoder.weight", "~embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    "gpt2": (("lm_head.weight", "~wte.weight"),),
}
# Theirs that are no weights: buffers that some versions saved.
CONSTANTS = re.compile(r"(^|\.)(position_ids|token_type_ids|attn\.bias|attn\.masked_bias)$")


@dataclass(frozen=True)
class Rule:
    """One line of a table for one layer: a tensor of ours, those of theirs, and what differs."""

    ours: str
    theirs: tuple[str, ...]
    change: str


def to_huggingface(
    weights: Mapping[str, Tensor],
    arch: ArchConfig,
    heads: Sequence[str],
    special_ids: Mapping[str, int],
    labels: Sequence[str] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn weights of ours into those of a transformers class.

    Args:
        weights: by our names; may hold other heads, which stay behind. Any dtype and device.
        arch: the architecture.
        heads: the heads to take along: none; one of those in ``configs.CLASSES``; or mlm and one of nsp, sop.
        special_ids: token ids by role, for config.json.
        labels: names of the classes, for config.json; None names them LABEL_0, LABEL_1 ... as transformers does.

    Returns:
        The content of config.json, and fp32 CPU tensors by their names, without vocabulary padding. Without a head a
        BERT takes the pooler of a classifier or of pairs along, if there is one.

    Raises:
        ValueError: if no transformers class computes the architecture or has the heads, a tensor is missing, or
            ``labels`` do not fit the classifier.
    """
    model_type = huggingface_class(arch)
    taken = ("encoder.", *(f"heads.{head}." for head in heads))
    rules = [rule for rule in build_rules(arch, PREFIXES[model_type] if heads else "") if rule.ours.startswith(taken)]
    name = class_name(arch, heads)
    if missing := [rule.ours for rule in rules if rule.ours not in weights]:
        raise ValueError(f"weights lack {len(missing)} tensors of {name}: {first_of(missing)}")
    if not heads:
        rules += [rule for rule in build_rules(arch, "") if ".pooler." in rule.ours and rule.ours in weights]
    unused = unused_positions(model_type, special_ids.get("pad"))
    tensors: dict[str, Tensor] = {}
    for rule in rules:
        ours = weights[rule.ours].detach().to("cpu", torch.float32)
        tensors.update(zip(rule.theirs, split_to_theirs(ours, rule.change, arch, unused), strict=True))
    config = config_to_huggingface(arch, heads, special_ids, class_labels(tensors, labels))
    return config, tensors


def from_huggingface(
    tensors: Mapping[str, Tensor], arch: ArchConfig, pad_id: int | None = None, head: str = SEQUENCE_HEADS[0]
) -> dict[str, Tensor]:
    """Turn the tensors of a transformers class into weights of ours.

    Args:
        tensors: by their names, of a class with a head or of the bare encoder (whose names have no prefix).
        arch: the architecture that ``arch_from_huggingface`` read beside them.
        pad_id: ``pad_id_of`` the same config.json; only a pre-norm BERT needs it.
        head: which of SEQUENCE_HEADS and CHOICE_HEAD a classifier is to be; the tensors do not tell.

    Returns:
        fp32 tensors by our names, the vocabulary padded: the whole encoder, and of the heads what was found
        (``heads.mlm.*``, ``heads.classification.*``, whose pooler can come without its classifier; the head of a
        BertForPreTraining both as ``heads.nsp.*`` and as ``heads.sop.*``, since the file does not tell which it is).

    Raises:
        ValueError: if a tensor of the encoder is missing, unknown or of another shape, or tied ones differ.
    """
    model_type = huggingface_class(arch)
    tensors = {modern_name(name): tensor for name, tensor in tensors.items() if not CONSTANTS.search(name)}
    prefix = PREFIXES[model_type] if any(name.startswith(PREFIXES[model_type]) for name in tensors) else ""
    rules = build_rules(arch, prefix)
    encoder = [name for rule in rules if rule.ours.startswith("encoder.") for name in rule.theirs]
    if missing := [name for name in encoder if name not in tensors]:
        raise ValueError(f"{len(missing)} tensors of the {model_type} are missing: {first_of(missing)}")
    unused = unused_positions(model_type, pad_id)
    weights: dict[str, Tensor] = {}
    others = heads_of_others(tensors, prefix, head)
    for rule in rules:
        if rule.ours.startswith(others):
            continue
        if all(name in tensors for name in rule.theirs):
            theirs = [tensors[name].detach().to("cpu", torch.float32) for name in rule.theirs]
            weights[rule.ours] = join_to_ours(theirs, rule.change, arch, unused)
    check_shapes(weights, arch)
    known = {name for rule in rules for name in rule.theirs} | check_tied(tensors, TIED[model_type], prefix)
    report_left_out(sorted(set(tensors) - known), model_type, prefix)
    return weights


def heads_of_others(tensors: Mapping[str, Tensor], prefix: str, head: str) -> tuple[str, ...]:
    """Beginnings of our names whose tensors a file lacks, though it has some that are called the same.

    The pooler of a BERT is a pair's where there are scores of pairs, else a classifier's, of the name ``head``. Its
    classifier is one of tokens where there is no pooler.
    """
    others: tuple[str, ...] = () if "cls.seq_relationship.weight" in tensors else PAIR_HEADS
    others += tuple(f"heads.{name}." for name in (*SEQUENCE_HEADS, CHOICE_HEAD) if name != head)
    is_bert = prefix == PREFIXES["bert"]
    if is_bert and f"{prefix}pooler.dense.weight" not in tensors:
        return (*others, f"heads.{head}.")
    return (*others, "heads.token_classification.") if is_bert else others


def build_rules(arch: ArchConfig, prefix: str) -> list[Rule]:
    """Write the table of an architecture out: one rule for each layer and each of weight and bias."""
    rules, model_type = [], huggingface_class(arch)
    bare = {} if prefix else BARE.get(model_type, {})
    for ours, theirs, change in TABLES[model_type]:
        theirs = bare.get(theirs, theirs)
        for i in range(arch.num_layers) if "{i}" in ours else (0,):
            for p in ("weight", "bias") if "{p}" in ours else ("",):
                parts = ("query", "key", "value") if change == STACKED else ("",)
                names = tuple(theirs.replace("~", prefix).format(i=i, p=p, qkv=part) for part in parts)
                rules.append(Rule(ours.format(i=i, p=p), names, change))
    return rules


def split_to_theirs(ours: Tensor, change: str, arch: ArchConfig, unused: int = 0) -> list[Tensor]:
    """Make their tensors of one of ours; they may share its memory, but no two overlap.

    Args:
        ours: one tensor.
        change: what differs.
        arch: the architecture.
        unused: rows of zeros before the first position.
    """
    if change == LATER:
        return [torch.cat([ours.new_zeros(unused, *ours.shape[1:]), ours])]
    if change == ROWS:
        return [ours[: arch.vocab_size]]
    if change == STACKED:
        return list(ours.chunk(3))
    if change == TRANSPOSED and ours.dim() == 2:
        return [ours.T.contiguous()]
    return [ours]


def join_to_ours(theirs: Sequence[Tensor], change: str, arch: ArchConfig, unused: int = 0) -> Tensor:
    """Make one tensor of ours of theirs; ``unused`` rows come before the first position."""
    if change == STACKED:
        return torch.cat(list(theirs))
    (tensor,) = theirs
    if change == ROWS:
        if tensor.shape[0] != arch.vocab_size:
            raise ValueError(f"vocab_size is {arch.vocab_size} in config.json, but the weights have {tensor.shape[0]}")
        padding = padded_vocab_size(arch.vocab_size) - arch.vocab_size
        return torch.cat([tensor, tensor.new_zeros(padding, *tensor.shape[1:])])
    if change == TRANSPOSED and tensor.dim() == 2:
        return tensor.T.contiguous()
    if change == LATER:
        return tensor[unused:]
    return tensor


def modern_name(name: str) -> str:
    """Give a norm of a converted TensorFlow checkpoint (gamma, beta) its name of today."""
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))


def check_shapes(weights: Mapping[str, Tensor], arch: ArchConfig) -> None:
    """Refuse an encoder with a tensor of another shape than the architecture's."""
    with torch.device("meta"):
        expected = {f"encoder.{name}": tensor.shape for name, tensor in Transformer(arch).state_dict().items()}
    for name, shape in expected.items():
        if weights[name].shape != shape:
            found = list(weights[name].shape)
            raise ValueError(f"{name} has the shape {found}, but config.json asks for {list(shape)}")


def report_left_out(names: Sequence[str], model_type: str, prefix: str) -> None:
    """Refuse tensors of an encoder that ours has no place for, and name those of a head in a warning."""
    heads = [name for name in names if prefix and not name.startswith(prefix)]
    if unknown := [name for name in names if name not in heads]:
        raise ValueError(f"{len(unknown)} tensors have no place in this {model_type}: {first_of(unknown)}")
    if heads:
        logger.warning("left out %d tensors of a head that has no place here: %s", len(heads), ", ".join(heads))


def check_tied(tensors: Mapping[str, Tensor], tied: Sequence[tuple[str, str]], prefix: str) -> set[str]:
    """Return the second names of tied tensors, refusing one whose values differ from the first's."""
    seconds = {second: first.replace("~", prefix) for second, first in tied}
    for second, first in seconds.items():
        if second in tensors and first in tensors and not torch.equal(tensors[second], tensors[first]):
            raise ValueError(f"{second} differs from {first}: only models that share the two are supported")
    return set(seconds)


def class_labels(tensors: Mapping[str, Tensor], labels: Sequence[str] | None) -> Sequence[str] | None:
    """Name the rows of the classifier, None where there is none; refuse names that are not as many."""
    for name in ("classifier.weight", "classifier.out_proj.weight", "score.weight"):
        if name in tensors:
            num_labels = tensors[name].shape[0]
            if labels is not None and len(labels) != num_labels:
                raise ValueError(f"{len(labels)} labels are given, but the classifier has {num_labels}")
            return labels or [f"LABEL_{index}" for index in range(num_labels)]
    return None


def first_of(names: Sequence[str]) -> str:
    """List up to three names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
