"""Labels, loss and metrics of classification."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.models.model import build_model
from finetune.config.tasks import TASK_NAMES, ClassificationConfig
from finetune.features.sequences import SequenceBuilder
from finetune.readers.tables import Row, Table
from finetune.tasks.base import Example
from finetune.tasks.classification import Classification, sorted_labels
from finetune.tasks.registry import TASKS
from preprocess.tokenizer import train_wordpiece
from tests.finetune import tiny

TABLE = Table("file.tsv", ("label", "text_a"), True, ("label", "text_a"))


def for_training(table: Table, rows: list[Row]) -> Classification:
    return Classification.for_training(table, rows, ClassificationConfig())


def rows(*labels: str) -> list[Row]:
    return [Row(line, [label, "text"]) for line, label in enumerate(labels, 2)]


def test_the_command_line_knows_every_task():
    assert tuple(TASKS) == TASK_NAMES
    assert all(task.kind == name for name, task in TASKS.items())


def test_labels_are_sorted_as_numbers_where_all_are():
    assert sorted_labels(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert sorted_labels(["10", "9", "x"]) == ["10", "9", "x"]
    assert sorted_labels(["1.5", "1.25"]) == ["1.25", "1.5"]
    assert sorted_labels(["01", "1", "0"]) == ["0", "01", "1"]
    assert sorted_labels(["好", "坏", "²"]) == sorted(["好", "坏", "²"])


def test_targets():
    task = for_training(TABLE, rows("yes", " no", "yes", "may be"))
    assert task.labels == ("may be", "no", "yes") and task.columns == ("text_a",)
    assert task.targets(TABLE, rows("no", "yes")) == [1, 2]
    names = ("label", "text_b", "text_a")
    assert for_training(Table("p", names, True, names), rows("0", "1")).settings() == {"pair": True}


def test_refusals():
    with pytest.raises(ValueError, match=r"file\.tsv: all 2 examples have the label 'a'; two are needed"):
        for_training(TABLE, rows("a", "a"))
    with pytest.raises(ValueError, match=r"file\.tsv, line 3: the label is empty"):
        for_training(TABLE, rows("a", " "))
    task = Classification([str(number) for number in range(30)], pair=False)
    with pytest.raises(
        ValueError, match=r"line 3: the label 'x' is not in the training file, which has 0, .*19, \.\.\."
    ):
        task.targets(TABLE, rows("1", "x"))


def test_the_label_of_a_first_line_that_no_other_line_has():
    def train(first: str, *others: str, has_header: bool = False) -> Classification:
        table = Table("file.tsv", ("text_a", "label"), has_header, ("x" if has_header else "review", first))
        cells = [["review", first], *(["text", label] for label in others)]
        return for_training(table, [Row(line, row) for line, row in enumerate(cells, 1)])

    with pytest.raises(
        ValueError,
        match=r"file\.tsv, line 1: no other line has the label 'sentiment'; line 1 \('review\\tsentiment'\) looks "
        r"like the names.*: --columns text_a=review,label=sentiment; if it is an example, put a line with the names",
    ):
        train("sentiment", "0", "1", "0", "1")
    with pytest.raises(ValueError, match="no other line has the label 'class'"):
        train("class", "good", "bad", "good")
    with pytest.raises(ValueError, match="If it is, leave out --columns; if it is an example"):
        train("label", "0", "1", "0")
    assert train("2", "0", "1", "0").labels == ("0", "1", "2")  # no name of a column is an integer among integers
    assert train("good", "bad", "good").labels == ("bad", "good")
    assert train("fair", "bad", "good", has_header=True).labels == ("bad", "fair", "good")


def test_a_class_for_every_row():
    texts = [[f"text {number}", str(number % 2)] for number in range(30)]
    rows = [Row(line, row) for line, row in enumerate(texts, 2)]
    for has_header, option in ((False, "text_a,label"), (True, "text_a=label,label=text_a")):
        table = Table(
            "file.tsv", ("label", "text_a"), has_header, ("label", "text_a") if has_header else tuple(texts[0])
        )
        with pytest.raises(
            ValueError,
            match=r"file\.tsv: 30 classes for 30 examples; column 1 of 2 was taken as the label.*"
            rf"say with --columns .*, such as --columns {option}; if it is right, leave out the classes",
        ):
            for_training(table, rows)
    table = Table("file.tsv", ("text_a", "label"), True, ("text_a", "label"))
    many = [Row(line, ["some text", str(line)]) for line in range(21)]
    with pytest.raises(ValueError, match=r"column 2 of 2 was taken as the label.*which column holds the labels; if"):
        for_training(table, many)
    assert len(for_training(table, many[:20]).labels) == 20
    assert len(for_training(table, many * 2).labels) == 21


@pytest.mark.parametrize("fields", [tiny.BERT, tiny.GPT2], ids=["bert", "gpt2"])
def test_loss_measure_and_answers_agree(fields):
    tokenizer = train_wordpiece(tiny.WORDS * 3, vocab_size=150)
    arch = ArchConfig(vocab_size=tokenizer.vocab_size, init_std=0.3, **fields)
    task = Classification(("a", "b", "c"), pair=False)
    model = build_model(arch, {task.name: task.make_head(arch)}, seed=2).eval()
    builder = SequenceBuilder(tokenizer, arch, 32)
    sequences, _ = builder.build([tiny.sentence(number, 1 + number) for number in range(7)])
    targets = np.array([0, 1, 2, 0, 1, 2, 0])
    examples = [Example((sequence,), target) for sequence, target in zip(sequences, targets, strict=True)]
    batch = task.collate(builder, examples)
    with torch.no_grad():
        logits = torch.cat([task.logits(model, builder.pack([sequence])) for sequence in sequences]).double()
        term = task.losses(model, batch, with_accuracy=True)[task.name]
        outputs = task.outputs(model, batch, examples)
    answers = task.answers(outputs, examples, [], probabilities=True)
    losses = -torch.log_softmax(logits, -1)[torch.arange(7), torch.from_numpy(targets)]
    assert float(term.loss_sum) == pytest.approx(float(losses.sum()), rel=1e-5) and term.num_targets == 7
    figures = task.figures(outputs, examples, [])
    right = (logits.argmax(-1).numpy() == targets).sum()
    assert figures["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert figures["accuracy"] == pytest.approx(right / 7) and int(term.correct) == right
    assert [answer["label"] for answer in answers] == [task.labels[index] for index in logits.argmax(-1).tolist()]
    shares = torch.tensor([list(answer.values())[1:] for answer in answers], dtype=torch.float64)
    torch.testing.assert_close(shares, logits.softmax(-1), atol=1e-6, rtol=0)
    assert task.answer_columns(True) == ["label", "probability_a", "probability_b", "probability_c"]
    assert task.answer_columns(False) == ["label"]
