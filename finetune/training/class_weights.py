"""How much the examples of each class count in the loss of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.config.cli import nearest

Float64 = NDArray[np.float64]
NONE, BALANCED = "none", "balanced"


def class_weights(given: Mapping[str, float] | str, labels: Sequence[str], counts: Float64) -> Float64 | None:
    """The weight of each class, of mean 1 over the training examples.

    Args:
        given: what ``--class_weights`` says: none; balanced, for weights that are inverse to the counts; or weights by
            label, where 1 is for those that are not named.
        labels: [C] the classes.
        counts: [C] training examples of each.

    Returns:
        [C], None for no weights.

    Raises:
        ValueError: if a label is unknown or a weight not possible.
    """
    if given == NONE:
        return None
    weights = np.ones(len(labels))
    if given == BALANCED:
        weights = np.where(counts > 0, counts.sum() / np.maximum(counts, 1), 1.0)
    else:
        assert not isinstance(given, str)
        for label, weight in ((str(label), weight) for label, weight in given.items()):  # YAML reads 0 as a number
            if label not in labels:
                shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
                raise ValueError(f"class_weights names {label!r}; there are the labels {shown}{nearest(label, labels)}")
            weights[labels.index(label)] = weight
    mean = float(weights @ counts / max(counts.sum(), 1))
    if mean <= 0:
        raise ValueError("class_weights gives the weight 0 to all training examples; one must be above 0")
    return weights / mean


def class_weight_problems(given: Mapping[str, float] | str) -> list[str]:
    """What is wrong with ``--class_weights``, as far as it can be seen without the classes."""
    if isinstance(given, str):
        if given in (NONE, BALANCED):
            return []
        return [
            f"class_weights is {given!r}; it must be none, balanced, or the weights by label, such as "
            '\'{"no": 1, "yes": 3.5}\''
        ]
    if any(isinstance(label, bool) for label in given):
        return ["class_weights has a label that YAML reads as true or false; put quotes around it: '{\"no\": 1}'"]
    wrong = [f"{label}: {weight}" for label, weight in given.items() if not 0 <= weight < float("inf")]
    return [f"class_weights has {', '.join(wrong)}; a weight must not be negative"] if wrong else []
