"""What is done to the scores of the next token before one is chosen, in transformers' order."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.config.decoding import DecodingConfig

# S sequences, Vp padded vocabulary


class SeenTokens:
    """Which tokens each sequence has had: [S, Vp] bool."""

    def __init__(self, num_sequences: int, vocab_size: int, device: torch.device) -> None:
        self.seen = torch.zeros(num_sequences, vocab_size, dtype=torch.bool, device=device)

    def add(self, owners: Tensor, tokens: Tensor) -> None:
        """Note tokens [n] of the sequences ``owners`` [n]."""
        self.seen[owners, tokens] = True

    def select(self, numbers: Tensor) -> None:
        """Go on with these sequences, [S'] int64."""
        self.seen = self.seen[numbers]

    def penalise(self, scores: Tensor, penalty: float) -> Tensor:
        """Divide positive scores of seen tokens by the penalty, and multiply negative ones: [S, Vp] to the same."""
        return torch.where(self.seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def warp(scores: Tensor, config: DecodingConfig) -> Tensor:
    """Logits [S, Vp] to those that are drawn from: temperature, top-k, top-p; -inf where nothing is drawn."""
    scores = scores / config.temperature
    if config.top_k:
        least = scores.topk(min(config.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if config.top_p < 1.0:
        ordered, order = scores.sort(descending=False)
        dropped = ordered.softmax(-1).cumsum(-1) <= 1 - config.top_p
        dropped[:, -1] = False
        scores = scores.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
    return scores


def draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [S] by numbers in [0, 1), [S] float64: where the running sum of the probabilities passes them."""
    sums = scores.double().softmax(-1).cumsum(-1)  # [S, Vp]
    places = torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:], right=True)[:, 0]
    last = (scores > -torch.inf).long().cumsum(-1).argmax(-1)  # the last token that can be drawn, should sums round
    return torch.minimum(places, last)
