"""The architecture of a model: what decides its parameters and its forward pass. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass

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
    attention_dropout: float = 0.0  # the fastest attention of a GPU has none, and on a CPU it triples attention's cost
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
