"""Whole runs of the two tasks by the command line, on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.finetune import tiny


def words(number: int) -> list[str]:
    return tiny.sentence(number, 4 + number % 7).split()


def conll(path: Path, count: int) -> Path:
    """Words of which those that begin with a to h are a span."""
    blocks = [[f"{word} {'B-X' if word[0] < 'i' else 'O'}" for word in words(number)] for number in range(count)]
    path.write_text("\n\n".join("\n".join(block) for block in blocks) + "\n", encoding="utf-8")
    return path


def squad(path: Path, count: int, answers: bool = True) -> Path:
    """Each third question has no answer; the answer to the others is the third word."""
    paragraphs = []
    for number in range(count):
        context, none = " ".join(words(number)), number % 3 == 0
        answer = {"text": words(number)[2], "answer_start": context.index(words(number)[2])}
        known = {"is_impossible": none, "answers": [] if none else [answer]} if answers else {}
        qas = [{"id": str(number), "question": "apple" if none else "zebra", **known}]
        paragraphs.append({"context": context, "qas": qas})
    path.write_text(json.dumps({"version": "2", "data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
    return path


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_two_ranks_and_zero_3_are_one_rank(task, bert, tmp_path):
    """The same figures; a test file without answers is predicted; the threshold of the dev file is in the folder."""
    spans = task == "token_classification"
    file = conll(tmp_path / "a.conll", 16) if spans else squad(tmp_path / "a.json", 16)
    test = squad(tmp_path / "b.json", 5, answers=False)
    more = ["--token_classification.crf", "true"] if spans else ["--test_file", str(test)]
    results = []
    for ranks, config in ((None, tiny.FP32), (2, tiny.commands.DS_CONFIGS / "zero3_bf16.json")):
        run = tmp_path / f"run-{ranks}"
        arguments = tiny.options(bert, file, run, "--task", task, "--epochs", "12", *more)
        if ranks:
            settings = json.loads(config.read_text())
            settings["bf16"] = {"enabled": False}
            settings.pop("data_types", None)
            (tmp_path / "zero3.json").write_text(json.dumps(settings))
            arguments[1] = tmp_path / "zero3.json"
        tiny.finetune(arguments, ranks)
        results.append(json.loads((run / "results.json").read_text()))
    for name in results[0]:
        if name.startswith("dev_"):
            assert results[1][name] == pytest.approx(results[0][name], abs=2e-3), name
    assert results[0]["dev_loss"] < 0.8 and results[0]["dev_f1"] > 0.5
    if not spans:
        folder = json.loads((run / "model" / "config.json").read_text())["finetuning"]
        assert folder["threshold"] == pytest.approx(results[1]["dev_threshold"])
        found = json.loads((run / "test_predictions.json").read_text())
        lines = (run / "test_predictions.tsv").read_text().splitlines()[1:]
        assert [line.split("\t")[:2] for line in lines] == [[name, text] for name, text in found.items()]
        assert list(found) == list("01234") and found["0"] == ""
