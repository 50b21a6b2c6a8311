"""Questions with choices: the layouts of C3, ChID and SWAG, the loss, and transformers' classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.config.tasks import FileConfig, MultipleChoiceConfig
from finetune.readers.choices import Question, open_choices
from finetune.tasks.multiple_choice import MultipleChoice, choice_texts
from finetune.training.labelled import LabelledFile, split_off
from tests.finetune import tiny
from tests.finetune.tasks.sequences import KINDS, examples_of, measured, written

C3 = [
    [
        ["男：你在哪儿？", "女：在家。"],
        [{"question": "女的在哪儿？", "choice": ["家", "学校", "商店"], "answer": "学校"}],
        "1-1",
    ],
    [["天好。"], [{"question": f"{n}？", "choice": ["好", "坏"], "answer": "好"} for n in range(2)], "1-2"],
]
CHID = [
    {
        "candidates": ["水火不容", "天地人和"],
        "content": ["山上#idiom000001#，水中#idiom000002#。", "金#idiom000003#木"],
    },
    {"candidates": ["日月星辰", "土木"], "content": ["火#idiom000004#"]},
]
CHID_ANSWERS = {"#idiom000001#": 0, "#idiom000002#": 1, "#idiom000003#": 1, "#idiom000004#": 0}


def read(path: Path, **fields: Any) -> list[Question]:
    return list(open_choices(str(path), FileConfig(**fields)).records())


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def test_c3(tmp_path):
    questions = read(write_json(tmp_path / "c3.json", C3))
    assert questions[0] == Question(
        "1-1-1", "男：你在哪儿？ 女：在家。", "女的在哪儿？", ("家", "学校", "商店"), 1, None, 0
    )
    assert [question.group for question in questions] == [0, 1, 1] and questions[2].id == "1-2-2"
    assert choice_texts(questions[1], 32) == [("天好。", "0？ 好", False), ("天好。", "0？ 坏", False)]
    file = open_choices(str(tmp_path / "c3.json"), FileConfig())
    task = MultipleChoice()
    train, dev = split_off(task, LabelledFile(file, questions, task.targets(file, questions)), 0.1)
    assert sorted([len(train.records), len(dev.records)]) == [1, 2]  # two are about one text


def test_chid(tmp_path):
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in CHID)
    (tmp_path / "train.json").write_text(lines, encoding="utf-8")
    file = open_choices(str(tmp_path / "train.json"), FileConfig())
    task = MultipleChoice()
    assert not task.has_answers(file, list(file.records()))
    write_json(tmp_path / "train_answer.json", CHID_ANSWERS)
    questions = list(file.records())
    assert [question.right for question in questions] == [0, 1, 1, 0] and task.has_answers(file, questions)
    assert [question.id for question in questions] == list(CHID_ANSWERS)
    second = questions[1]
    assert (second.context, second.after, second.group) == ("山上……，水中", "。", 1)
    assert choice_texts(second, 40)[1] == ("山上……，水中", "天地人和。", False)
    long = second._replace(context="左" * 50, after="右" * 50)
    assert choice_texts(long, 40)[0] == ("左" * 16, "水火不容" + "右" * 16, True)


def test_the_first_layout_of_chid(tmp_path):
    line = {"groundTruth": ["乙", "甲"], "candidates": [["甲", "乙"], ["甲", "丙"]], "content": "x#idiom#y#idiom#z"}
    (tmp_path / "x.txt").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    questions = read(tmp_path / "x.txt")
    assert [(q.context, q.after, q.choices, q.right) for q in questions] == [
        ("x", "y……z", ("甲", "乙"), 1),
        ("x……y", "z", ("甲", "丙"), 0),
    ]


def test_swag(tmp_path):
    header = ["video-id", "startphrase", "sent1", "sent2", "ending1", "ending0", "ending2", "label"]
    rows = [["v", "s", "A man sits.", "He", "runs.", "eats.", "", "1"], ["v", "s", "B.", "She", "b", "a", "c", "2"]]
    path = tiny.write_table(tmp_path / "swag.tsv", header, rows)
    questions = read(path)
    assert (
        questions[0].choices == ("eats.", "runs.") and questions[0].right == 1 and questions[0].context == "A man sits."
    )
    assert choice_texts(questions[1], 20)[2] == ("B.", "She c", False)
    lines = [
        {"context": "C", "question": "Q", "choices": ["x", "y"], "label": "y"},
        {"context": "D", "choices": ["1", "2"]},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    found = read(tmp_path / "x.jsonl", bad_lines="skip")
    assert [(q.context, q.question, q.choices, q.right) for q in found] == [
        ("C", "Q", ("x", "y"), 1),
        ("D", "", ("1", "2"), None),
    ]


def test_a_number_beside_endings_is_that_of_a_choice(tmp_path):
    rows = [("x", "1", "4", "5", "1"), ("y", "b", "a", "", "a")]
    path = tiny.write_table(tmp_path / "a.tsv", ["context", "ending0", "ending1", "ending2", "label"], rows)
    assert [(q.choices, q.right) for q in read(path)] == [(("1", "4", "5"), 1), (("b", "a"), 1)]


@pytest.mark.parametrize(("told", "right"), [("0", 2), ("7", 1)])  # a number, as 0 is no text; a text
def test_what_a_label_beside_choices_is_the_whole_file_tells(told, right, tmp_path):
    lines = [{"context": "x", "choices": ["1", "2", "3"], "label": label} for label in ("2", told)]
    if told == "7":
        lines[1]["choices"] = ["6", "7", "8"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read(path)[0].right == right
    path.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(ValueError, match=r"line 1: the label '2' can be the number of a choice or the text of one"):
        read(path)


def test_texts_that_are_numbers_in_c3(tmp_path):
    question = {"question": "q", "choice": ["1", "4", "0"], "answer": "1"}
    path = write_json(tmp_path / "a.json", [[["x"], [question, question | {"answer": 1}], "7"]])
    assert [q.right for q in read(path)] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": [["a", "b"]]}, r"line 1: candidates is for 1 blank\(s\), but content has 2"),
        ({"groundTruth": ["a"]}, r"line 1: groundTruth is for 1 blank\(s\), but content has 2"),
    ],
)
def test_blanks_without_candidates_or_answers(changes, message, tmp_path):
    line = {"groundTruth": ["a", "b"], "candidates": [["a", "b"], ["a", "b"]], "content": "x#idiom#y#idiom#z"}
    (tmp_path / "x.txt").write_text(json.dumps(line | changes) + "\n")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[[["x"], [{"question": "q"}], "1"]]', r"a\.json, entry 1: it must be \[\[sentences\]"),
        (
            "a.json",
            '[[["x"], [{"question": "q", "choice": ["a", "b"], "answer": "c"}], "7"]]',
            r"7-1: the answer is 'c'",
        ),
        ("a.json", '[[["x"], [{"question": "q", "choice": ["a"], "answer": "a"}], "7"]]', r"7-1: 1 choice\(s\); two"),
        ("a.json", "[1", "no JSON file"),
        ("a.json", "[]", "holds no questions"),
        (
            "a.jsonl",
            '{"context": "x", "ending0": "", "ending1": "cat", "ending2": "dog", "label": 1}\n',
            "line 1: ending0 is empty, but not what follows",
        ),
        ("a.jsonl", '{"context": "x", "choices": "y"}\n', "choices is 'y'; it must be a JSON list"),
        ("a.tsv", "context\tlabel\nx\t1\n", "its columns are context, label; questions need a context .* and choices"),
        (
            "a.csv",
            "sent1,ending0,ending1,label\nx,a,b,2\n",
            r"line 2: the answer is 2; it must be one of the choices",
        ),
    ],
)
def test_refusals(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_files_and_options(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        open_choices(str(tmp_path / "none"), FileConfig())
    path = write_json(tmp_path / "c3.json", C3)
    with pytest.raises(ValueError, match="has the layout of c3; --columns and --format are for tables: remove them"):
        open_choices(str(path), FileConfig(columns="label=x"))
    table = tiny.write_table(tmp_path / "x.tsv", ["story", "ending0", "ending1", "gold"], [("s", "a", "b", "b")])
    assert read(table, columns="context=story,label=gold")[0].right == 1


def some_questions(count: int) -> list[Question]:
    """Of two to four choices."""
    return [
        Question(
            str(number),
            tiny.sentence(number, 1 + 3 * number),
            tiny.sentence(number + 9, number % 3),
            tuple(tiny.sentence(number * 5 + choice, 1 + choice) for choice in range(2 + number % 3)),
            number % 2,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("kind", list(KINDS))
def test_scores_are_those_of_transformers(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    questions = some_questions(7)
    loaded = written(
        MultipleChoice.for_training(None, questions, MultipleChoiceConfig()), KINDS[kind], tmp_path / "model"
    )  # type: ignore[arg-type]
    task, builder = loaded.task, loaded.builder
    file = type("File", (), {"path": "x"})()
    examples = examples_of(task, builder, file, questions)
    loss, outputs, figures = measured(task, loaded.model, builder, examples, questions)
    assert [len(scores) for scores in outputs] == [2, 3, 4, 2, 3, 4, 2] and any(
        example.truncated for example in examples
    )
    one_by_one = []
    for example in examples:
        with torch.no_grad():
            each = [float(task.scores(loaded.model.eval(), builder.pack([s]))[0]) for s in example.sequences]
        one_by_one.append(np.array(each))
    losses = [np.logaddexp.reduce(scores) - scores[q.right] for scores, q in zip(one_by_one, questions, strict=True)]
    assert loss == pytest.approx(sum(losses), rel=1e-4) and figures["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    right = [scores.argmax() == q.right for scores, q in zip(one_by_one, questions, strict=True)]
    assert figures["accuracy"] == pytest.approx(np.mean(right))
    answer = task.answers(outputs, examples, questions, True)[1]
    best = int(one_by_one[1].argmax())
    assert (answer["id"], answer["label"], answer["answer"]) == ("1", best, questions[1].choices[best])
    assert answer["probabilities"] == pytest.approx(
        np.exp(one_by_one[1] - np.logaddexp.reduce(one_by_one[1])), abs=1e-5
    )
    if kind == "gpt2":
        assert (tmp_path / "model" / "heads.safetensors").is_file()
        return
    theirs = transformers.AutoModelForMultipleChoice.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for question, scores in zip(questions, one_by_one, strict=True):
        texts = choice_texts(question, 24)
        inputs = tokenizer(
            [first for first, _, _ in texts],
            [second for _, second, _ in texts],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=24,
        )
        with torch.no_grad():
            logits = theirs(**{name: tensor[None] for name, tensor in inputs.items()}).logits[0]
        np.testing.assert_allclose(logits.numpy(), scores, atol=1e-4)


def test_a_run_and_its_predictions(bert, tmp_path):
    """C3 by the command line: learned by heart, split, and a test file without answers."""
    content = [
        [[tiny.sentence(n, 3)], [{"question": "水", "choice": ["火", "木 土"], "answer": "火"}], str(n)]
        for n in range(16)
    ]
    train = write_json(tmp_path / "train.json", content)
    for _, (question,), _ in content:
        del question["answer"]
    test = write_json(tmp_path / "test.json", content[:5])
    arguments = tiny.options(
        bert, train, tmp_path / "run", "--task", "multiple_choice", "--test_file", test, "--epochs", "8"
    )
    tiny.finetune(arguments)
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["dev_accuracy"] == 1.0 and found["num_examples"] == {"train": 16, "dev": 16, "test": 5}
    lines = (tmp_path / "run" / "test_predictions.tsv").read_text().splitlines()
    assert lines[0] == "id\tlabel\tanswer" and lines[1] == "0-1\t0\t火" and len(lines) == 6
