"""Dropout masks from a counter-based generator, the same in every backend.

Philox4x32-7 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). One call gives eight 16-bit draws, for
eight neighbouring columns of a row; an element is dropped if its draw is below the threshold. A mask is never stored:
forward and backward draw it again from (seed, site, row, column). The same in C++: ``csrc/common/philox.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 1 << 16
DRAWS = 8
ROUNDS = 7
_WORD = (1 << 32) - 1
_ALL = (1 << 64) - 1


def threshold_of(probability: float) -> int:
    """Draws below it drop their element; probabilities are rounded to multiples of 2^-16.

    Raises:
        ValueError: if the probability is not in [0, 1).
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"the dropout probability is {probability}; it must be in [0, 1)")
    return min(round(probability * LEVELS), LEVELS - 1)


def keep_scale(threshold: int) -> float:
    """What kept elements are multiplied by."""
    return LEVELS / (LEVELS - threshold)


def seed_tensor(seed: int, device: torch.device | str = "cpu") -> Tensor:
    """A seed as the operations take it: [1] int64 with the 64 bits of a number, in the memory of a device.

    It is a tensor so that a compiled or captured graph draws new masks each time it runs.
    """
    bits = seed & _ALL
    return torch.tensor([bits - (1 << 64) if bits >> 63 else bits], dtype=torch.int64, device=device)


def draws(seed: Tensor, site: int, rows: int, width: int) -> Tensor:
    """The draws of a matrix: [rows, width] int64 in [0, 65536), on the device of the seed.

    Args:
        seed: [1] int64.
        site: number of the call in the model, 32 bits.
        rows: counted from 0.
        width: columns.
    """
    groups, device = -(-width // DRAWS), seed.device
    row = torch.arange(rows, device=device)[:, None]
    group = torch.arange(groups, device=device)[None, :]
    zero = torch.zeros(rows, groups, dtype=torch.int64, device=device)
    counter = [zero + group, zero + (row & _WORD), zero + (row >> 32), zero + (site & _WORD)]
    key = [seed & _WORD, (seed >> 32) & _WORD]
    for _ in range(ROUNDS):
        low, high = _multiply(counter[0], 0xD2511F53), _multiply(counter[2], 0xCD9E8D57)
        counter = [high[1] ^ counter[1] ^ key[0], high[0], low[1] ^ counter[3] ^ key[1], low[0]]
        key = [(key[0] + 0x9E3779B9) & _WORD, (key[1] + 0xBB67AE85) & _WORD]
    words = torch.stack(counter, dim=-1)  # [rows, groups, 4]
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1)  # [rows, groups, 4, 2]
    return halves.reshape(rows, groups * DRAWS)[:, :width]


def _multiply(factor: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Low and high word of the product of 32-bit words, in int64 that would overflow if it were whole."""
    low = factor * (constant & 0xFFFF)  # below 2^48
    high = factor * (constant >> 16)  # below 2^48
    total = low + ((high & 0xFFFF) << 16)  # below 2^49
    return total & _WORD, ((total >> 32) + (high >> 16)) & _WORD


def keep_mask(seed: Tensor, site: int, rows: int, width: int, threshold: int) -> Tensor:
    """Which elements stay: [rows, width] bool."""
    return draws(seed, site, rows, width) >= threshold


def drop(values: Tensor, threshold: int, seed: Tensor | None, site: int) -> Tensor:
    """Dropout of a matrix, [R, W], in its type; ``values`` itself at threshold 0."""
    if not threshold:
        return values
    assert seed is not None
    rows, width = values.shape
    return values * keep_mask(seed, site, rows, width, threshold).to(values.dtype) * keep_scale(threshold)


def checked_threshold(probability: float, seed: Tensor | None, device: torch.device) -> int:
    """``threshold_of`` a probability, for a call with this seed.

    Raises:
        ValueError: if the probability is not in [0, 1), or dropout has no seed on the device.
    """
    threshold = threshold_of(probability)
    if not threshold:
        return threshold
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != device:
        given = f"{seed.dtype} {list(seed.shape)} on {seed.device}" if isinstance(seed, Tensor) else repr(seed)
        raise ValueError(f"the dropout seed is {given}; it must be [1] int64 on {device}: kernels.philox.seed_tensor")
    return threshold
