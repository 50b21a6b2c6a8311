"""Arguments that pass through launchers and remote shells unchanged.

DeepSpeed gives a command to pdsh as one line for the shell of each host and quotes only what holds a space: ``;``,
``$(...)``, quotes and globs would be obeyed there, ``%n`` would become a number in pdsh. What is not made of harmless
characters therefore travels in base64, and the entries read it back.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import sys
from collections.abc import Sequence

from engine.config.cli import UsageError
from engine.launch.environment import complete_environment

OPTION = "--encoded_arguments="
PREFIX = "base64:"
# What no shell, pdsh, argparse or JSON touches; % is pdsh's, ~ { } * ? [ ] ! # are shells'.
HARMLESS = re.compile(r"[A-Za-z0-9_@+=:,./-]+")


def encode_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments made of harmless characters alone, which ``decode_arguments`` turns back.

    ``["--seed", "1", "--train.output", "a b"]`` becomes ``["--encoded_arguments=4", "--seed", "1", "--train.output",
    "base64:YSBi"]``: the option counts, from 1, the arguments after it that are encoded. Where none needs it they stay
    as they are.
    """
    harmful = [number for number, argument in enumerate(arguments, 1) if not is_harmless(argument)]
    if not harmful:
        return list(arguments)
    chosen = set(harmful)
    encoded = [_encode(argument) if number in chosen else argument for number, argument in enumerate(arguments, 1)]
    return [OPTION + ",".join(map(str, harmful)), *encoded]


def is_harmless(text: str) -> bool:
    """Whether a word reaches a program on another host unchanged, whatever shells are in between."""
    return bool(HARMLESS.fullmatch(text)) and text != "--"  # argparse drops a bare --


def _encode(argument: str) -> str:
    return PREFIX + base64.urlsafe_b64encode(os.fsencode(argument)).decode("ascii")


def decode_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments as the user gave them; a launcher may have put ``--local_rank=N`` in front.

    Raises:
        UsageError: if they were changed on the way.
    """
    number = next((place for place, argument in enumerate(argv) if argument.startswith(OPTION)), None)
    if number is None:
        return list(argv)
    before, option, arguments = list(argv[:number]), argv[number], list(argv[number + 1 :])
    try:
        for place in map(int, option.removeprefix(OPTION).split(",")):
            token = arguments[place - 1] if place >= 1 else ""
            if not token.startswith(PREFIX):
                raise ValueError(f"argument {place} is not encoded: {token!r}")
            raw = base64.b64decode(token.removeprefix(PREFIX).encode("ascii"), altchars=b"-_", validate=True)
            arguments[place - 1] = os.fsdecode(raw)
    except (ValueError, IndexError, binascii.Error) as error:
        raise UsageError(
            f"{option} is the work of `python -m engine.launch`, and what follows does not fit it ({error}): launch "
            "again, with the arguments themselves"
        ) from None
    return before + arguments


def enter(argv: Sequence[str]) -> list[str]:
    """What an entry does first, whoever launched it: fill in the environment; returns the user's arguments.

    Raises:
        UsageError: if environment or arguments are not what a launcher may have meant.
    """
    for note in complete_environment():
        print(f"note: {note}", file=sys.stderr, flush=True)
    return decode_arguments(argv)
