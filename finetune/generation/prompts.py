"""Prompts and what follows them as token sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from finetune.features.sequences import SequenceBuilder, TokenSequence, truncate_longest_first
from finetune.generation.stepping import Ids
from preprocess.tokenizer import Tokenizer


class Continued(NamedTuple):
    """A prompt, with what follows it where that is known.

    Attributes:
        sequence: the prompt, and what follows it but for the last token; the second part begins behind the prompt.
        labels: tokens that follow, with the one that ends a text; without it where the text was cut. None: not known.
        truncated: whether a text was cut.
    """

    sequence: TokenSequence
    labels: Ids | None
    truncated: bool


@dataclass(frozen=True)
class PromptLayout:
    """Which special tokens are put round a prompt.

    Attributes:
        begin: roles of the tokens before it; those that the vocabulary lacks are left out.
        end: roles of the tokens behind it.
        keeps_end: whether a long prompt loses its beginning, rather than its end.
    """

    begin: tuple[str, ...]
    end: tuple[str, ...]
    keeps_end: bool


class PromptBuilder:
    """Tokenizes prompts and what follows them, and cuts what is too long."""

    def __init__(self, builder: SequenceBuilder, layout: PromptLayout) -> None:
        tokenizer, arch = builder.tokenizer, builder.arch
        self.tokenizer, self.layout = tokenizer, layout
        self.max_length, self.max_positions = builder.max_length, arch.max_positions
        ids = tokenizer.special_ids
        self._begin, self._end = (
            np.array([ids[role] for role in roles if role in ids], tokenizer.dtype)
            for roles in (layout.begin, layout.end)
        )
        self._eos = np.array([ids["eos"]], tokenizer.dtype)

    def with_answers(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Continued]:
        """Prompts with what follows them, in at most ``max_length`` tokens; the longer of the two is cut first."""
        first, second = _encode(self.tokenizer, prompts), _encode(self.tokenizer, answers)
        room = self.max_length - len(self._begin) - len(self._end)
        lengths, lengths_of_answers = (np.array([len(ids) for ids in texts], np.int64) for texts in (first, second))
        kept, kept_answers = truncate_longest_first(lengths, lengths_of_answers, room)
        kept = np.minimum(kept, self.max_positions - 1 - len(self._begin) - len(self._end))  # a place for one token
        return [
            self._continued(prompt, answer, int(most), int(most_answer))
            for prompt, answer, most, most_answer in zip(first, second, kept, kept_answers, strict=True)
        ]

    def _continued(self, prompt: Ids, answer: Ids, most: int, most_answer: int) -> Continued:
        whole = len(answer) <= most_answer
        labels = np.concatenate([answer, self._eos]) if whole else answer[:most_answer]
        start = self._prompt(prompt, most)
        cut = not whole or len(prompt) > most
        return Continued(TokenSequence(np.concatenate([start, labels[:-1]]), len(start)), labels, cut)

    def alone(self, prompts: Sequence[str], max_new_tokens: int) -> list[Continued]:
        """Prompts that are to be continued; they leave positions for what follows, at most half of the model's."""
        room = min(self.max_length, self.max_positions - min(max_new_tokens, self.max_positions // 2))
        most = room - len(self._begin) - len(self._end)
        found = []
        for ids in _encode(self.tokenizer, prompts):
            start = self._prompt(ids, most)
            found.append(Continued(TokenSequence(start, len(start)), None, len(ids) > most))
        return found

    def _prompt(self, ids: Ids, most: int) -> Ids:
        kept = ids[max(0, len(ids) - most) :] if self.layout.keeps_end else ids[:most]
        return np.concatenate([self._begin, kept, self._end])


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    ids, counts = tokenizer.encode(texts)
    return np.split(ids, np.cumsum(counts)[:-1])
