"""Every place that draws random numbers, so that no two ever share a stream."""

from __future__ import annotations

import hashlib
from enum import IntEnum


class Draw(IntEnum):
    """Call sites of keyed generators. A number, once given, is never given again: runs under way depend on it."""

    GROUPS = 0
    ROWS = 1
    MASKS = 2
    DROPOUT = 3
    EXAMPLES = 4
    WINDOWS = 5
    PAIRS = 6
    OTHER_TEXT = 7
    WINDOW_DIRECTIONS = 8
    SOURCES = 9
    DEV_SPLIT = 10
    ADAPTERS = 11
    FOLDS = 12
    TOKENS = 13
    WORDS = 14
    TASKS = 15


def stable_seed(*parts: int) -> int:
    """A 63-bit seed from integers, the same on every machine and version."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
