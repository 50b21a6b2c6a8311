"""A conditional random field over labels (Lafferty et al. 2001), computed by the library pytorch-crf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from kernels.cross_entropy import IGNORE_INDEX

Float32 = NDArray[np.float32]
PARAMETERS = ("start_transitions", "end_transitions", "transitions")  # the library's names, in the order of Transitions
DECODED_AT_ONCE = 64

# S sequences, T their most labels, M targets, L labels


class Transitions(NamedTuple):
    """Scores of a label at the start [L] and at the end [L], and of a label behind another [L, L] (from, to)."""

    start: Any
    end: Any
    between: Any


class CrfHead(nn.Module):
    """The transition scores, and the likelihood of labels with them, in fp32."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(num_labels))
        self.end = nn.Parameter(torch.zeros(num_labels))
        self.between = nn.Parameter(torch.zeros(num_labels, num_labels))

    def forward(self, emissions: Tensor | None = None, labels: Tensor | None = None, mask: Tensor | None = None) -> Any:
        """Log-likelihoods [S] of labels, or the transition scores themselves.

        All of it is here, because at ZeRO stage 3 the parameters are whole only in their module's forward.

        Args:
            emissions: [S, T, L], scores of the labels; None: return ``Transitions``.
            labels: [S, T] int64.
            mask: [S, T] bool, the first of each sequence True.
        """
        own = Transitions(self.start.float(), self.end.float(), self.between.float())
        if emissions is None:
            return Transitions(*(tensor.clone() for tensor in own))
        return log_likelihood(own, emissions.float(), labels, mask)


def log_likelihood(transitions: Transitions, emissions: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
    """Of each sequence [S]; see ``CrfHead.forward``."""
    parameters = dict(zip(PARAMETERS, transitions, strict=True))
    options = {"mask": mask, "reduction": "none"}
    result: Tensor = functional_call(library_crf(len(transitions.start)), parameters, (emissions, labels), options)
    return result


@torch.no_grad()
def most_probable(transitions: Transitions, emissions: Sequence[Float32]) -> list[list[int]]:
    """The most probable labels of sequences, by Viterbi's algorithm.

    Args:
        transitions: arrays.
        emissions: of each sequence [T, L].
    """
    crf = library_crf(len(transitions.start))
    for name, array in zip(PARAMETERS, transitions, strict=True):
        setattr(crf, name, nn.Parameter(torch.as_tensor(array, dtype=torch.float32)))
    results: list[list[int]] = [[] for _ in emissions]
    order = sorted((number for number, scores in enumerate(emissions) if len(scores)), key=lambda n: len(emissions[n]))
    for first in range(0, len(order), DECODED_AT_ONCE):
        numbers = order[first : first + DECODED_AT_ONCE]
        scores = nn.utils.rnn.pad_sequence([torch.from_numpy(emissions[n]) for n in numbers], batch_first=True)
        lengths = torch.tensor([len(emissions[n]) for n in numbers])
        mask = torch.arange(scores.shape[1]) < lengths[:, None]
        for number, labels in zip(numbers, crf.decode(scores, mask), strict=True):
            results[number] = labels
    return results


def library_crf(num_labels: int) -> Any:
    """The library's module without values, which draws no random numbers."""
    import torchcrf

    with torch.device("meta"):
        return torchcrf.CRF(num_labels, batch_first=True)


def padded(index: Tensor, labels: Tensor, boundaries: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Where the targets of a packed batch go in a table of S sequences and T places.

    Args:
        index: [M] int64, tokens in the packed batch, those of a sequence in their order.
        labels: [M] int64; those that are IGNORE_INDEX go nowhere, and what follows moves up.
        boundaries: [S + 1] of the sequences' tokens.
        longest: T.

    Returns:
        [M] int64, places in the flat table [S * T], S * T for nowhere; [S, T] bool, which places are filled.
    """
    num_sequences = len(boundaries) - 1
    known = labels != IGNORE_INDEX
    sequence = torch.searchsorted(boundaries, index.to(boundaries.dtype), right=True) - 1  # [M]
    sequence = sequence.where(known, num_sequences)
    counts = torch.zeros(num_sequences + 1, dtype=torch.int64, device=index.device)
    counts = counts.index_add(0, sequence, torch.ones_like(sequence))  # [S + 1]
    before = counts.cumsum(0) - counts  # known targets of earlier sequences
    place = known.cumsum(0) - 1 - before[sequence]  # [M]
    flat = (sequence * longest + place).where(known, num_sequences * longest)
    filled = torch.arange(longest, device=index.device) < counts[:-1, None]  # [S, T]
    return flat, filled


def crf_loss(
    head: nn.Module, logits: Tensor, index: Tensor, labels: Tensor, boundaries: Tensor, longest: int
) -> Tensor:
    """Minus the log-likelihood of a packed batch's labels, summed, scalar fp32.

    Args:
        head: a ``CrfHead``.
        logits: [M, L].
        index: see ``padded``.
        labels: see ``padded``.
        boundaries: see ``padded``.
        longest: see ``padded``.
    """
    flat, filled = padded(index, labels, boundaries, longest)
    num_sequences, num_labels = len(filled), logits.shape[-1]
    size = num_sequences * longest
    emissions = logits.new_zeros(size + 1, num_labels, dtype=torch.float32).index_copy(0, flat, logits.float())
    tags = labels.new_zeros(size + 1).index_copy(0, flat, labels.clamp(min=0))
    mask = filled.clone()
    mask[:, 0] = True  # as the library wants it; what is empty counts for nothing below
    likelihoods: Tensor = head(
        emissions[:-1].view(num_sequences, longest, num_labels), tags[:-1].view(num_sequences, longest), mask
    )  # [S]
    return -likelihoods.masked_fill(~filled[:, 0], 0.0).sum()


def check_library() -> None:
    """ValueError saying what to install where the library is missing."""
    try:
        import torchcrf  # noqa: F401
    except ImportError:
        raise ValueError(
            "token_classification.crf needs the package pytorch-crf: pip install pytorch-crf; or leave it out"
        ) from None
