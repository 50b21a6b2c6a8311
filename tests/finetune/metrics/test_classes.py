"""Metrics of classes and their weights, beside scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.metrics.classes import class_figures, several_figures
from finetune.training.class_weights import class_weight_problems, class_weights


@pytest.mark.parametrize("num_labels", [2, 3, 7])
def test_figures_of_classes(num_labels):
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(num_labels)
    for size in (1, 5, 41, 200):
        predicted, targets = generator.integers(0, num_labels, (2, size))
        found = class_figures(predicted, targets, num_labels)
        expected = {
            "accuracy": metrics.accuracy_score(targets, predicted),
            "macro_f1": metrics.f1_score(targets, predicted, average="macro"),
            "micro_f1": metrics.f1_score(targets, predicted, average="micro"),
            "matthews": metrics.matthews_corrcoef(targets, predicted),
        }
        if num_labels == 2:
            expected["f1"] = metrics.f1_score(targets, predicted, zero_division=0)
        assert found == pytest.approx(expected)
    ones = np.ones(3, np.int64)
    assert class_figures(ones, ones, num_labels)["macro_f1"] == 1.0  # classes that do not occur count nothing


def test_figures_of_several_labels():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(3)
    predicted, targets = generator.random((2, 30, 5)) < 0.4
    assert several_figures(predicted, targets) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(targets, predicted),
            "macro_f1": metrics.f1_score(targets, predicted, average="macro"),
            "micro_f1": metrics.f1_score(targets, predicted, average="micro"),
        }
    )
    nothing = np.zeros((2, 3), bool)
    assert several_figures(nothing, nothing) == {"accuracy": 1.0, "macro_f1": 0.0, "micro_f1": 0.0}


def test_balanced_weights_are_those_of_sklearn():
    utils = pytest.importorskip("sklearn.utils.class_weight")
    targets = np.array([0, 0, 0, 0, 1, 2, 2])
    counts = np.bincount(targets).astype(float)
    found = class_weights("balanced", ["a", "b", "c"], counts)
    assert found == pytest.approx(utils.compute_class_weight("balanced", classes=np.arange(3), y=targets))
    assert float(found @ counts) == pytest.approx(counts.sum())


def test_weights_by_label():
    counts = np.array([6.0, 2.0, 0.0])
    found = class_weights({"b": 3.0}, ["a", "b", "c"], counts)
    assert found == pytest.approx(np.array([1, 3, 1]) * 8 / 12)
    assert class_weights({0: 3.0}, ["0", "1"], counts[:2]).tolist() == pytest.approx([1.2, 0.4])  # type: ignore
    assert class_weights("none", ["a", "b"], counts[:2]) is None
    assert np.isfinite(class_weights("balanced", ["a", "b", "c"], counts)).all()
    with pytest.raises(ValueError, match="class_weights names 'yess'; there are the labels no, yes; did you mean yes"):
        class_weights({"yess": 2.0}, ["no", "yes"], counts[:2])
    with pytest.raises(ValueError, match="weight 0 to all training examples"):
        class_weights({"a": 0.0}, ["a", "b"], np.array([3.0, 0.0]))


def test_problems_of_weights():
    assert class_weight_problems("balanced") == class_weight_problems({"a": 2.0}) == []
    (problem,) = class_weight_problems("balance")
    assert "must be none, balanced, or the weights by label" in problem
    (problem,) = class_weight_problems({False: 1.0})  # type: ignore[dict-item]  # what YAML makes of no
    assert "put quotes around it" in problem
    (problem,) = class_weight_problems({"a": -1.0, "b": float("nan")})
    assert problem.startswith("class_weights has a: -1.0, b: nan")
