"""Files of sentences with labels: the real ones, and every layout."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from finetune.config.tasks import FileConfig
from finetune.features.span_labels import spans_of
from finetune.readers.sentences import join_units
from finetune.readers.tagged import are_numbered, open_tagged


def read(path: Path, labelled: bool = True, characters: bool | None = None, **files: str):
    file = open_tagged(str(path), FileConfig(**files), labelled, characters)
    return file, list(file.records())


def raw_columns(path: Path) -> list[list[list[str]]]:
    """Sentences of lines of cells, read in another way."""
    blocks = re.split(r"\n[ \t]*\n", path.read_text(encoding="utf-8-sig").strip("\n"))
    return [[re.split(r"[\t ]+", line) for line in block.split("\n")] for block in blocks if block.strip()]


@pytest.mark.parametrize(
    ("name", "sentences", "characters", "numbered"),
    [
        ("ner_zh_weibo/train.conll", 1350, True, True),
        ("ner_zh_weibo/test.conll", 270, True, True),
        ("ner_zh_resume/train.char.bmes", 3821, True, False),
        ("ner_en_wikigold_wnut17/wikigold.conll", 1696, False, False),
        ("ner_en_wikigold_wnut17/wnut17_train.conll", 3394, False, False),
    ],
)
def test_real_files(name, sentences, characters, numbered, shared_data):
    file, records = read(shared_data / name)
    assert len(records) == sentences and file.characters == characters and file.numbered == numbered
    raw = [block for block in raw_columns(shared_data / name) if block[0][0] != "-DOCSTART-"]
    assert len(raw) == sentences
    for record, block in zip(records, raw, strict=True):
        units = [re.sub(r"(?<=.)[0-9]+$", "", cells[0]) if numbered else cells[0] for cells in block]
        assert record.units == units and list(record.labels or ()) == [cells[-1] for cells in block]
        assert record.text == ("" if characters else " ").join(units) or not characters
    if "weibo/train" in name:
        assert records[0].text.startswith("科技全方位资讯智能，快捷的汽车生活")
        assert any("are followed by their place" in note for note in file.notes())
    if name.endswith("wikigold.conll"):
        assert f"{file.path}: 145 -DOCSTART- line(s) left out" in file.notes()
        types = Counter(span.type for record in records for span in spans_of(record.labels or ()))
        assert types == {"ORG": 898, "PER": 934, "LOC": 1014, "MISC": 712}  # published: Balasuriya et al. 2009


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_layouts_agree(tmp_path):
    """Columns with CRLF and a mark, four columns, a table, objects with tokens, a text, spans, and CLUENER's."""
    units, labels = ["U.N.", "met", "in", "New", "York"], ["S-ORG", "O", "O", "B-LOC", "E-LOC"]
    text = "U.N. met in New York"
    lines = "".join(f"{unit} {label}\r\n" for unit, label in zip(units, labels, strict=True))
    more = "".join(f"{label}\tx\t{unit}\ty\n" for unit, label in zip(units, labels, strict=True))
    cluener = {"text": text, "label": {"ORG": {"U.N.": [[0, 3]]}, "LOC": {"New York": [[12, 19]]}}}
    spans = [{"start": 0, "end": 4, "type": "ORG"}, {"start": 12, "end": 20, "type": "LOC"}]
    files = [
        (write(tmp_path / "a.conll", f"\ufeff{lines}\r\n\r\n"), {}),
        (write(tmp_path / "b.conll", more), {"columns": "label,pos,token,chunk"}),
        (write(tmp_path / "c.tsv", f"text_a\tlabel\n{text}\t{' '.join(labels)}\n"), {}),
        (write(tmp_path / "d.csv", f"text,label\n{text},{' '.join(labels)}\n"), {}),
        (write(tmp_path / "e.jsonl", json.dumps({"tokens": units, "labels": labels}) + "\n"), {}),
        (write(tmp_path / "f.jsonl", json.dumps({"text": text, "labels": labels}) + "\n"), {}),
        (write(tmp_path / "g.jsonl", json.dumps({"text": text, "spans": spans}) + "\n"), {}),
        (write(tmp_path / "h.json", json.dumps(cluener) + "\n"), {}),
    ]
    for path, options in files:
        (record,) = read(path, **options)[1]
        found = [
            (span.type, record.text[record.places[span.begin][0] : record.places[span.end - 1][1]])
            for span in spans_of(record.labels or ())
        ]
        assert (record.text, found) == (text, [("ORG", "U.N."), ("LOC", "New York")]), path


def test_texts_without_labels(tmp_path):
    for name, content in (("a.tsv", "text_a\n他在 New York。\n"), ("a.jsonl", '{"text": "他在 New York。"}\n')):
        path = write(tmp_path / name, content)
        assert read(path, labelled=False, characters=False)[1][0].units == ["他", "在", "New", "York", "。"]
        assert read(path, labelled=False, characters=True)[1][0].units == [*"他在NewYork。"]
    (record,) = read(write(tmp_path / "b.txt", "他\n在\n"), labelled=False)[1]
    assert record.text == "他在" and record.labels is None
    with pytest.raises(ValueError, match="whole lines such as '他在北京。', and the model labels characters"):
        read(write(tmp_path / "c.txt", "他在北京。\n她在上海。\n"), labelled=False, characters=True)
    assert join_units(["今天", "New", "York", "很", "好"], False)[0] == "今天 New York 很好"


def test_malformed_lines(tmp_path):
    path = write(tmp_path / "a.conll", "a\tO\nb\tO\n\nc\tO\nd\ne\tO\n\nf\tO\n")
    with pytest.raises(ValueError, match=r"a\.conll, line 5: 1 column\(s\), but the first line has 2: 'd'"):
        read(path)
    file, records = read(path, bad_lines="skip")
    assert [record.text for record in records] == ["ab", "f"]
    assert "1 malformed sentence(s) skipped, with line 5" in file.notes()[-1]
    for content, message in (
        ("a\t\nb\tO\n", "line 1: no label"),
        ("a\nb\n", "one column, but there must be a unit and its label"),
        ("\n \n", "is empty"),
        ("-DOCSTART- O\n", "holds no sentences"),
        ('{"text": "ab", "labels": ["O", "O", "O"]}\n', "line 1: 3 labels for 2 characters or 1 words"),
        ('{"tokens": ["a", "b"], "labels": ["O"]}\n', "line 1: 1 labels for 2 units"),
        ('{"tokens": ["a"]}\n', "line 1: no labels"),
        ('{"text": "ab cd", "spans": [[0, 1, "X"]]}\n', "does not begin and end with a unit"),
        ('{"text": "ab cd", "spans": [[0, 5, "X"], [3, 5, "Y"]]}\n', "overlaps another"),
        ('{"text": "ab", "spans": [[0, 1]]}\n', "a span must be"),
        ('{"labels": ["O"]}\n', "neither tokens nor a text"),
        ('{"tokens": "ab", "labels": ["O"]}\n', "tokens must be a list of strings"),
        ("text_a\tlabel\na b\tO\n", "line 2: 1 label\\(s\\) for 2 unit\\(s\\)"),
    ):
        with pytest.raises(ValueError, match=message):
            read(write(tmp_path / "b.conll", content))
    with pytest.raises(ValueError, match="has 2 column"):
        read(path, columns="token,pos,label")
    with pytest.raises(ValueError, match="no such file"):
        read(tmp_path / "missing")


def test_places_in_words_are_no_digits_of_the_text():
    assert are_numbered(["科0", "技1", "10", "91", "好0"])
    assert not are_numbered(["A1", "B7", "C3"]) and not are_numbered(["1", "9"]) and not are_numbered([])
