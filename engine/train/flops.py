"""Floating-point operations of a training step, for the model-FLOPs utilisation (MFU)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch

# Dense 16-bit peak of one device in TFLOP/s, from the makers' data sheets; the first name found in the device's counts.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "V100": 125.0, "4090": 165.0, "3090": 71.0}


def batch_flops(arch: ArchConfig, batch: PackedBatch) -> float:
    """Multiply-adds of forward and backward, counted as 2 operations each, on the real tokens of a batch.

    Per token 6 * (4 D^2 + 2 D I) per layer; per sequence of length s 12 D s^2 per layer for attention (half of it where
    causal); 6 D V per predicted token, and 6 D^2 for the transform of a masked-language-model head.
    """
    squares = sum(length * length for length in batch.layout.lengths)
    return flops_of(arch, batch.num_tokens, squares, batch.counts)


def flops_of(arch: ArchConfig, num_tokens: float, squares: float, counts: Mapping[str, float]) -> float:
    """The same from a batch's sizes.

    Args:
        arch: the architecture.
        num_tokens: of all sequences.
        squares: sum of the squared lengths of the sequences.
        counts: targets of each term of the loss.
    """
    hidden, layers = arch.hidden_size, arch.num_layers
    dense = 6.0 * layers * (4 * hidden**2 + 2 * hidden * arch.intermediate_size) * num_tokens
    attention = 12.0 * layers * hidden * squares * (0.5 if arch.causal else 1.0)
    return dense + attention + _head_flops(arch, counts)


def _head_flops(arch: ArchConfig, counts: Mapping[str, float]) -> float:
    hidden = arch.hidden_size
    per_target = {"mlm": 6.0 * (hidden**2 + hidden * arch.vocab_size), "lm": 6.0 * hidden * arch.vocab_size}
    return sum(per_target.get(name, 0.0) * count for name, count in counts.items())


def peak_flops(given_tflops: float | None) -> float | None:
    """Peak of one device in FLOP/s: what the user gave, else by the GPU's name; None where it is not known."""
    if given_tflops is not None:
        return given_tflops * 1e12
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak * 1e12 for key, peak in PEAK_TFLOPS.items() if key in name), None)
