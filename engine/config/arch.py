"""The architecture of a model: what decides its parameters and its forward pass. Never imports torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

ACTIVATIONS = ("gelu", "gelu_tanh")
NORM_POSITIONS = ("post", "pre")
VOCABULARY_MULTIPLE = 64  # tensor cores and vectorised softmax want whole tiles

POSITIVE_SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions")


@dataclass(frozen=True, kw_only=True)
class ArchConfig:
    """A transformer; the defaults are BERT-base, the presets hold the rest."""

    vocab_size: int
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 2  # 0: no segment embedding
    activation: str = "gelu"  # gelu: by erf (BERT); gelu_tanh: its tanh approximation (GPT-2)
    norm_position: str = "post"  # post: after each residual sum (BERT); pre: before each block and at the end (GPT-2)
    norm_eps: float = 1e-12
    causal: bool = False  # True: a token sees only those before it
    embedding_norm: bool = True
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.0  # BERT's and GPT-2's is 0.1; torch's flash attention on a GPU has none
    init_std: float = 0.02

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = [
            f"arch.{name} is {getattr(self, name)}: it must be at least 1"
            for name in POSITIVE_SIZES
            if getattr(self, name) < 1
        ]
        if self.num_segments < 0:
            found.append(f"arch.num_segments is {self.num_segments}: it must be 0 (no segment embedding) or more")
        if self.num_heads >= 1 and self.hidden_size % self.num_heads:
            found.append(
                f"arch.hidden_size ({self.hidden_size}) must be a multiple of arch.num_heads ({self.num_heads})"
            )
        for name, allowed in (("activation", ACTIVATIONS), ("norm_position", NORM_POSITIONS)):
            if getattr(self, name) not in allowed:
                found.append(f"arch.{name} is {getattr(self, name)!r}: it must be one of {', '.join(allowed)}")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"arch.{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        for name in ("norm_eps", "init_std"):
            if not getattr(self, name) > 0:
                found.append(f"arch.{name} is {getattr(self, name)}: it must be above 0")
        return found


def padded_vocab_size(vocab_size: int) -> int:
    """Round a vocabulary up to the next multiple of 64, the number of rows its embedding has inside."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@dataclass(frozen=True, kw_only=True)
class ArchOverrides:
    """Single settings of the architecture that replace the preset's; the vocabulary's size follows from the tokenizer.

    Args:
        hidden_size: width of the hidden states.
        num_layers: transformer layers.
        num_heads: attention heads; divides hidden_size.
        intermediate_size: width inside the MLP.
        max_positions: longest sequence.
        num_segments: segment embeddings; 0 for none.
        activation: gelu or gelu_tanh.
        norm_position: post (BERT) or pre (GPT-2).
        norm_eps: added to the variance in norms.
        causal: a token sees only those before it.
        embedding_norm: a norm after the embeddings.
        hidden_dropout: dropout after embeddings, attention and MLP.
        attention_dropout: dropout of attention weights.
        init_std: standard deviation of the initial weights.
    """

    hidden_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    intermediate_size: int | None = None
    max_positions: int | None = None
    num_segments: int | None = None
    activation: str | None = None
    norm_position: str | None = None
    norm_eps: float | None = None
    causal: bool | None = None
    embedding_norm: bool | None = None
    hidden_dropout: float | None = None
    attention_dropout: float | None = None
    init_std: float | None = None


def check_fields(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check names and types of ArchConfig fields read from a file; ``where`` names the file in an error.

    Raises:
        ValueError: for a name that ArchConfig does not have (the nearest is given) or a value of another type.
    """
    types = {field.name: str(field.type) for field in fields(ArchConfig)}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            near = difflib.get_close_matches(str(name), types, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(types)}"
            raise ValueError(f"{where}: unknown key {name}; {hint}")
        found = type(value).__name__
        if types[name] == "float" and (found == "int" or is_number(value)):
            value = float(value)
        elif types[name] != found:
            raise ValueError(f"{where}: {name} is {value!r} ({found}): it must be of type {types[name]}")
        checked[name] = value
    return checked


def is_number(value: object) -> bool:
    """Whether a text is a number: YAML 1.1 reads 1e-5, without a point, as text."""
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False
