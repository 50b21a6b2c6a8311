"""Soft targets, several labels, class weights and poolings of classification."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from finetune.config.run import FinetuneConfig
from finetune.config.tasks import ClassificationConfig
from finetune.tasks.classification import Classification
from finetune.training.labelled import read_labelled_files
from tests.finetune import tiny
from tests.finetune.tasks.sequences import KINDS, examples_of, measured, parts, table, written

TEXTS = [tiny.sentence(number, 1 + number) for number in range(7)]


def task_of(names: list[str], rows: list[list[str]], **fields: Any) -> tuple[Classification, Any, Any]:
    file, records = table(names, *rows)
    return Classification.for_training(file, records, ClassificationConfig(**fields)), file, records


def logits_of(task: Any, model: Any, builder: Any, examples: Any) -> torch.Tensor:
    """One at a time, [n, C] float64."""
    with torch.no_grad():
        return torch.cat([task.logits(model.eval(), builder.pack(list(e.sequences))) for e in examples]).double()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_soft_targets(kind):
    generator = np.random.default_rng(0)
    shares = generator.dirichlet([1, 1, 1], 7)
    hard = generator.integers(0, 3, 7)
    rows = [
        [str(label), text, *map("{:.6f}".format, share)] for label, text, share in zip(hard, TEXTS, shares, strict=True)
    ]
    names = ["label", "text_a", "probability_2", "probability_0", "probability_1"]
    task, file, records = task_of(names, rows, soft_targets=0.7)
    assert task.labels == ("0", "1", "2") and task.notes(file) == []
    model, builder, _ = parts(task, KINDS[kind])
    examples = examples_of(task, builder, file, records)
    loss, outputs, figures = measured(task, model, builder, examples)
    logits = logits_of(task, model, builder, examples)
    soft = torch.from_numpy(shares[:, [1, 2, 0]])
    mixed = 0.7 * soft + 0.3 * F.one_hot(torch.from_numpy(hard), 3)
    expected = F.cross_entropy(logits, mixed)
    assert loss == pytest.approx(7 * float(expected), rel=1e-4) and figures["loss"] == pytest.approx(
        float(expected), rel=1e-4
    )
    assert figures["accuracy"] == pytest.approx(float((logits.argmax(-1).numpy() == hard).mean()))
    assert task.answers(outputs, examples, records, False)[0] == {"label": str(int(logits[0].argmax()))}


def test_soft_targets_without_labels_and_files_without_soft_targets():
    rows = [[text, "0.25", "0.75"] for text in TEXTS]
    task, file, records = task_of(["text_a", "probability_a", "probability_b"], rows, soft_targets=1.0)
    assert task.labels == ("a", "b") and task.targets(file, records)[0].tolist() == [1, 0.25, 0.75]
    labelled, lines = table(["label", "text_a"], ["a", "x"], ["b", "y"])
    assert [target.tolist() for target in task.targets(labelled, lines)] == [[0, 1, 0], [1, 0, 1]]
    wrong, lines = table(["text_a", "probability_a", "probability_b"], ["x", "0.5", "0.2"])
    with pytest.raises(
        ValueError, match=r"file\.tsv, line 2: the probabilities are '0.5', '0.2'; they must be numbers"
    ):
        task.targets(wrong, lines)
    with pytest.raises(ValueError, match=r"soft_targets is 0.5, which needs a column probability_LABEL for each class"):
        task_of(["label", "text_a"], [["a", "x"], ["b", "y"]], soft_targets=0.5)


CELLS = ["red, green", "", '["blue", "red"]', "green", "red", "blue,red,green", "green , green"]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_several_labels(kind):
    rows = [[cell, text] for cell, text in zip(CELLS, TEXTS, strict=True)]
    task, file, records = task_of(["label", "text_a"], rows, multi_label=True, threshold=0.3)
    assert task.labels == ("blue", "green", "red")
    target = np.array(task.targets(file, records))
    assert target.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 0]]
    model, builder, _ = parts(task, KINDS[kind])
    examples = examples_of(task, builder, file, records)
    loss, outputs, figures = measured(task, model, builder, examples)
    logits = logits_of(task, model, builder, examples)
    expected = float(F.binary_cross_entropy_with_logits(logits, torch.from_numpy(target).double()))
    assert loss / 7 == pytest.approx(expected, rel=1e-4) and figures["loss"] == pytest.approx(expected, rel=1e-4)
    shares = logits.sigmoid()
    answers = task.answers(outputs, examples, records, True)
    for answer, row in zip(answers, shares.tolist(), strict=True):
        names = [label for label, share in zip(task.labels, row, strict=True) if share >= 0.3]
        assert answer["label"] == ",".join(names)
        assert [answer[f"probability_{label}"] for label in task.labels] == pytest.approx(row, abs=1e-5)
    assert set(figures) == {"loss", "accuracy", "macro_f1", "micro_f1"}
    with pytest.raises(
        ValueError, match=r"line 2: the label 'pink' is not in the training file, which has blue, green"
    ):
        task.targets(*table(["label", "text_a"], ["red,pink", "x"]))


@pytest.mark.parametrize("weights", ["balanced", {"yes": 3.0}])
def test_class_weights(weights):
    rows = [["yes" if number in (2, 5) else "no", text] for number, text in enumerate(TEXTS)]
    task, file, records = task_of(["label", "text_a"], rows)
    model, builder, _ = parts(task, tiny.BERT)
    examples = examples_of(task, builder, file, records)
    plain = measured(task, model, builder, examples)
    task.weigh_classes(weights, task.targets(file, records))
    loss, _, figures = measured(task, model, builder, examples)
    by_class = torch.tensor([7 / 10, 7 / 4] if weights == "balanced" else [7 / 11, 21 / 11], dtype=torch.float64)
    right = torch.tensor([int(row[0] == "yes") for row in rows])
    expected = F.cross_entropy(logits_of(task, model, builder, examples), right, by_class, reduction="sum")
    assert loss == pytest.approx(float(expected), rel=1e-4) != plain[0]
    assert figures == plain[2]  # those of evaluation are not weighed


def test_class_weights_of_a_run_and_of_a_task_without_classes(tmp_path):
    train = tiny.write_table(
        tmp_path / "train.tsv", ["label", "text_a"], [("1", "x"), ("2", "y"), ("1", "z"), ("1", "w")]
    )
    config = FinetuneConfig(
        ds_config="", model="", train_file=str(train), dev_file=str(train), class_weights="balanced"
    )
    problems: list[str] = []
    task, _ = read_labelled_files(config, problems)
    assert not problems and task._weights.tolist() == pytest.approx([4 / 6, 2])  # type: ignore[union-attr]
    read_labelled_files(replace(config, task="regression"), problems)
    assert problems == ["class_weights are given, but the task regression has no classes to weigh; remove them"]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_poolings(kind, pooling, tmp_path):
    """A folder with each of them gives the same numbers again; a class of transformers reads the usual one."""
    task = Classification(("a", "b"), False, ClassificationConfig(pooling=pooling))
    model, builder, _ = parts(task, KINDS[kind], 24)
    loaded = written(task, KINDS[kind], tmp_path / "model")
    examples = task.examples(builder, *table(["text_a"], *([text] for text in TEXTS)), None)
    one_by_one = logits_of(task, model, builder, examples)
    torch.testing.assert_close(one_by_one, logits_of(loaded.task, loaded.model, builder, examples))
    other = Classification(("a", "b"), False, ClassificationConfig(pooling="mean" if pooling == "max" else "max"))
    others, _, _ = parts(other, KINDS[kind], 24)
    assert not torch.allclose(one_by_one, logits_of(other, others, builder, examples))
    usual = {"bert": "first", "gpt2": "last"}[kind]
    assert (tmp_path / "model" / "heads.safetensors").exists() == (pooling != usual)


def test_problems_of_the_settings():
    found = ClassificationConfig(
        pooling="middle", multi_label=True, soft_targets=2, threshold=1.0, main_figure="f1"
    ).problems()
    assert len(found) == 5
    assert "classification.pooling is 'middle'; it must be one of first, mean, max, last" in found
    with pytest.raises(ValueError, match=r"main_figure is f1, of the second of two classes, but file\.tsv has 3"):
        task_of(["label", "text_a"], [[label, "x"] for label in "abc"], main_figure="f1")


@pytest.mark.parametrize("kind", list(KINDS))
def test_transformers_has_the_loss_of_several_labels(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    task = Classification(("a", "b", "c"), False, ClassificationConfig(multi_label=True))
    loaded = written(task, KINDS[kind], tmp_path / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    file, records = table(["label", "text_a"], ["a,c", TEXTS[4]])
    examples = examples_of(loaded.task, loaded.builder, file, records)
    _, _, figures = measured(loaded.task, loaded.model, loaded.builder, examples)
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    with torch.no_grad():
        output = theirs(**tokenizer(TEXTS[4], return_tensors="pt", truncation=True, max_length=24), labels=labels)
    assert theirs.config.problem_type == "multi_label_classification"
    assert figures["loss"] == pytest.approx(float(output.loss), rel=1e-4)
