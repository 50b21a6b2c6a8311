"""The files of a run: a dev part of the training file, test files without answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune import predict
from finetune.config.run import FinetuneConfig
from finetune.readers.columns import LABEL
from finetune.readers.tables import Row, Table
from finetune.tasks.classification import Classification
from finetune.training.labelled import LabelledFile, read_labelled_files, split_off
from tests.finetune import tiny

TABLE = Table("file.tsv", ("label", "text_a"), True, ("label", "text_a"))


class Grouped(Classification):
    """Records that begin with the same letter belong together."""

    def groups(self, file: Any, records: Any) -> list[str]:
        return [row.cells[1][0] for row in records]


def labelled(count: int) -> LabelledFile:
    rows = [Row(number, ["a", f"{chr(97 + number % 20)}{number}"]) for number in range(count)]
    return LabelledFile(TABLE, rows, list(range(count)))


@pytest.mark.parametrize(("count", "share", "expected"), [(200, 0.1, 20), (5, 0.1, 1), (3, 0.99, 2), (45, 0.5, 22)])
def test_a_part_is_split_off(count, share, expected):
    file = labelled(count)
    train, dev = split_off(Classification(("a", "b"), pair=False), file, share)
    numbers = [row.line for row in dev.records]
    assert len(numbers) == expected and numbers == sorted(numbers) == list(dev.targets)
    assert sorted([*numbers, *(row.line for row in train.records)]) == list(range(count))
    again = split_off(Classification(("a", "b"), pair=False), labelled(count), share)[1]
    assert [row.line for row in again.records] == numbers
    if count == 200:
        assert numbers != list(range(20)) and max(numbers) > 150 and min(numbers) < 50


def test_groups_stay_together():
    train, dev = split_off(Grouped(("a", "b"), pair=False), labelled(200), 0.1)
    letters = [{row.cells[1][0] for row in part.records} for part in (train, dev)]
    assert len(letters[1]) == 2 and not letters[0] & letters[1] and len(dev.records) == 20


def test_one_record_cannot_be_divided():
    with pytest.raises(ValueError, match="no part can be split off 1 example; give --dev_file"):
        split_off(Classification(("a", "b"), pair=False), labelled(1), 0.1)


def read(config: FinetuneConfig) -> dict[str, LabelledFile]:
    problems: list[str] = []
    _, files = read_labelled_files(config, problems)
    assert not problems, problems
    return files


@pytest.mark.parametrize(
    ("header", "columns", "rows"),
    [
        (["text_a"], None, [("x",), ("y",)]),
        (["text_a", "label"], None, [("x", ""), ("y", "")]),
        (["review"], "label=mark,text_a=review", [("x",), ("y",)]),
        (None, "label,text_a", [("x",), ("y",)]),
    ],
)
def test_test_files_without_answers(header, columns, rows, tmp_path):
    train_header = None if header is None else ["mark", "review"] if columns else ["label", "text_a"]
    train = tiny.write_table(tmp_path / "train.tsv", train_header, tiny.single_rows(20))
    test = tiny.write_table(tmp_path / "test.tsv", header, rows)
    files = read(
        FinetuneConfig(
            ds_config="", model="", train_file=str(train), test_file=str(test), columns=columns, dev_share=0.2
        )
    )
    assert files["test"].targets is None and len(files["test"].records) == 2
    assert (len(files["train"].records), len(files["dev"].records)) == (16, 4)


def test_a_run_predicts_what_has_no_answers(bert, tmp_path):
    train = tiny.write_table(tmp_path / "train.tsv", ["label", "text_a"], tiny.single_rows(30))
    test = tiny.write_table(tmp_path / "test.tsv", ["text_a"], [row[1:] for row in tiny.single_rows(9, start=3)])
    run = tmp_path / "run"
    arguments = tiny.options(bert, train, run, "--test_file", test, "--epochs", "6")
    index = arguments.index("--dev_file")
    done = tiny.finetune([*arguments[:index], *arguments[index + 2 :]])
    found = json.loads((run / "results.json").read_text())
    assert found["num_examples"] == {"train": 27, "dev": 3, "test": 9}
    assert not any(name.startswith("test_") for name in found) and "dev_accuracy" in found
    assert "train.tsv: 3 of 30 records are split off to evaluate on, and not learned" in done.stdout
    assert "test.tsv: without answers; predictions are written to test_predictions.tsv" in done.stdout
    output = tmp_path / "out.tsv"
    assert predict.main(["--model", str(run), "--input", str(test), "--output", str(output)]) == 0
    lines = (run / "test_predictions.tsv").read_text().splitlines()
    assert lines == output.read_text().splitlines() and lines[0] == LABEL and set(lines[1:]) == {"no", "yes"}
