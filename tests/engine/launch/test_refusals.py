"""What DeepSpeed's launcher refuses reaches the user as one message; what is a bug stays a traceback."""

from __future__ import annotations

import argparse
import subprocess

import pytest

from engine.config.cli import UsageError
from engine.launch.__main__ import run_deepspeed


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("Hostfile is empty"), "Hostfile is empty; ENGINE_TRACEBACK=1 shows where"),
        (NotImplementedError("Unknown launcher x"), "Unknown launcher x; "),
        (
            RuntimeError("launcher 'pdsh' not installed."),
            "not installed.: apt-get install pdsh, or another --launcher; ",
        ),
        (AssertionError(), r"DeepSpeed's launcher refuses these options \(AssertionError\); "),
        (subprocess.CalledProcessError(255, ["ssh"]), "returned non-zero exit status 255"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_deepspeed_refuses_is_told(error, message, monkeypatch):
    assert caught(error, monkeypatch, UsageError, message).__cause__ is error


def test_what_is_a_bug_is_not_taken_for_a_mistake(monkeypatch):
    caught(KeyError("x"), monkeypatch, KeyError, "x")


def caught(error: Exception, monkeypatch, kind: type[Exception], message: str) -> BaseException:
    from deepspeed.launcher import runner

    def refuse(options: argparse.Namespace) -> None:
        raise error

    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(runner, "main", refuse)
    monkeypatch.setattr(runner, "parse_args", runner.parse_args)
    with pytest.raises(kind, match=message) as found:
        run_deepspeed(argparse.Namespace(), None)
    return found.value
