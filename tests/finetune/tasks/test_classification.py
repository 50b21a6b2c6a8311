"""Labels, loss and metrics of classification."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.models.model import build_model
from finetune.config import TASK_NAMES
from finetune.sequences import SequenceBuilder
from finetune.tables import Row, Table
from finetune.tasks.classification import Classification, macro_f1, sorted_labels
from finetune.tasks.registry import TASKS
from preprocess.tokenizer import train_wordpiece
from tests.finetune import tiny

TABLE = Table("file.tsv", ("label", "text_a"), True)


def rows(*labels: str) -> list[Row]:
    return [Row(line, [label, "text"]) for line, label in enumerate(labels, 2)]


def test_the_command_line_knows_every_task():
    assert tuple(TASKS) == TASK_NAMES
    assert all(task.name == name for name, task in TASKS.items())


def test_labels_are_sorted_as_numbers_where_all_are():
    assert sorted_labels(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert sorted_labels(["10", "9", "x"]) == ["10", "9", "x"]
    assert sorted_labels(["1.5", "1.25"]) == ["1.25", "1.5"]
    assert sorted_labels(["01", "1", "0"]) == ["0", "01", "1"]
    assert sorted_labels(["好", "坏", "²"]) == sorted(["好", "坏", "²"])


def test_targets():
    task = Classification.for_training(TABLE, rows("yes", " no", "yes", "may be"))
    assert task.labels == ("may be", "no", "yes") and task.columns == ("text_a",)
    assert task.targets(TABLE, rows("no", "yes")).tolist() == [1, 2]
    assert Classification.for_training(Table("p", ("label", "text_b", "text_a"), True), rows("0", "1")).settings() == {
        "pair": True
    }


def test_refusals():
    with pytest.raises(ValueError, match=r"file\.tsv: all 2 examples have the label 'a'; two are needed"):
        Classification.for_training(TABLE, rows("a", "a"))
    with pytest.raises(ValueError, match=r"file\.tsv, line 3: the label is empty"):
        Classification.for_training(TABLE, rows("a", " "))
    task = Classification([str(number) for number in range(30)], pair=False)
    with pytest.raises(
        ValueError, match=r"line 3: the label 'x' is not in the training file, which has 0, .*19, \.\.\."
    ):
        task.targets(TABLE, rows("1", "x"))


def brute_force_f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    scores = []
    for label in set(predicted.tolist()) | set(targets.tolist()):
        right = sum(p == t == label for p, t in zip(predicted, targets, strict=True))
        precision = right / max(1, sum(p == label for p in predicted))
        recall = right / max(1, sum(t == label for t in targets))
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("num_labels", [2, 3, 7])
def test_macro_f1(num_labels):
    generator = np.random.default_rng(num_labels)
    for size in (1, 5, 41):
        predicted, targets = generator.integers(0, num_labels, (2, size))
        assert macro_f1(predicted, targets, num_labels) == pytest.approx(brute_force_f1(predicted, targets))
    assert macro_f1(np.array([0, 0]), np.array([0, 0]), num_labels) == 1.0  # classes that do not occur count nothing


@pytest.mark.parametrize("fields", [tiny.BERT, tiny.GPT2], ids=["bert", "gpt2"])
def test_loss_measure_and_answers_agree(fields):
    tokenizer = train_wordpiece(tiny.WORDS * 3, vocab_size=150)
    arch = ArchConfig(vocab_size=tokenizer.vocab_size, init_std=0.3, **fields)
    task = Classification(("a", "b", "c"), pair=False)
    model = build_model(arch, {task.name: task.make_head(arch)}, seed=2).eval()
    builder = SequenceBuilder(tokenizer, arch, 32)
    sequences, _ = builder.build([tiny.sentence(number, 1 + number) for number in range(7)])
    targets = np.array([0, 1, 2, 0, 1, 2, 0])
    batch = task.with_targets(builder.pack(sequences), targets)
    with torch.no_grad():
        logits = torch.cat([task.logits(model, builder.pack([sequence])) for sequence in sequences]).double()
        term = task.losses(model, batch, with_accuracy=True)[task.name]
        measured = task.measure(model, batch)
        answers = task.answers(model, batch, probabilities=True)
    losses = -torch.log_softmax(logits, -1)[torch.arange(7), torch.from_numpy(targets)]
    assert float(term.loss_sum) == pytest.approx(float(losses.sum()), rel=1e-5) and term.num_targets == 7
    figures = task.figures(measured, targets)
    right = (logits.argmax(-1).numpy() == targets).sum()
    assert figures["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert figures["accuracy"] == pytest.approx(right / 7) and int(term.correct) == right
    assert [cells[0] for cells in answers] == [task.labels[index] for index in logits.argmax(-1).tolist()]
    shares = torch.tensor([[float(cell) for cell in cells[1:]] for cells in answers], dtype=torch.float64)
    torch.testing.assert_close(shares, logits.softmax(-1), atol=1e-6, rtol=0)
    assert task.answer_header(True) == ["label", "probability_a", "probability_b", "probability_c"]
    assert task.answer_header(False) == ["label"]
