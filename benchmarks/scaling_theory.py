"""How many bytes a training step has to send, and how many the calls that DeepSpeed 0.19.8 makes do send.

P parameters, N ranks, A micro-batches a step, c bytes of a gradient's element on its way, w bytes of a weight's.

Ring algorithms (Patarasuk and Yuan 2009) make each rank send, of S bytes that are whole on every rank before or after:
2 (N - 1) / N S in an all-reduce, (N - 1) / N S in a reduce-scatter and in an all-gather. No algorithm sends less on
average. ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, section 7): stages 1 and 2 scatter gradients to their owners
and gather the new weights; stage 3 gathers weights for the forward and again for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FLOAT64, FLOAT32 = 8, 4
GATHERS = "all_gather"
SCATTERS = "reduce_scatter"
REDUCES = "all_reduce"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What decides the bytes of a step.

    Args:
        sizes: number of elements of each parameter.
        groups: parameter groups of the optimizer (with and without weight decay).
        stage: of ZeRO.
        ranks: N.
        accumulation: A.
        gradient_bytes: c.
        weight_bytes: w.
        terms: terms of the loss, whose targets the engine counts over all ranks.
        persistent: stage 3: parameters of at most so many elements stay whole on every rank.
        kept: stage 3: weights gathered in the forward pass stay for the backward pass.
        owners: stages 1 and 2: gradients are reduced to their owners (use_multi_rank_bucket_allreduce false).
    """

    sizes: Sequence[int]
    stage: int
    ranks: int
    groups: int = 2
    accumulation: int = 1
    gradient_bytes: int = FLOAT32
    weight_bytes: int = FLOAT32
    terms: int = 1
    persistent: int = 100_000
    kept: bool = True
    owners: bool = False


@dataclass(frozen=True)
class Payload:
    """Bytes of whole tensors in one step of one rank: at least ``low``, at most ``high`` (padding, norms and flags)."""

    low: int
    high: int

    def holds(self, measured: int) -> bool:
        """Whether a measured number is what theory says."""
        return self.low <= measured <= self.high


def payloads(setting: Setting) -> dict[str, Payload]:
    """Bytes by collective that DeepSpeed and the engine hand to the backend in a step.

    Beside weights and gradients: the engine's count of targets (one float64 for each term, and one for a stop), and
    norms and overflow flags of DeepSpeed, at most eight bytes for each group and micro-batch.
    """
    total, ranks = sum(setting.sizes), setting.ranks
    counts = (setting.terms + 1) * FLOAT64
    flags = 2 * FLOAT64 * (setting.groups + setting.accumulation) if setting.stage else 0
    gradients = total * setting.gradient_bytes * (setting.accumulation if setting.stage >= 2 else 1)
    if setting.stage == 0:
        return {REDUCES: Payload(gradients + counts, gradients + counts)}
    small = Payload(counts, counts + flags)
    if setting.stage == 3:
        gathered = _gathered(setting)
        padding = len(setting.sizes) * (ranks - 1) * setting.accumulation
        return {
            REDUCES: small,
            GATHERS: Payload(gathered, gathered + 2 * padding * setting.weight_bytes),
            SCATTERS: Payload(gradients, gradients + padding * setting.gradient_bytes),
        }
    weights = total * setting.weight_bytes
    gathers = Payload(weights, weights + setting.groups * 2 * ranks * setting.weight_bytes)
    if setting.owners:
        return {REDUCES: small, "reduce": Payload(gradients, gradients), GATHERS: gathers}
    return {REDUCES: Payload(gradients + small.low, gradients + small.high), GATHERS: gathers}


def _gathered(setting: Setting) -> int:
    """Stage 3: bytes of gathered weights: in each micro-batch once or twice; those that stay whole once, at the end."""
    stay = sum(size for size in setting.sizes if size <= setting.persistent)
    rest = sum(setting.sizes) - stay
    return (stay + rest * setting.accumulation * (1 if setting.kept else 2)) * setting.weight_bytes


def least_sent(setting: Setting) -> float:
    """Bytes that each rank must send in a step: ZeRO's own collectives by ring algorithms, without padding."""
    total, share = sum(setting.sizes), ring_share("reduce_scatter", setting.ranks)
    gradients, weights = total * setting.gradient_bytes, total * setting.weight_bytes
    if setting.stage == 0:
        return 2 * share * gradients
    if setting.stage < 3:
        return share * (gradients * (setting.accumulation if setting.stage == 2 else 1) + weights)
    return share * (gradients * setting.accumulation + _gathered(setting))


def ring_share(collective: str, ranks: int) -> float:
    """Bytes sent by a rank, on average over the ranks, for each byte of the whole tensor, by the best algorithm."""
    return (2 if collective == REDUCES else 1) * (ranks - 1) / ranks


def ring_sent(measured: Mapping[str, int], ranks: int) -> float:
    """Bytes sent by a rank, on average, if ring algorithms did collectives of these sizes."""
    return sum(ring_share(name, ranks) * size for name, size in measured.items())


def gloo_sent(measured: Mapping[str, int], ranks: int) -> float:
    """The same by torch's gloo, which does a reduce-scatter as an all-reduce of which each rank keeps its part."""
    return sum(ring_share(REDUCES if name == SCATTERS else name, ranks) * size for name, size in measured.items())


def hidden_share(compute: float, transfer: float, step: float) -> float:
    """Share of the time that could be hidden which was: 0 where work and transfer take turns, 1 where they overlap.

    Args:
        compute: seconds of a step without any transfer.
        transfer: seconds that its bytes take on the link.
        step: seconds of a step over the link.
    """
    shorter = min(compute, transfer)
    if shorter <= 0:
        return math.nan
    return (compute + transfer - step) / shorter


def hidden_of_blocked(free: float, blocked: float, transfer: float) -> float:
    """Share of the transfer that the main thread did not stand still for; independent of how fast it computes.

    Args:
        free: seconds that a step stands in collectives where the link is fast.
        blocked: the same over the slow link.
        transfer: seconds that a step's bytes take on the slow link.
    """
    return 1 - (blocked - free) / transfer
