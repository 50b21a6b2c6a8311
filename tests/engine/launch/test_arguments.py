"""Arguments survive launchers and shells, or are not given to them."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.cli import UsageError
from engine.launch.arguments import HARMLESS, decode_arguments, encode_arguments, is_harmless

NASTY = [
    "a b",
    "'",
    '"',
    "x;touch y",
    "$(id)",
    "`id`",
    "%n",
    "%%h",
    "\\",
    "",
    "--",
    "~",
    "*",
    "{1..3}",
    "a\nb",
    "语料",
    "#",
]


def test_harmless_arguments_stay_readable():
    arguments = ["--train.output", "runs/bert-1_a", "--train.optimizer.betas=0.9,0.98", "--seed", "1", "user@host:/x+y"]
    assert encode_arguments(arguments) == arguments
    assert decode_arguments(["--local_rank=0", *arguments]) == ["--local_rank=0", *arguments]


def test_one_that_is_not_travels_encoded():
    assert encode_arguments(["--seed", "1", "--train.output", "a b"]) == [
        "--encoded_arguments=4",
        "--seed",
        "1",
        "--train.output",
        "base64:YSBi",
    ]


@pytest.mark.parametrize("argument", NASTY)
def test_everything_that_a_shell_or_pdsh_obeys_is_encoded(argument):
    assert not is_harmless(argument)
    sent = encode_arguments(["--train.output", argument])
    assert all(HARMLESS.fullmatch(word) for word in sent)
    assert decode_arguments(["--local_rank=3", *sent]) == ["--local_rank=3", "--train.output", argument]


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=6))
def test_any_arguments_come_back(arguments):
    assert decode_arguments(encode_arguments(arguments)) == arguments


def test_bytes_that_are_no_text_come_back():
    argument = os.fsdecode(b"runs/\xff\xfe")
    assert decode_arguments(encode_arguments([argument])) == [argument]


def test_a_shell_leaves_harmless_characters_alone():
    every = "".join(chr(code) for code in range(33, 127) if HARMLESS.fullmatch(chr(code)))
    for word in (every, f"={every}", f"-{every}", f":{every}", f"--x={every}"):
        for shell in ("sh", "bash"):
            told = subprocess.run([shell, "-c", f"printf %s {word}"], capture_output=True, text=True, check=True)
            assert told.stdout == word


@pytest.mark.parametrize(
    "argv",
    [
        ["--encoded_arguments=4", "--seed"],
        ["--encoded_arguments=1", "YSBi"],
        ["--encoded_arguments=0", "base64:YSBi"],
        ["--encoded_arguments=x", "base64:YSBi"],
        ["--encoded_arguments=1", "base64:YSB"],
        ["--encoded_arguments=1", "base64:Y S$"],
        ["--encoded_arguments=1", "base64:语"],
    ],
)
def test_what_was_changed_on_the_way_is_refused(argv):
    with pytest.raises(UsageError, match=r"is the work of `python -m engine.launch`, and what follows does not fit it"):
        decode_arguments(argv)
