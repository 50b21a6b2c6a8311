"""A model that predicts the next token of several texts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.data.batch import pack
from engine.models.cache import KeyValueCache
from engine.models.model import Model

Ids = NDArray[np.integer]

# S sequences, Vp padded vocabulary


@dataclass(frozen=True)
class Generator:
    """How a model continues texts.

    Attributes:
        model: in evaluation mode.
        head: name of the head that predicts tokens.
        eos: the token that ends a text.
        max_positions: most tokens of a text.
        prefix_masked: whether the tokens of a prompt see each other; those of a causal model see what is before them.
        has_segments: whether what is generated is in segment 1.
        penalises_prompt: whether tokens of the prompt count as repeated too.
    """

    model: Model
    head: str
    eos: int
    max_positions: int
    prefix_masked: bool = False
    has_segments: bool = False
    penalises_prompt: bool = True

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.word_embedding.device


class Stepper:
    """The logits of the next token, step by step, with the keys and values of the steps before."""

    def __init__(self, generator: Generator, prompts: Sequence[Ids], most_new: int) -> None:
        """Lay out prompts of any lengths, each of at least one token, for at most ``most_new`` tokens more."""
        self._generator = generator
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=generator.device)
        self._batch = pack(prompts).to(generator.device)
        self._cache = KeyValueCache(lengths, max(map(len, prompts)) + most_new)
        self._prompt_lengths = lengths

    def first(self) -> Tensor:
        """The logits behind the prompts: [S, Vp] fp32."""
        batch, layout = self._batch, self._batch.layout
        if self._generator.prefix_masked:
            layout = replace(layout, prefix_lengths=self._prompt_lengths.to(torch.int32))
        segments = torch.zeros_like(batch.tokens) if self._generator.has_segments else None
        hidden = self._generator.model(batch.tokens, batch.positions, segments, self._cache.fill_layout(layout))
        return self._logits(hidden[layout.cu_seqlens[1:].long() - 1])

    def next(self, tokens: Tensor) -> Tensor:
        """Add a token to each sequence, [S] int64; the logits behind them, [S, Vp] fp32.

        Sequences that are over go on at the last position; what they give means nothing.
        """
        generator = self._generator
        positions = self._cache.lengths.clamp(max=generator.max_positions - 1)
        segments = torch.ones_like(tokens) if generator.has_segments else None
        hidden = generator.model(tokens, positions, segments, self._cache.step_layout())
        self._cache.advance()
        return self._logits(hidden)

    def select(self, numbers: Tensor) -> None:
        """Go on with these sequences, [S'] int64."""
        self._cache.select(numbers)

    def _logits(self, hidden: Tensor) -> Tensor:
        model = self._generator.model
        logits: Tensor = model.heads[self._generator.head](hidden, model.word_embedding)
        return logits.float()
