"""The commands as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from preprocess.cli import build_parser, main
from preprocess.manifest import read_manifest
from preprocess.options import shard_settings


def test_from_text_to_verified_shards(corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, shards = str(tmp_path / "tokenizer"), str(tmp_path / "shards")
    corpus = str(corpus_folder)
    assert (
        main(["tokenizer", "--corpus", corpus, "--type", "wordpiece", "--vocab_size", "90", "--output", tokenizer]) == 0
    )
    out = capsys.readouterr().out
    assert "a.txt" in out and "sentence_per_line (detected)" in out and "document_per_line (detected)" in out
    assert "WordPiece, " in out and "note: 90 tokens were asked for" in out
    arguments = ["shards", "--corpus", corpus, "--tokenizer", tokenizer, "--output", shards, "--heldout", "0.1"]
    assert main([*arguments, "--workers", "1"]) == 0
    assert "held out" in capsys.readouterr().out
    assert main([*arguments, "--workers", "1"]) == 0
    assert "is complete" in capsys.readouterr().out
    assert main(["inspect", shards]) == 0
    out = capsys.readouterr().out
    manifest = read_manifest(shards)
    for text in (
        manifest.digest,
        f"documents {manifest.counts['documents']:,}",
        "source 0 corpus",
        "unknown tokens: 0 (0.000% of all)",
        "tokens per document",
        "mean ",
        "#",
        "samples",
        "the",
    ):
        assert text in out
    assert main(["inspect", f"{shards}/heldout"]) == 0
    assert main(["verify", shards]) == 0
    assert "every file is as it was written" in capsys.readouterr().out


def test_inspect_shows_words_and_unknown_tokens(
    tmp_path: Path, vocabulary_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.txt").write_text("the tokens 龍 masking\n")
    arguments = ["--corpus", str(tmp_path / "x.txt"), "--tokenizer", str(vocabulary_file), "--heldout", "0"]
    assert main(["shards", *arguments, "--output", str(tmp_path / "s")]) == 0
    assert "no entry has upper-case letters, so text is lower-cased" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "the token·s [UNK] mask·ing" in out
    assert "unknown tokens: 1 (16.667% of all)" in out


def test_verify_names_bad_files(shard_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("shard-00000.h5", "shard-00001.h5"):
        path = shard_folder / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert main(["verify", str(shard_folder)]) == 1
    out = capsys.readouterr().out
    assert out.count("bad: ") == 2 and "shard-00000.h5" in out and "shard-00001.h5" in out and "2 problems" in out
    assert main(["inspect", str(shard_folder)]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shard"], "there is no command 'shard'; did you mean shards?"),
        (["frobnicate"], "there is no command 'frobnicate'; there are: tokenizer, shards, finish, inspect, verify"),
        (["shards", "--corpsu", "x"], "there is no option --corpsu; did you mean --corpus?"),
        (["shards", "--work", "2"], "there is no option --work; did you mean --workers?"),
        (["shards", "--zzz=1"], "there is no option --zzz; there are: "),
        (["shards", "--corpus", "x"], "required: --tokenizer, --output"),
        (["shards", "--workers", "two"], "argument --workers: 'two' is no whole number"),
        (["shards", "--heldout", "some"], "argument --heldout: 'some' is no number"),
        (["shards", "--compression", "lz4"], "invalid choice: 'lz4'"),
        (["tokenizer", "--lowercase", "yes"], "argument --lowercase: 'yes' is neither true nor false"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_errors_are_one_line(tmp_path: Path, vocabulary_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tokenizer", str(vocabulary_file), "--output", str(tmp_path / "s")]
    assert main(["shards", "--corpus", str(tmp_path / "none.txt"), *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: no such file or folder: ")
    (tmp_path / "x.txt").write_text("text")
    assert main(["shards", "--corpus", str(tmp_path / "x.txt"), *arguments, "--heldout", "2"]) == 2
    assert "error: heldout is 2.0: a share" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert main(["inspect", str(tmp_path)]) == 2
    assert "no manifest.json in" in capsys.readouterr().err
    (tmp_path / "readonly").write_text("")
    assert main(["shards", "--corpus", str(tmp_path / "x.txt"), *arguments[:3], str(tmp_path / "readonly" / "s")]) == 2
    assert capsys.readouterr().err == f"error: Not a directory: {tmp_path / 'readonly' / 's'}\n"


def test_corpus_may_be_given_in_parts(tmp_path: Path, vocabulary_file: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"the cat {name}\n")
    arguments = ["shards", "--corpus", str(tmp_path / "a.txt"), "--corpus", str(tmp_path / "b.txt"), "--heldout", "0"]
    assert main([*arguments, "--tokenizer", str(vocabulary_file), "--output", str(tmp_path / "s")]) == 0
    assert [source.name for source in read_manifest(tmp_path / "s").sources] == ["a", "b"]


def test_tokenizer_folders_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").write_text("the cat and the cat\n")
    arguments = ["tokenizer", "--corpus", str(tmp_path / "x.txt"), "--vocab_size", "40", "--output"]
    assert main([*arguments, str(tmp_path / "t")]) == 0
    assert main([*arguments, str(tmp_path / "t")]) == 2
    assert "holds a tokenizer already; give a new folder" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    assert main([*arguments, str(tmp_path / "mine")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    (tmp_path / "bad.txt").write_bytes(b"\xef\xbb\xbfgood\nbad \xff\n")
    assert main(["tokenizer", "--corpus", str(tmp_path / "bad.txt"), "--output", str(tmp_path / "u")]) == 2
    assert "is not UTF-8: byte 0xff at offset 12 (line 2)" in capsys.readouterr().err


def test_help_of_the_module(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "preprocess", "--help"], cwd=repository, capture_output=True, text=True, check=True
    )
    for text in ("python -m preprocess tokenizer", "one sentence or one document a\nline", "verify"):
        assert text in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "preprocess", "shards", "--help"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--shard_bytes" in done.stdout and "67108864" in done.stdout


def test_preprocess_needs_no_torch(repository: Path) -> None:
    code = "import sys, preprocess.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0


def test_options_with_several_values_add_up() -> None:
    """Given twice, an option has the values of both; each run begins anew."""
    parser = build_parser()[0]
    required = ["shards", "--corpus", "x", "--tokenizer", "t", "--output", "o"]
    for _ in range(2):
        options = parser.parse_args(
            [
                *required,
                "--layout",
                "a=jsonl",
                "--layout",
                "b=parquet",
                "--corpus",
                "y",
                "--drop_matching",
                "p",
                "q",
                "--drop_matching",
                "r",
                "--text_field",
                "a=b",
                "--text_field",
                "c",
            ]
        )
        settings = shard_settings(options)
        assert settings.corpus.arguments == ("x", "y")
        assert settings.corpus.layout == ("a=jsonl", "b=parquet")
        assert settings.corpus.text_field == ("a=b", "c")
        assert settings.cleaning.drop_matching == ("p", "q", "r")
    assert shard_settings(parser.parse_args(required)).corpus.layout == ("auto",)


def test_a_terminal_without_unicode_and_a_closed_pipe(shard_folder: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "preprocess", "inspect", str(shard_folder)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=repository, capture_output=True, env=environment, check=True)
    assert b"\\u4e2d" in done.stdout
    closed = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | head -n 1', "bash", *command],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (closed.returncode, closed.stderr, closed.stdout.count("\n")) == (0, "", 1)
