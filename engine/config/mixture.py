"""Several shard folders mixed by weight: ``a:0.7,b:0.3``. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHARE_UNIT = 10_000


@dataclass(frozen=True)
class WeightedFolder:
    """A shard folder and how many of ``SHARE_UNIT`` rows of a run come from it."""

    path: str
    share: int


def parse_shards(text: str) -> list[WeightedFolder]:
    """Read ``data.shards``: one folder, or several with weights.

    Weights need not add up to 1; they are rounded to multiples of 1/10,000 of the rows.

    Raises:
        ValueError: naming the part that is wrong and what it should look like.
    """
    parts = [text] if Path(text).is_dir() else [part.strip() for part in text.split(",")]
    if len(parts) == 1 and (Path(text).is_dir() or not _split(text)[1]):
        return [WeightedFolder(text, SHARE_UNIT)]
    split = [_split(part) for part in parts]
    paths = [path for path, _ in split]
    places = [Path(path).resolve() for path in paths]
    if twice := next(
        (path for path, place in zip(paths, places, strict=True) if path and places.count(place) > 1), None
    ):
        raise ValueError(f"data.shards names {twice} twice; give each folder once, with one weight")
    weights = [_weight(path, weight) for path, weight in split]
    shares = _shares(weights)
    for path, weight, share in zip(paths, weights, shares, strict=True):
        if share == 0:
            raise ValueError(
                f"data.shards: the weight {weight:g} of {path} is less than 1 row in {SHARE_UNIT:,}; raise it or leave "
                "the folder out"
            )
    return [WeightedFolder(path, share) for path, share in zip(paths, shares, strict=True)]


def _split(part: str) -> tuple[str, str]:
    """Path and weight of ``path:weight``; the weight is empty where there is none."""
    path, colon, weight = part.rpartition(":")
    return (path, weight) if colon and path else (part, "")


def _weight(path: str, text: str) -> float:
    if not path:
        raise ValueError("data.shards has an empty part between two commas; give folders as a:0.7,b:0.3")
    if not text:
        raise ValueError(f"data.shards: {path} has no weight beside other folders; give all as a:0.7,b:0.3")
    try:
        weight = float(text)
    except ValueError:
        raise ValueError(f"data.shards: the weight of {path} is {text!r}; it must be a number, as in a:0.7") from None
    if not 0 < weight < math.inf:
        raise ValueError(f"data.shards: the weight of {path} is {text}; it must be above 0, and finite")
    return weight


def _shares(weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to ``SHARE_UNIT``, by largest remainders; of equal ones the first gets more."""
    exact = [weight / sum(weights) * SHARE_UNIT for weight in weights]
    shares = [math.floor(round(value, 6)) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: (round(shares[number] - exact[number], 6), number))
    for number in by_remainder[: SHARE_UNIT - sum(shares)]:
        shares[number] += 1
    return shares


def source_names(paths: Sequence[str]) -> list[str]:
    """Short names for folders: their own where no two are alike, else whole paths."""
    names = [Path(path).name or path for path in paths]
    return names if len(set(names)) == len(names) else [str(Path(path)) for path in paths]
