"""Precision, recall and F1 of spans, by seqeval."""

from __future__ import annotations

from collections.abc import Sequence


def check_seqeval() -> None:
    """ValueError saying what to install where the library is missing."""
    try:
        import seqeval  # noqa: F401
    except ImportError:
        raise ValueError("token_classification measures spans with the package seqeval: pip install seqeval") from None


def span_scores(gold: Sequence[list[str]], predicted: Sequence[list[str]]) -> dict[str, float]:
    """Precision, recall and F1 of spans with their types over all sentences of BIO labels, by seqeval."""
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        list(gold), list(predicted), average="micro", zero_division=0
    )
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
