"""The command line: ``python -m preprocess tokenizer|shards|inspect|verify``."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from preprocess.building.build import DEFAULT_HELDOUT, DEFAULT_SHARD_BYTES, ShardSettings, build_shards
from preprocess.corpus.detection import LAYOUTS
from preprocess.folders.inspection import inspect_folder
from preprocess.folders.verification import verify_folder
from preprocess.shards import COMPRESSIONS
from preprocess.tokenizer.command import train_tokenizer

USER_ERROR = 2

DESCRIPTION = """\
Turn raw text into token shards for pretraining:

  1. python -m preprocess tokenizer --corpus corpus/ --type wordpiece --vocab_size 30522 --output tokenizer/
  2. python -m preprocess shards    --corpus corpus/ --tokenizer tokenizer/ --output shards/ --workers 8
  3. python -m preprocess inspect   shards/
     python -m preprocess verify    shards/

Text is UTF-8, in one of two layouts, which are detected: one sentence per line with a blank line between documents
(sentence_per_line), or one document per line (document_per_line)."""

CORPUS_HELP = "files, folders (recursive, hidden files skipped) and patterns, taken in this order"


class Parser(argparse.ArgumentParser):
    """A parser whose errors look like all other errors of these commands."""

    def error(self, message: str) -> NoReturn:
        """Print the message, without the usage, and end with exit code 2."""
        self.exit(USER_ERROR, f"error: {message} (`{self.prog} --help` shows what there is)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 if all is well, 1 if verify found damage or a worker failed, 2 for an error that the user can correct.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(list(arguments))
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return COMMANDS[options.command](options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        return USER_ERROR
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command to start again", file=sys.stderr)
        return 128 + signal.SIGINT


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse, with the nearest right name for a wrong command or option."""
    parser, commands = build_parser()
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command is not None and command not in commands:
        parser.error(f"there is no command {command!r}{_nearest(command, list(commands))}")
    options = commands[command] if command is not None else parser
    known = [name for action in options._actions for name in action.option_strings]
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and name != "--" and name not in known:
            options.error(f"there is no option {name}{_nearest(name, known)}")
    return parser.parse_args(arguments)


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(names)}"


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser, and the parser of each command by name."""
    parser = Parser(
        prog="python -m preprocess",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {
        name: subparsers.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        for name, text in COMMAND_HELP.items()
    }
    _add_tokenizer_options(commands["tokenizer"])
    _add_shards_options(commands["shards"])
    for name in ("inspect", "verify"):
        commands[name].add_argument("folder", help="a shard folder, as `shards --output` made it")
    return parser, commands


def _add_tokenizer_options(parser: argparse.ArgumentParser) -> None:
    _required(parser, "--corpus", nargs="+", action="extend", metavar="FILE", help=CORPUS_HELP)
    _required(parser, "--output", metavar="DIR", help="folder to write; transformers.AutoTokenizer loads it")
    parser.add_argument("--type", choices=["wordpiece"], default="wordpiece", help="kind of tokenizer")
    parser.add_argument("--vocab_size", type=_integer, default=30522, metavar="N", help="tokens, special ones included")
    parser.add_argument(
        "--lowercase", type=_boolean, default=True, metavar="true|false", help="lower-case text and strip accents"
    )
    parser.add_argument(
        "--min_frequency", type=_integer, default=2, metavar="N", help="least occurrences of a character or pair"
    )


def _add_shards_options(parser: argparse.ArgumentParser) -> None:
    _required(parser, "--corpus", nargs="+", action="extend", metavar="FILE", help=CORPUS_HELP)
    _required(parser, "--tokenizer", metavar="PATH", help="tokenizer folder, or a vocab.txt file")
    _required(parser, "--output", metavar="DIR", help="folder to write")
    parser.add_argument("--workers", type=_integer, default=_num_cores(), metavar="N", help="processes")
    parser.add_argument(
        "--heldout", type=_number, default=DEFAULT_HELDOUT, metavar="SHARE", help="documents kept for evaluation"
    )
    parser.add_argument("--layout", choices=["auto", *LAYOUTS], default="auto", help="how documents lie in the files")
    parser.add_argument(
        "--shard_bytes", type=_integer, default=DEFAULT_SHARD_BYTES, metavar="N", help="bytes of text per shard"
    )
    parser.add_argument("--compression", choices=COMPRESSIONS, default="zstd", help="gzip and none need no plugin")
    parser.add_argument(
        "--lowercase", type=_boolean_or_auto, default="auto", metavar="auto|true|false", help="for a bare vocab.txt"
    )


def _required(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    parser.add_argument(name, required=True, default=argparse.SUPPRESS, **settings)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def _boolean_or_auto(text: str) -> bool | None:
    return None if text == "auto" else _boolean(text)


def _tokenizer(options: argparse.Namespace) -> int:
    train_tokenizer(options.corpus, options.output, options.vocab_size, options.lowercase, options.min_frequency)
    return 0


def _shards(options: argparse.Namespace) -> int:
    build_shards(ShardSettings(**{name: value for name, value in vars(options).items() if name != "command"}))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    for line in inspect_folder(options.folder):
        print(line)
    return 0


def _verify(options: argparse.Namespace) -> int:
    problems = verify_folder(options.folder)
    for problem in problems:
        print(f"bad: {problem}")
    print(f"{options.folder}: {f'{len(problems)} problems' if problems else 'every file is as it was written'}")
    return 1 if problems else 0


COMMAND_HELP = {
    "tokenizer": "train a WordPiece tokenizer on a corpus",
    "shards": "encode a corpus into checksummed HDF5 shards",
    "inspect": "show what a shard folder holds",
    "verify": "compare every file of a shard folder with its digests",
}
COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "tokenizer": _tokenizer,
    "shards": _shards,
    "inspect": _inspect,
    "verify": _verify,
}
