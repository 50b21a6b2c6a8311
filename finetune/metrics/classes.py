"""Metrics of classes, from the counts of right and predicted ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

# n examples, C classes


def class_figures(predicted: Int64, targets: Int64, num_labels: int) -> dict[str, float]:
    """Accuracy, macro and micro F1, Matthews' coefficient, and for two classes F1 of the second.

    Args:
        predicted: [n] numbers of classes.
        targets: [n].
        num_labels: C.
    """
    pairs = targets * num_labels + predicted
    confusion = np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)  # [right, predicted]
    right, in_targets, in_predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    figures = {
        "accuracy": float(right.sum() / max(1, len(targets))),
        "macro_f1": macro_f1(right, in_predicted, in_targets),
        "micro_f1": micro_f1(right, in_predicted, in_targets),
        "matthews": matthews(confusion),
    }
    if num_labels == 2:
        figures["f1"] = micro_f1(right[1:], in_predicted[1:], in_targets[1:])
    return figures


def several_figures(predicted: NDArray[np.bool_], targets: NDArray[np.bool_]) -> dict[str, float]:
    """Where an example has any number of classes: [n, C], [n, C].

    The accuracy is the share of examples of which all classes are right.
    """
    right, in_predicted, in_targets = (predicted & targets).sum(0), predicted.sum(0), targets.sum(0)
    return {
        "accuracy": float((predicted == targets).all(1).mean()),
        "macro_f1": macro_f1(right, in_predicted, in_targets),
        "micro_f1": micro_f1(right, in_predicted, in_targets),
    }


def macro_f1(right: Int64, in_predicted: Int64, in_targets: Int64) -> float:
    """F1, the harmonic mean of precision and recall, averaged over the classes that occur in either: counts [C]."""
    both = in_predicted + in_targets
    occurs = both > 0
    return float((2 * right[occurs] / both[occurs]).mean()) if occurs.any() else 0.0


def micro_f1(right: Int64, in_predicted: Int64, in_targets: Int64) -> float:
    """F1 of all classes together: counts [C]."""
    return float(2 * right.sum() / max(1, in_predicted.sum() + in_targets.sum()))


def matthews(confusion: Int64) -> float:
    """Matthews' correlation of any number of classes (Gorodkin 2004, equation 8): [C, C]; 0 where it is not defined."""
    total, right = float(confusion.sum()), float(confusion.trace())
    in_targets, in_predicted = confusion.sum(1).astype(np.float64), confusion.sum(0).astype(np.float64)
    spread = (total**2 - in_targets @ in_targets) * (total**2 - in_predicted @ in_predicted)
    return (right * total - float(in_targets @ in_predicted)) / float(np.sqrt(spread)) if spread > 0 else 0.0
