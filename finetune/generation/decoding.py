"""Greedy decoding, sampling and beam search; greedy and beam search give what transformers' ``generate`` gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.data.draws import Draw
from engine.data.order import philox
from engine.train.distributed import all_reduce_sum, world_size
from finetune.config.decoding import DecodingConfig
from finetune.generation.beams import Beams
from finetune.generation.scores import SeenTokens, draw, warp
from finetune.generation.stepping import Generator, Ids, Stepper

# S prompts, Vp padded vocabulary


class Generated(NamedTuple):
    """A text that was generated.

    Attributes:
        tokens: without the one that ends it.
        score: of a beam search: the sum of logarithms of probabilities, divided by length ** length_penalty; else None.
    """

    tokens: list[int]
    score: float | None = None


class DrawKey(NamedTuple):
    """What the draws of a text are keyed by, so that they do not depend on the batch that it is in."""

    seed: int
    record: int
    number: int = 0


@torch.no_grad()
def generate(
    generator: Generator,
    prompts: Sequence[Ids],
    config: DecodingConfig,
    num_texts: int = 1,
    keys: Sequence[tuple[int, int]] | None = None,
) -> list[list[Generated]]:
    """Continue prompts of any lengths in one batch; all ranks must call it, and run the model equally often.

    Args:
        generator: the model.
        prompts: token ids, at least one of each.
        config: how tokens are chosen.
        num_texts: for each prompt: the best beams, or so many draws.
        keys: (seed, number of the record) of each prompt, for the draws.

    Returns:
        The texts of each prompt, the best first. Where a prompt leaves fewer positions than ``max_new_tokens``, its
        texts end with them.

    Raises:
        ValueError: if a prompt has no token or leaves no position, or ``num_texts`` cannot be had.
    """
    longest = max(map(len, prompts))
    if min(map(len, prompts)) < 1:
        raise ValueError("a prompt has no token; a text cannot begin with nothing")
    if longest >= generator.max_positions:
        raise ValueError(f"a prompt has {longest} tokens, and the model only {generator.max_positions} positions")
    if num_texts > 1 and not config.sample and num_texts > config.num_beams:
        raise ValueError(f"num_texts is {num_texts}; it must be at most num_beams, {config.num_beams}, or sample given")
    if config.num_beams > 1:
        return _beam_search(generator, prompts, config, num_texts)
    drawn = [DrawKey(*key, number) for key in keys or [(0, 0)] * len(prompts) for number in range(num_texts)]
    tokens = _one_by_one(generator, prompts, config, num_texts, drawn)
    texts = [Generated(_until(row, generator.eos)) for row in tokens.tolist()]
    return [texts[first : first + num_texts] for first in range(0, len(texts), num_texts)]


def _one_by_one(
    generator: Generator, prompts: Sequence[Ids], config: DecodingConfig, num_texts: int, keys: Sequence[DrawKey]
) -> Tensor:
    """Greedy decoding and sampling: [S * num_texts, steps] tokens, those behind the end are the one that ends."""
    device, limits = generator.device, _limits(generator, prompts, config, num_texts)
    stepper = Stepper(generator, prompts, config.max_new_tokens)
    logits = stepper.first()
    owners = torch.arange(len(prompts), device=device).repeat_interleave(num_texts)
    seen = _seen(generator, prompts, config, logits.shape[1])
    if num_texts > 1:
        logits = logits[owners]
        stepper.select(owners)
        if seen:
            seen.select(owners)
    uniforms = _uniforms(keys, config.max_new_tokens).to(device) if config.sample else None
    over, rows, found = torch.zeros(len(owners), dtype=torch.bool, device=device), torch.arange(len(owners)), []
    for step in range(config.max_new_tokens):
        scores = seen.penalise(logits, config.repetition_penalty) if seen else logits
        chosen = scores.argmax(-1) if uniforms is None else draw(warp(scores, config), uniforms[:, step])
        chosen = torch.where(over, generator.eos, chosen)
        found.append(chosen)
        over = over | (chosen == generator.eos) | (step + 1 >= limits)
        if step + 1 == config.max_new_tokens or all_ranks(bool(over.all()), device):
            break
        if seen:
            seen.add(rows.to(device), chosen)
        logits = stepper.next(chosen)
    return torch.stack(found, 1)


def _beam_search(
    generator: Generator, prompts: Sequence[Ids], config: DecodingConfig, num_texts: int
) -> list[list[Generated]]:
    """Beam search as transformers 5 does it; at most ``num_beams`` texts of each prompt."""
    device, width = generator.device, config.num_beams
    stepper = Stepper(generator, prompts, config.max_new_tokens)
    logits = stepper.first()
    owners = torch.arange(len(prompts), device=device).repeat_interleave(width)
    seen = _seen(generator, prompts, config, logits.shape[1])
    stepper.select(owners)
    if seen:
        seen.select(owners)
    logits = logits[owners]
    beams = Beams(_limits(generator, prompts, config), generator.eos, config)
    for step in range(config.max_new_tokens):
        scores = logits.log_softmax(-1)
        if seen:
            scores = seen.penalise(scores, config.repetition_penalty)
        parents, tokens = beams.advance(scores, step)
        if step + 1 == config.max_new_tokens or all_ranks(beams.over(), device):
            break
        stepper.select(parents)
        if seen:
            seen.select(parents)
            seen.add(torch.arange(len(tokens), device=device), tokens)
        logits = stepper.next(tokens)
    return [
        [Generated(_until(tokens, generator.eos), score) for tokens, score in best[:num_texts]]
        for best in beams.results()
    ]


def all_ranks(value: bool, device: torch.device) -> bool:
    """Whether a value is true on every rank, which all must call: then they run the model equally often."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized() or world_size() == 1:
        return value
    return int(all_reduce_sum([float(value)], device)[0]) == world_size()


def _limits(generator: Generator, prompts: Sequence[Ids], config: DecodingConfig, num_texts: int = 1) -> Tensor:
    """Most new tokens of each text: [S * num_texts]."""
    room = [min(config.max_new_tokens, generator.max_positions - len(prompt)) for prompt in prompts]
    return torch.tensor(room, device=generator.device).repeat_interleave(num_texts)


def _seen(generator: Generator, prompts: Sequence[Ids], config: DecodingConfig, vocab_size: int) -> SeenTokens | None:
    """The tokens that are repeated if they come again; None where it does not matter."""
    if config.repetition_penalty == 1.0:
        return None
    seen = SeenTokens(len(prompts), vocab_size, generator.device)
    if generator.penalises_prompt:
        owners = np.repeat(np.arange(len(prompts)), [len(prompt) for prompt in prompts])
        tokens = np.concatenate(prompts).astype(np.int64)
        seen.add(torch.from_numpy(owners).to(generator.device), torch.from_numpy(tokens).to(generator.device))
    return seen


def _uniforms(keys: Sequence[DrawKey], steps: int) -> Tensor:
    """Numbers in [0, 1) for each text and step: [S, steps] float64."""
    raw = [philox(key.seed, key.record, key.number, Draw.TOKENS).random_raw(steps) >> np.uint64(11) for key in keys]
    return torch.from_numpy(np.stack(raw).astype(np.float64) * 2.0**-53)


def _until(tokens: Sequence[int], eos: int) -> list[int]:
    """The tokens before the first that ends a text."""
    tokens = list(tokens)
    return tokens[: tokens.index(eos)] if eos in tokens else tokens
