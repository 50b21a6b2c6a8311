"""Every mistake that a user can make with the fine-tuning command, made, and what the command says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from finetune import run
from tests import commands
from tests.finetune import tiny


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """A labelled file."""
    return tiny.write_table(tmp_path / "train.tsv", ["label", "text_a"], tiny.single_rows(8))


@pytest.fixture
def fails(bert: Path, train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run the command with some options in place of right ones; returns what it says."""

    def command(*more: str | Path) -> str:
        arguments = [*tiny.options(bert, train, tmp_path / "run"), *more]
        assert run.main([str(argument) for argument in arguments]) == 2
        assert not (tmp_path / "run").exists()
        text = capsys.readouterr().err
        assert text.startswith("error: "), text
        return text

    return command


def test_all_problems_are_listed_at_once(fails, tmp_path):
    text = fails(
        "--task", "clasification", "--ds_config", "none.json", "--model", tmp_path / "none", "--epochs", "0",
        "--train.optimizer.lr", "-1", "--train.batch_size", "9", "--train.output", "elsewhere", "--seed", "-1",
    )  # fmt: skip
    for expected in (
        "unknown task 'clasification'; there are classification, ",
        "--ds_config none.json: no such file",
        f"--model {tmp_path / 'none'} does not exist",
        "epochs is 0; it must be at least 1",
        "train.optimizer.lr is -1.0; it must be above 0",
        "train.batch_size (9) must be a multiple of train.micro_batch_size x ranks",
        f"--output {tmp_path / 'run'} and --train.output elsewhere differ; give one of them",
        "seed is -1",
    ):
        assert expected in text


def test_problems_of_the_model_do_not_hide_those_of_the_files(fails, tmp_path):
    none = tmp_path / "none.tsv"
    text = fails("--model", tmp_path, "--train_file", none, "--dev_file", none, "--test_file", tmp_path)
    assert f"--model {tmp_path} is neither a model folder nor a run folder with a model" in text
    assert text.count(f"{none}: no such file") == 1 and f"{tmp_path}: a folder, not a file" in text


def test_options(fails, capsys):
    assert "unknown option --trainfile; did you mean --train_file?" in fails("--trainfile", "x")
    assert "--train.steps" in fails("--train.steps", "many")
    assert "train.steps is -1; it must be at least 1" in fails("--train.steps", "-1")
    assert "train.eval_every is -2; it must not be negative" in fails("--train.eval_every", "-2")
    assert "max_length is 65; it must be at least 8 and at most the model's positions, 64" in fails(
        "--max_length", "65"
    )
    assert run.main(["--ds_config", "x.json"]) == 2
    assert "model" in capsys.readouterr().err


def test_model_folders(fails, bert, tmp_path):
    def folder(name: str, **config: object) -> Path:
        shutil.copytree(bert, tmp_path / name)
        content = json.loads((bert / "config.json").read_text()) | config
        (tmp_path / name / "config.json").write_text(json.dumps(content))
        return tmp_path / name

    text = fails("--model", folder("roberta", model_type="roberta"))
    assert "model_type is 'roberta': it must be one of bert, gpt2" in text and str(tmp_path / "roberta") in text
    assert "they do not belong together" in fails("--model", folder("small", vocab_size=20))
    (folder("empty") / "model.safetensors").unlink()
    assert f"{tmp_path / 'empty'}: no weights: neither model.safetensors nor" in fails("--model", tmp_path / "empty")
    (tmp_path / "empty" / "pytorch_model.bin").touch()
    assert "the weights are a pickle (pytorch_model.bin)" in fails("--model", tmp_path / "empty")
    bare = folder("bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (bare / name).unlink()
    assert f"{bare} holds no usable tokenizer" in fails("--model", bare)


@pytest.mark.parametrize(
    ("option", "content", "columns", "expected"),
    [
        ("train_file", b"", None, "file.tsv is empty"),
        ("train_file", b"label\ttext_a\n1\tx\n1\ty\n", None, "all 2 examples have the label '1'; two are needed"),
        ("train_file", b"good\t1\nbad\t0\n", None, "such as --columns label,text_a"),
        ("train_file", b"label\ttext_a\n1\tx\n0\ty\tz\n", None, "file.tsv, line 3: 3 column(s), but there must be 2"),
        ("train_file", b"label\ttext_a\n1\tx\n\ty\n", None, "file.tsv, line 3: the label is empty"),
        ("train_file", b"label\ttext_a\n1\tx\n0\t\xe4\n", None, "file.tsv is not UTF-8"),
        ("train_file", bytes(range(256)), None, "file.tsv is not text: NUL byte"),
        ("train_file", b"1\tx\n0\ty\n", "label,body", "needs the column(s) text_a too"),
        ("train_file", b"label\ttext_a\n1\tx\n0\ty\n", "label,text_a", "leave out --columns"),
        ("dev_file", b"label\ttext_a\n", None, "holds no examples"),
        (
            "dev_file",
            b"label\ttext_a\nyes\tx\nmaybe\ty\n",
            None,
            "file.tsv, line 3: the label 'maybe' is not in the training file, which has no, yes",
        ),
        ("test_file", b"label\ttext_a\n2\tx\n", None, "line 2: the label '2' is not in the training file"),
    ],
)
def test_files(fails, tmp_path, option, content, columns, expected):
    (tmp_path / "file.tsv").write_bytes(content)
    named = ("--columns", columns) if columns else ()
    assert expected in fails(f"--{option}", tmp_path / "file.tsv", *named)


def test_a_dev_file_of_single_texts_for_pairs(fails, tmp_path):
    pairs = tiny.write_table(tmp_path / "pairs.tsv", ["label", "text_a", "text_b"], tiny.pair_rows(6, ("no", "yes")))
    assert "train.tsv: no column text_b in its first line" in fails("--train_file", pairs)


def test_under_the_launcher_one_rank_tells(bert, train, tmp_path):
    options = tiny.options(bert, tmp_path / "none.tsv", tmp_path / "run")
    done = commands.run(tiny.FINETUNE, options, ranks=2)
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert done.stdout.count("none.tsv: no such file") == 1
