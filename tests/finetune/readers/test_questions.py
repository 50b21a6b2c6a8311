"""Files of questions: the real ones, every layout, wrong places."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from finetune.config.tasks import FileConfig
from finetune.readers.questions import NOWHERE, open_questions


def read(path: Path, labelled: bool = True, training: bool = False, **files: str):
    file = open_questions(str(path), FileConfig(**files), labelled, training)
    return file, list(file.records())


def test_cmrc_has_200_wrong_places(shared_data):
    file, records = read(shared_data / "qa_zh_cmrc2018" / "dev.json")
    golds = [(record, gold) for record in records for gold in record.answers]
    assert len(records) == 3219 and len(golds) == 9657
    assert sum(gold.start == NOWHERE for _, gold in golds) == 193
    assert all(record.context.startswith(gold.text, gold.start) for record, gold in golds if gold.start != NOWHERE)
    notes = file.notes()
    assert any(": 193 answer(s) stand nowhere" in note for note in notes)
    assert any(": 7 answer(s) moved to the one place" in note for note in notes)
    raw = json.loads((shared_data / "qa_zh_cmrc2018" / "dev.json").read_text(encoding="utf-8"))
    texts = [a["text"].strip() for x in raw["data"] for p in x["paragraphs"] for q in p["qas"] for a in q["answers"]]
    assert [gold.text for _, gold in golds] == texts


@pytest.mark.parametrize(("name", "count"), [("qa_en_xquad/xquad.en.json", 1190), ("qa_zh_cmrc2018/trial.json", 1002)])
def test_other_real_files(name, count, shared_data):
    _, records = read(shared_data / name, training=True)
    assert len(records) == count == len({record.id for record in records})
    assert all(gold.start != NOWHERE for record in records for gold in record.answers)


def test_subjqa(shared_data):
    path = shared_data / "qa_en_subjqa" / "grocery_train.csv"
    with open(path, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    file, records = read(path)
    assert len(records) == len(rows) == 2046
    assert sum(record.answers == () for record in records) == sum(
        row["human_ans_spans"] == "ANSWERNOTFOUND" for row in rows
    )
    for record, row in zip(records, rows, strict=True):
        assert not record.context.endswith("ANSWERNOTFOUND") and record.context in row["review"]
        for gold in record.answers:
            if gold.start != NOWHERE:
                assert record.context.startswith(gold.text, gold.start)
                assert gold.text.replace(" ", "") == row["human_ans_spans"].replace(" ", "")
    assert sum("140 answer(s) taken as they stand" in note for note in file.notes()) == 1
    file, kept = read(path, training=True)
    assert len(kept) == 2046 - 62 and any("62 question(s) skipped" in note for note in file.notes())


def write(path: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return path


def qa(**more: object) -> dict[str, object]:
    return {"id": "q1", "question": "谁？", "answers": [{"text": "光荣", "answer_start": 1}]} | more


def squad(*qas: dict[str, object], context: str = "是光荣。") -> dict[str, object]:
    return {"version": "1", "data": [{"title": "t", "paragraphs": [{"context": context, "id": "p", "qas": list(qas)}]}]}


def test_layouts_agree(tmp_path):
    """SQuAD, CJRC with its flags as texts, CMRC's own, JSON Lines and tables."""
    asked = {"query_id": "q1", "query_text": "谁？", "answers": ["光荣"]}
    own = {"context_id": "1", "context_text": "是光荣。", "qas": [asked]}
    cjrc = qa(is_impossible="false", answers=[{"id": "1", "text": " 光荣", "answer_start": 0}])
    line = {"id": "q1", "question": "谁？", "context": "是光荣。"}
    files = [
        write(tmp_path / "a.json", squad(qa())),
        write(
            tmp_path / "b.json",
            squad(cjrc),
        ),
        write(tmp_path / "c.json", [own]),
        write(tmp_path / "d.json", {"data": [own]}),
        write(tmp_path / "e.jsonl", line | {"answers": {"text": ["光荣"], "answer_start": [1]}}),
        write(tmp_path / "f.jsonl", line | {"answers": [{"text": "光荣", "answer_start": 1}]}),
        write(tmp_path / "g.csv", "id,question,context,answer,answer_start\nq1,谁？,是光荣。,光荣,1\n"),
        write(tmp_path / "h.tsv", "id\tquestion\tpassage\tanswer\nq1\t谁？\t是光荣。\t光荣\n"),
    ]
    for path in files:
        (record,) = read(path)[1]
        assert record[1:] == ("q1", "谁？", "是光荣。", (("光荣", 1),)), path


def test_questions_without_answers(tmp_path):
    none = squad(qa(id="a", is_impossible=True, answers=[]), qa(id="b", is_impossible="true"), qa(id="c"))
    assert [record.answers for record in read(write(tmp_path / "a.json", none))[1]] == [(), (), (("光荣", 1),)]
    unknown = write(tmp_path / "b.json", squad(qa(answers=[]), {"question": "谁？"}))
    assert [(record.id, record.answers) for record in read(unknown, labelled=False)[1]] == [("q1", ()), ("1", None)]
    with pytest.raises(ValueError, match=r"data\[0\]\.paragraphs\[0\]\.qas\[1\]: no answers; a question without"):
        read(unknown)
    line = {"question": "谁？", "context": "是光荣。", "answers": []}
    for path in (write(tmp_path / "d.json", squad(qa(answers=[]))), write(tmp_path / "d.jsonl", line)):
        file, (record,) = read(path)
        assert record.answers == () and "1 question(s) with an empty list of answers" in file.notes()[0]
    assert read(write(tmp_path / "c.tsv", "question\tcontext\tanswer\na\tb\t\n"))[1][0].answers == ()


def test_wrong_places(tmp_path):
    """Moved where the text stands once, else not learned; CJRC's YES and NO stand nowhere."""
    answers = [
        {"text": text, "answer_start": start} for text, start in (("天", -1), ("地", 0), ("天地", 9), ("YES", -1))
    ]
    path = write(tmp_path / "a.json", squad(qa(answers=answers), qa(id="b", answers=answers[3:]), context="天地人天"))
    file, records = read(path)
    assert [gold.start for gold in records[0].answers] == [NOWHERE, 1, 0, NOWHERE]
    assert file.notes() == [
        f"{path}: 3 answer(s) stand nowhere, or not at their answer_start and in several places: not learned, measured "
        "as given",
        f"{path}: 2 answer(s) moved to the one place where their text stands, since it does not at their answer_start",
    ]
    file, records = read(path, training=True)
    assert [record.id for record in records] == ["q1"] and "1 question(s) skipped" in file.notes()[-1]
    assert read(write(tmp_path / "b.json", squad(qa(answers=["aa"]), context="aaa")))[1][0].answers[0].start == NOWHERE


@pytest.mark.parametrize("start", ["2", 2.0, " 2 ", "2.0"])
def test_places_of_other_types(start, tmp_path):
    """The word stands twice: without its place it would not be known."""
    asked = qa(answers=[{"text": "天", "answer_start": start}])
    files = [
        write(tmp_path / "a.json", squad(asked, context="天地天")),
        write(tmp_path / "b.jsonl", asked | {"context": "天地天"}),
        write(tmp_path / "c.csv", f"question,context,answer,answer_start\n谁？,天地天,天,{start}\n"),
    ]
    for path in files:
        assert read(path)[1][0].answers == (("天", 2),), path


@pytest.mark.parametrize("start", ["two", 2.5, True, [2], float("nan")])
def test_places_that_are_none(start, tmp_path):
    path = write(tmp_path / "a.json", squad(qa(answers=[{"text": "天", "answer_start": start}])))
    with pytest.raises(ValueError, match=r"a\.json, data.*answers\[0\]: answer_start is .*; it must be the number"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{\n", r"a\.json, line 2, column 1: no JSON"),
        ("a.json", '{"data": {}}', "data must be a list, not dict; the layout is"),
        ("a.json", '{"data": []}', "holds no questions"),
        (
            "a.json",
            '{"data": [{"paragraphs": [{"qas": []}]}]}',
            r"paragraphs\[0\]: no 'context'; it has qas",
        ),
        ("a.json", json.dumps(squad({"id": "1"})), r"qas\[0\]: no 'question'; it has id"),
        ("a.json", json.dumps(squad(qa(question=3))), r"qas\[0\]: 'question' must be a text, not int"),
        ("a.json", json.dumps(squad(qa(answers=[{"answer_start": 1}]))), r"answers\[0\]: no 'text'"),
        ("a.tsv", "question\tanswer\na\tb\n", "no column context"),
        ("a.tsv", "context\tanswer\na\tb\n", "no column question"),
        ("a.jsonl", '{"question": "a", "context": "b", "answers": "c"}', r"line 1: answers is no JSON"),
    ],
)
def test_malformed_files(name, content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / name, content))
    with pytest.raises(ValueError, match="no such file"):
        read(tmp_path / "missing.json")
