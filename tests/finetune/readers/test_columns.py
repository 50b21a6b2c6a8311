"""What ``--columns`` says, and what the messages suggest."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune import predict, run
from finetune.readers.columns import guess_columns, parse_columns
from finetune.readers.tables import open_table
from tests.finetune import tiny

TRAINING, SINGLE, PAIR = ("label", "text_a"), ("text_a",), ("text_a", "text_b")
FILMS = [("a stirring and funny film", "1"), ("one long string of cliches", "0"), ("no movement at all", "0")]


def write(tmp_path: Path, *rows: tuple[str, ...]) -> str:
    path = tmp_path / "file.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("columns", ["text_a=review,label=sentiment", "label = sentiment, text=review"])
def test_other_names_in_the_first_line(tmp_path, columns):
    path = write(tmp_path, ("id", "review", "text", "sentiment"), ("7", "good", "not this", "1"))
    table = open_table(path, parse_columns(columns), TRAINING)
    assert table.has_header and table.names == ("id", "text_a", "the file's text", "label")
    assert [row.cells for row in table.records()] == [["7", "good", "not this", "1"]]


def test_names_with_spaces_and_equals_signs_and_swapped_ones(tmp_path):
    path = write(tmp_path, ("Quality", "#1 String", "a=b"), ("1", "x", "y"))
    columns = parse_columns("label=Quality,text_a=#1 String,text_b=a=b")
    assert open_table(path, columns, (*TRAINING, "text_b")).names == ("label", "text_a", "text_b")
    path = write(tmp_path, ("label", "text_a"), ("x", "1"))
    assert open_table(path, parse_columns("label=text_a,text_a=label"), TRAINING).names == ("text_a", "label")


def test_names_that_are_not_given_stay(tmp_path):
    path = write(tmp_path, ("sentence", "sentiment"), ("x", "1"))
    assert open_table(path, parse_columns("label=sentiment"), TRAINING).names == ("text_a", "label")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("label=sentiment,review", "'review' is not OURS=THEIRS; write label=NAME,text_a=NAME"),
        ("label=", "'label=' is not OURS=THEIRS"),
        ("lable=sentiment", "'lable' must be one of label, text_a, text_b; did you mean label"),
        ("text_a=review,text=review2", "'text=review2' names a column that is named already"),
        ("text_a=review,label=review", "'label=review' names a column that is named already"),
        (
            "label=sentimnt",
            r"must name a column 'sentimnt', but has 'review', .*'x'; did you mean sentiment",
        ),
        ("label=x", "must name a column 'x', but has it 2 times"),
        ("label=sentiment", r"--columns label=sentiment: .*file\.tsv needs the column\(s\) text_a too"),
    ],
)
def test_refusals(tmp_path, columns, message):
    path = write(tmp_path, ("review", "sentiment", "x", "x"), ("good", "1", "2", "3"))
    with pytest.raises(ValueError, match=message):
        open_table(path, parse_columns(columns), TRAINING)


def suggestion(tmp_path: Path, needed: tuple[str, ...], *rows: tuple[str, ...]) -> list[str]:
    """The options that the message about a first line without our names suggests."""
    with pytest.raises(ValueError, match="must name the columns") as caught:
        open_table(write(tmp_path, *rows), None, needed)
    return [part.split(". For")[0] for part in str(caught.value).split("such as --columns ")[1:]]


def test_suggested_columns_are_guessed_from_the_lines(tmp_path):
    films = FILMS * 10
    assert suggestion(tmp_path, TRAINING, *films) == ["text_a,label"]  # its first label occurs again: an example
    assert suggestion(tmp_path, TRAINING, ("review", "sentiment"), *films) == [
        "text_a=review,label=sentiment",
        "text_a,label",
    ]
    cola = [("gj04" if mark == "1" else "bc01", mark, "" if mark == "1" else "*", text) for text, mark in films]
    assert suggestion(tmp_path, TRAINING, *cola)[-1] == "other,label,other,text_a"
    pairs = [(text, text[::-1], mark) for text, mark in films]
    assert suggestion(tmp_path, TRAINING, *pairs)[-1] == "text_a,text_b,label"
    mrpc = [(mark, str(number), text, text[::-1]) for number, (text, mark) in enumerate(films)]
    header = ("Quality", "#1 ID", "#1 String", "#2 String")
    assert suggestion(tmp_path, TRAINING, header, *mrpc) == [
        "'label=Quality,text_a=#1 String,text_b=#2 String'",
        "label,other,text_a,text_b",
    ]


def test_columns_that_have_our_names_keep_them(tmp_path):
    assert suggestion(tmp_path, TRAINING, ("body", "label"), *FILMS * 10) == ["text_a=body"]
    assert suggestion(tmp_path, TRAINING, ("text_a", "mark"), *FILMS * 10) == ["label=mark"]


def test_for_prediction_only_texts_are_suggested(tmp_path):
    assert suggestion(tmp_path, SINGLE, *FILMS)[-1] == "text_a,other"
    assert suggestion(tmp_path, SINGLE, *((text,) for text, _ in FILMS))[-1] == "text_a"
    assert suggestion(tmp_path, PAIR, *((mark, text, text) for text, mark in FILMS))[-1] == "other,text_a,text_b"


def test_following_the_suggestion_works(tmp_path):
    for header in ((), (("review", "sentiment"),)):
        option = suggestion(tmp_path, TRAINING, *header, *FILMS * 10)[0 if header else -1]
        table = open_table(str(tmp_path / "file.tsv"), parse_columns(option), TRAINING)
        assert table.names == ("text_a", "label") and len(list(table.records())) == 30


def test_without_enough_lines_the_usual_order_is_suggested():
    assert guess_columns([], ["a", "b", "c"], TRAINING) == ("label", "text_a", "text_b")
    assert guess_columns([["x", "y"]], ["", ""], TRAINING) == ("label", "text_a")
    assert guess_columns([["x"]], [""], TRAINING) is None


@pytest.mark.parametrize(
    ("folder", "file", "expected"),
    [
        ("cls_en_sst2", "train.tsv", "text_a,label"),
        ("cls_en_cola", "train.tsv", "other,label,other,text_a"),
        ("pair_zh_afqmc", "train.tsv", "text_a,text_b,label"),
        ("pair_en_mrpc", "train.tsv", "label,other,other,text_a,text_b"),
    ],
)
def test_real_files(folder, file, expected, shared_data):
    with pytest.raises(ValueError, match=rf"--columns {expected}$"):
        open_table(str(shared_data / folder / file), None, TRAINING)


def test_the_commands(bert, tmp_path, capsys):
    """Files with a header of other names, as fine-tuning and prediction take them."""
    rows = [(text, label) for label, text in tiny.single_rows(9, ("bad", "good"))]
    file = tiny.write_table(tmp_path / "train.tsv", ["review", "sentiment"], rows)
    options = tiny.options(bert, file, tmp_path / "run", "--train.steps", "1")
    assert run.main([*map(str, options)]) == 2
    assert "--columns text_a=review,label=sentiment" in capsys.readouterr().err
    assert run.main([*map(str, options), "--columns", "text_a,label"]) == 2
    assert "train.tsv, line 1: no other line has the label 'sentiment'" in capsys.readouterr().err
    tiny.finetune([*options, "--columns", "text_a=review,label=sentiment"])
    output = tmp_path / "predictions.tsv"
    arguments = ["--model", str(tmp_path / "run"), "--input", str(file), "--output", str(output)]
    assert predict.main(arguments) == 2
    assert "say which is which, such as --columns text_a=review" in capsys.readouterr().err
    assert predict.main([*arguments, "--columns", "text_a=review"]) == 0
    header, *lines = output.read_text().splitlines()
    assert header == "label" and len(lines) == 9 and set(lines) <= {"bad", "good"}


def test_a_dev_file_whose_first_line_names_the_columns(bert, tmp_path, capsys):
    rows = tiny.single_rows(8)
    train = tiny.write_table(tmp_path / "train.tsv", None, rows)
    dev = tiny.write_table(tmp_path / "dev.tsv", ["mark", "text_a"], rows)
    options = tiny.options(bert, train, tmp_path / "run", "--columns", "label,text_a", dev=dev)
    assert run.main([*map(str, options)]) == 2
    message = capsys.readouterr().err
    assert "dev.tsv, line 1: the label 'mark' is not in the training file" in message
    assert "looks like the names of the columns" in message and "--columns label=mark" in message
