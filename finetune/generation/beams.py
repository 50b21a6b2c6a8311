"""The state of a beam search, in the order of work of transformers 5 (``GenerationMixin._beam_search``)."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.config.decoding import DecodingConfig

NEVER = -1e9  # the score of what is no candidate

# S prompts, W beams of each, Vp padded vocabulary, T most new tokens


class Beams:
    """Running beams and whole texts of several prompts.

    Attributes:
        running: [S, W, T] tokens of the running beams.
        running_scores: [S, W] sums of their logarithms of probabilities.
        whole: [S, W, T] tokens of the best whole texts.
        whole_scores: [S, W], divided by the lengths' penalty.
        lengths: [S, W] tokens of the whole texts.
        is_whole: [S, W] whether there is a text.
        can_improve: [S, 1] whether a running beam may still beat the worst whole text.
    """

    def __init__(self, limits: Tensor, eos: int, config: DecodingConfig) -> None:
        """Begin with one beam for each prompt.

        Args:
            limits: [S] most new tokens of each prompt.
            eos: the token that ends a text.
            config: with num_beams, length_penalty, early_stopping.
        """
        device, prompts, width = limits.device, len(limits), config.num_beams
        self.limits, self.eos, self.config = limits, eos, config
        self.running = torch.full((prompts, width, config.max_new_tokens), eos, device=device)
        self.running_scores = torch.zeros(prompts, width, device=device)
        self.running_scores[:, 1:] = NEVER  # else all beams would take the same tokens
        self.whole = self.running.clone()
        self.whole_scores = torch.full((prompts, width), NEVER, device=device)
        self.lengths = torch.zeros(prompts, width, dtype=torch.int64, device=device)
        self.is_whole = torch.zeros(prompts, width, dtype=torch.bool, device=device)
        self.can_improve = torch.ones(prompts, 1, dtype=torch.bool, device=device)

    def advance(self, scores: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Take the best continuations.

        Args:
            scores: [S * W, Vp] logarithms of probabilities of the next tokens.
            step: its number, from 0.

        Returns:
            parents [S * W], which sequence each running beam goes on from; tokens [S * W], what it got.
        """
        prompts, width = self.running_scores.shape
        vocab_size = scores.shape[-1]
        totals = scores.view(prompts, width, vocab_size) + self.running_scores[..., None]
        best, places = totals.flatten(1).topk(2 * width)  # twice as many, should the best W all end
        parents, tokens = places // vocab_size, places % vocab_size  # [S, 2 W]
        candidates = _take(self.running, parents)
        candidates[:, :, step] = tokens
        ends = (tokens == self.eos) | (step + 1 >= self.limits[:, None])
        going_on = best + ends.float() * NEVER
        chosen = going_on.topk(width).indices  # [S, W]
        self._add_whole(candidates, best, ends, step + 1)
        self.running, self.running_scores = _take(candidates, chosen), going_on.gather(1, chosen)
        self._look_ahead(step + 1)
        offsets = torch.arange(prompts, device=scores.device)[:, None] * width
        return (parents.gather(1, chosen) + offsets).flatten(), tokens.gather(1, chosen).flatten()

    def _add_whole(self, candidates: Tensor, scores: Tensor, ends: Tensor, length: int) -> None:
        """Keep the best W of the whole texts and of those among the W best candidates that end."""
        width = self.is_whole.shape[1]
        ends = ends & (torch.arange(2 * width, device=ends.device) < width)
        full = self.is_whole.all(1, keepdim=True) & self.config.early_stopping
        scores = scores / length**self.config.length_penalty
        scores = scores + (full.float() + (~self.can_improve).float() + (~ends).float()) * NEVER
        merged = torch.cat([self.whole_scores, scores], 1)
        self.whole_scores, best = merged.topk(width)
        self.whole = _take(torch.cat([self.whole, candidates], 1), best)
        self.lengths = torch.cat([self.lengths, torch.full_like(ends, length, dtype=torch.int64)], 1).gather(1, best)
        self.is_whole = torch.cat([self.is_whole, ends], 1).gather(1, best)

    def _look_ahead(self, length: int) -> None:
        """Whether the best running beam, ended now, would beat the worst whole text."""
        possible = self.running_scores[:, :1] / length**self.config.length_penalty
        worst = torch.where(self.is_whole, self.whole_scores.min(1, keepdim=True).values, NEVER)
        self.can_improve = self.can_improve & (possible > worst).any(-1, keepdim=True)

    def over(self) -> bool:
        """Whether no prompt's texts can change any more."""
        done = ~self.can_improve[:, 0]
        if self.config.early_stopping:
            done = done | self.is_whole.all(1)
        return bool(done.all())

    def results(self) -> list[list[tuple[list[int], float]]]:
        """The whole texts of each prompt, the best first, with their scores."""
        rows = zip(self.whole.tolist(), self.lengths.tolist(), self.whole_scores.tolist(), strict=True)
        return [[(tokens[:length], score) for tokens, length, score in zip(*row, strict=True)] for row in rows]


def _take(rows: Tensor, numbers: Tensor) -> Tensor:
    """[S, A, T] and [S, B] to [S, B, T]."""
    return rows.gather(1, numbers[..., None].expand(-1, -1, rows.shape[2]))
