"""Numbers for texts, and answers ranked by query."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.config.tasks import RankingConfig, RegressionConfig
from finetune.tasks.ranking import Ranking, ranking_figures
from finetune.tasks.regression import Regression
from finetune.training.labelled import LabelledFile, split_off
from tests.finetune import tiny
from tests.finetune.tasks.sequences import KINDS, examples_of, measured, table, written

PAIRS = [(tiny.sentence(number, 1 + number), tiny.sentence(number + 30, 2 + number % 3)) for number in range(9)]
QUERIES = ("q1", "q2", "q1", "q3", "q1", "q2", "q2", "q3", "q4")
RIGHT = ("0", "1", "1", "0", "0", "0", "1", "0", "1")


@pytest.mark.parametrize("kind", list(KINDS))
def test_regression(kind, tmp_path):
    """The loss and numbers are those of transformers, the correlations scipy's."""
    transformers = pytest.importorskip("transformers")
    stats = pytest.importorskip("scipy.stats")
    scores = np.array([0.5, 3.25, -100.0, 1e-3, 5, 4, 2, 2, 1])  # -100 is a number here, not filler
    file, records = table(
        ["label", "text_a", "text_b"], *([str(score), *pair] for score, pair in zip(scores, PAIRS, strict=True))
    )
    loaded = written(Regression.for_training(file, records, RegressionConfig()), KINDS[kind], tmp_path / "model")
    task, model, builder = loaded.task, loaded.model, loaded.builder
    assert isinstance(task, Regression) and task.columns == ("text_a", "text_b") and task.labels == ()
    examples = examples_of(task, builder, file, records)
    loss, outputs, figures = measured(task, model, builder, examples)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs.config.problem_type == "regression" and theirs.config.num_labels == 1
    numbers, losses = [], []
    for score, pair in zip(scores, PAIRS, strict=True):
        with torch.no_grad():
            inputs = tokenizer(*pair, return_tensors="pt", truncation=True, max_length=24)
            output = theirs(**inputs, labels=torch.tensor([score], dtype=torch.float32))
        numbers.append(float(output.logits))
        losses.append(float(output.loss))
    answers = task.answers(outputs, examples, records, True)
    assert [answer["score"] for answer in answers] == pytest.approx(numbers, abs=1e-4)
    assert loss == pytest.approx(sum(losses), rel=1e-4) and figures["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert figures["pearson"] == pytest.approx(stats.pearsonr(numbers, scores).statistic, abs=1e-4)
    assert figures["spearman"] == pytest.approx(stats.spearmanr(numbers, scores).statistic, abs=1e-4)


def test_refused_numbers():
    file, records = table(["label", "text_a"], ["1.5", "x"], ["many", "y"])
    with pytest.raises(ValueError, match=r"file\.tsv, line 3: the label is 'many'; it must be a number, the score"):
        Regression.for_training(file, records, RegressionConfig())
    file, records = table(["label", "text_a"], ["1.5", "x"], ["1.50", "y"])
    with pytest.raises(ValueError, match=r"file\.tsv: all 2 examples have the label 1.5"):
        Regression.for_training(file, records, RegressionConfig())


def ranking(**fields: str) -> tuple[Ranking, object, list]:
    rows = zip(QUERIES, RIGHT, PAIRS, strict=True)
    file, records = table(["qid", "label", "text_a", "text_b"], *([query, right, *pair] for query, right, pair in rows))
    return Ranking.for_training(file, records, RankingConfig(**fields)), file, records


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_ranking(kind, tmp_path):
    task, file, records = ranking(main_figure="map")
    loaded = written(task, KINDS[kind], tmp_path / "model")
    assert task.main_figure == "map" and isinstance(loaded.task, Ranking)
    examples = examples_of(loaded.task, loaded.builder, file, records)
    loss, outputs, figures = measured(loaded.task, loaded.model, loaded.builder, examples)
    shares = torch.from_numpy(np.array(outputs)).softmax(-1)
    right = torch.tensor([int(label) for label in RIGHT])
    losses = -shares[torch.arange(9), right].log()
    assert loss == pytest.approx(float(losses.sum()), rel=1e-4) and figures["queries"] == 3  # none of q3 is right
    answers = loaded.task.answers(outputs, examples, records, False)
    assert [answer["score"] for answer in answers] == pytest.approx(shares[:, 1].tolist())
    reciprocal, precision = [], []
    for query in ("q1", "q2", "q4"):
        ranked = sorted((n for n in range(9) if QUERIES[n] == query), key=lambda n: -float(shares[n, 1]))
        places = [place for place, n in enumerate(ranked, 1) if right[n]]
        reciprocal.append(1 / places[0])
        precision.append(sum(found / place for found, place in enumerate(places, 1)) / len(places))
    assert figures["mrr"] == pytest.approx(sum(reciprocal) / 3) and figures["map"] == pytest.approx(sum(precision) / 3)


def test_ranking_figures_worked_by_hand():
    queries = ["a", "a", "b", "a", "b", "c"]
    found = ranking_figures(queries, np.array([0.9, 0.5, 0.4, 0.7, 0.4, 1.0]), np.array([0, 1, 0, 1, 1, 0]))
    # a ranks wrong, right, right; b's scores are equal, so that the wrong one is first; c has no right answer
    assert found == pytest.approx({"mrr": (1 / 2 + 1 / 2) / 2, "map": ((1 / 2 + 2 / 3) / 2 + 1 / 2) / 2, "queries": 2})
    assert ranking_figures(["a"] * 4, np.full(4, 0.5), np.array([1, 0, 0, 0]))["mrr"] == 0.25
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(1)
    scores, right = generator.random(40), generator.integers(0, 2, 40)
    right[::10] = 1
    queries = [number // 10 for number in range(40)]
    each = [
        metrics.average_precision_score(right[q * 10 : q * 10 + 10], scores[q * 10 : q * 10 + 10]) for q in range(4)
    ]
    assert ranking_figures(queries, scores, right)["map"] == pytest.approx(np.mean(each))


def test_queries_are_not_divided():
    task, file, records = ranking()
    train, dev = split_off(task, LabelledFile(file, records, task.targets(file, records)), 0.25)
    inside = [{row.cells[0] for row in part.records} for part in (train, dev)]
    assert len(inside[1]) == 1 and inside[0] | inside[1] == set(QUERIES) and not inside[0] & inside[1]
    assert task.notes(file) == []


def test_refused_answers(tmp_path):
    file, records = table(["qid", "label", "text_a", "text_b"], ["1", "2", "x", "y"])
    with pytest.raises(ValueError, match=r"file\.tsv, line 2: the label is '2'; it must be 1 for a right answer and 0"):
        Ranking.for_training(file, records, RankingConfig())
    file, records = table(["qid", "label", "text_a", "text_b"], ["1", "1", "x", "y"])
    with pytest.raises(ValueError, match="all 1 answers have the label 1; 0 and 1 are needed"):
        Ranking.for_training(file, records, RankingConfig())
    path = tiny.write_table(tmp_path / "x.tsv", ["label", "text_a", "text_b"], [("1", "x", "y")])
    from finetune.config.tasks import FileConfig

    with pytest.raises(ValueError, match="no column qid in its first line"):
        Ranking.open_training(str(path), FileConfig(), RankingConfig())
