"""The command line: ``python -m preprocess COMMAND``."""

from __future__ import annotations

import argparse
import difflib
import errno
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from preprocess.building.build import build_shards, finish_shards
from preprocess.folders.merging import merge_folders
from preprocess.folders.splitting import split_folder
from preprocess.folders.verification import verify_folder
from preprocess.importing.nvidia_import import import_nvidia
from preprocess.inspecting.inspection import inspect_folder
from preprocess.options import (
    USER_ERROR,
    HelpFormatter,
    Parser,
    add_import_options,
    add_inspect_options,
    add_merge_options,
    add_shards_options,
    add_split_options,
    add_tokenizer_options,
    add_workers_option,
    corpus_settings,
    import_settings,
    shard_settings,
    training_settings,
)
from preprocess.tokenizer.command import train_tokenizer

DESCRIPTION = """\
Turn raw text into token shards for pretraining:

  1. python -m preprocess tokenizer --corpus corpus/ --type wordpiece --vocab_size 30522 --output tokenizer/
  2. python -m preprocess shards    --corpus corpus/ --tokenizer tokenizer/ --output shards/ --workers 8
  3. python -m preprocess inspect   shards/
     python -m preprocess verify    shards/

Text is UTF-8, plain or compressed (gzip, zstd, xz, bzip2), in layouts that are detected: one sentence or one document a
line, one document a file, JSON lines, tab-separated labels or pairs, parquet, MediaWiki dumps."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 if all is well, 1 if verify found damage or a worker failed, 2 for an error that the user can correct.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(list(arguments))
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return COMMANDS[options.command][2](options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        if isinstance(error, BrokenPipeError) and options.command == "inspect":  # as in `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"error: {_describe(error)}", file=sys.stderr)
        return USER_ERROR
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        goes_on = "; the same command goes on where it was" if options.command == "shards" else ""
        print(f"stopped{goes_on}", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


def _describe(error: OSError) -> str:
    """Return what went wrong and where; of a full disk also the way out, if the error does not tell it."""
    text = str(error.strerror or error)
    if error.filename:
        text += f": {error.filename}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and text.startswith(os.strerror(error.errno)) and "free" not in text:
        text += "; free some space, and give the same command again"
    return text


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
    commands = {}
    for name, (text, add_options, _) in COMMANDS.items():
        commands[name] = subparsers.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            formatter_class=HelpFormatter,
        )
        add_options(commands[name])
    return parser, commands


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a shard folder, as `shards --output` made it")


def _verify_options(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    add_workers_option(parser)


def _tokenizer(options: argparse.Namespace) -> int:
    train_tokenizer(corpus_settings(options), training_settings(options), options.output, options.workers)
    return 0


def _shards(options: argparse.Namespace) -> int:
    build_shards(shard_settings(options), say=functools.partial(print, flush=True))
    return 0


def _finish(options: argparse.Namespace) -> int:
    finish_shards(options.folder)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    for line in inspect_folder(options.folder, options.samples, options.seed, options.workers, options.html):
        print(line)
    return 0


def _verify(options: argparse.Namespace) -> int:
    problems = verify_folder(options.folder, options.workers)
    for problem in problems:
        print(f"bad: {problem}")
    print(f"{options.folder}: {f'{len(problems)} problems' if problems else 'every file is as it was written'}")
    return 1 if problems else 0


def _merge(options: argparse.Namespace) -> int:
    merge_folders(options.folders, options.output, options.workers)
    return 0


def _split(options: argparse.Namespace) -> int:
    split_folder(options.folder, options.output, options.into, options.by, options.workers)
    return 0


def _import(options: argparse.Namespace) -> int:
    import_nvidia(import_settings(options))
    return 0


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "tokenizer": ("train a tokenizer on a corpus", add_tokenizer_options, _tokenizer),
    "shards": ("clean and encode a corpus into checksummed HDF5 shards", add_shards_options, _shards),
    "finish": ("complete a folder that `shards --part I/N` filled", _folder, _finish),
    "inspect": ("show what a shard folder holds", add_inspect_options, _inspect),
    "verify": ("compare every file of a shard folder with its digests", _verify_options, _verify),
    "merge": ("join shard folders of one tokenizer", add_merge_options, _merge),
    "split": ("cut a shard folder into parts, or by source", add_split_options, _split),
    "import": ("make shards of static HDF5 files as NVIDIA's BERT has them", add_import_options, _import),
}
