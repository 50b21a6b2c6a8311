"""One command line for every dataclass of settings: YAML file, dotted options, `--print_config`.

jsonargparse does the parsing; what it lacks is added here: an unknown key is refused with the nearest right name, all
unknown keys at once, on the command line and in the YAML file alike.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from engine.config.recipes import recipe_names, with_recipe_files

C = TypeVar("C")
SECONDS_TO_TELL = 5.0
EXIT_MISTAKE, EXIT_STOPPED, EXIT_RANK_LOST, EXIT_INTERRUPTED = 2, 75, 76, 130  # 75: "try again" of sysexits.h
T = TypeVar("T")
_RAMP = re.compile(r"(--[\w.]+=)?\{[\d\s:,]*\}")


class UsageError(ValueError):
    """A mistake in a command line or a settings file; its text is all that the user needs."""


class SharedError(ValueError):
    """A user's mistake that every rank raises with the same text, so that rank 0 alone tells it."""


class RunStopped(Exception):  # noqa: N818  (nothing went wrong)
    """A run that was asked to stop, has saved and can go on; raised by all ranks together."""

    def __init__(self, reason: str, step: int) -> None:
        """Say what asked (``SIGTERM``, say) and the step of the checkpoint that was saved."""
        super().__init__(f"stopped by {reason} at step {step}, which is saved: the same command goes on from there")
        self.reason, self.step = reason, step


class RankLostError(Exception):
    """Another rank never came, is gone, frozen or hung."""

    def __init__(self, text: str, *, tell: bool) -> None:
        """Keep the text, and whether this process prints it; the watchdog has told it on one rank already."""
        super().__init__(text)
        self.tell = tell


def collect(problems: list[str], find: Callable[[], T]) -> T | None:
    """The result of ``find``; the text of its ValueError goes to ``problems``, and the result is None."""
    try:
        return find()
    except ValueError as error:
        problems.append(str(error))
        return None


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean X?`` for the name most like ``name``, or the empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def parse_config(config_class: type[C], argv: Sequence[str], prog: str) -> C:
    """Read settings from a command line and the YAML files it names.

    Args:
        config_class: frozen dataclass; nested dataclasses become dotted options. One with a ``RECIPES`` folder lets
            ``--config`` name a recipe in it.
        argv: arguments without the program's name.
        prog: the program's name in messages.

    Returns:
        An instance of ``config_class``.

    Raises:
        UsageError: unknown keys, values of a wrong type, a missing required option, an unreadable YAML file.
        SystemExit: after ``--help`` and ``--print_config``.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    parser = ArgumentParser(prog=prog, allow_abbrev=False, exit_on_error=False)
    recipes = getattr(config_class, "RECIPES", None)
    known = recipe_names(recipes) if recipes else []
    argv = with_recipe_files(argv, recipes) if recipes else argv
    named = f", or a recipe: {', '.join(known)}" if known else ""
    parser.add_argument("--config", action="config", help=f"YAML file with any of these settings{named}.")
    parser.add_class_arguments(config_class, nested_key=None)
    names = {option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")}
    files = _refuse_unknown_options(argv, names)
    in_lists = set(_keys_in_lists(config_class))
    for file in files:
        _refuse_unknown_keys(file, names | in_lists, known)
    _refuse_unknown_keys_of_options(argv, names | in_lists)
    try:
        parsed = parser.instantiate(parser.parse_args(_with_values(argv, parser)))
    except Exception as error:  # jsonargparse raises several unrelated classes for a user's mistake
        raise UsageError(f"{_plain(error)} (see --help)") from None
    config = config_class(**{field.name: parsed[field.name] for field in fields(cast(Any, config_class))})
    if empty := _empty(config):
        raise UsageError("\n".join(f"{name} has no value; give one or leave the setting out" for name in empty))
    return config


def _empty(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of settings that a YAML file leaves empty and that cannot be None; jsonargparse lets them pass."""
    names = []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            names += _empty(value, f"{prefix}{field.name}.")
        elif value is None and "None" not in str(field.type):
            names.append(prefix + field.name)
    return names


def _with_values(argv: Sequence[str], parser: ArgumentParser) -> list[str]:
    """What YAML would read otherwise than it is meant.

    A switch without a value means true: ``--random_init`` is ``--random_init true``. In a ramp ``{5:64}`` is
    ``{5: 64}``, where YAML sees one key without a value. A list may be given as words: ``--seeds 1 2`` is
    ``--seeds [1, 2]``.
    """
    argv = _with_lists(argv, parser)
    actions = [action for action in parser._actions if getattr(action, "_typehint", None) is bool]
    switches = {option for action in actions for option in action.option_strings}
    result: list[str] = []
    for argument, following in zip(argv, [*argv, "--"][1:], strict=True):
        result.append(re.sub(r"(\d):(?=\d)", r"\1: ", argument) if _RAMP.fullmatch(argument) else argument)
        if argument in switches and following.startswith("--"):
            result.append("true")
    return result


def _with_lists(argv: Sequence[str], parser: ArgumentParser) -> list[str]:
    """The words after an option whose value is a list of numbers or texts, as one YAML list."""
    kinds = {
        option: get_args(getattr(action, "_typehint", None))[0]
        for action in parser._actions
        if get_origin(getattr(action, "_typehint", None)) is list
        for option in action.option_strings
    }
    result: list[str] = []
    for argument in argv:
        name, has_value, value = argument.partition("=")
        if argument.startswith("--") and has_value and kinds.get(name) in (int, float, str):
            result += [name, value]
        else:
            result.append(argument)
    place = 0
    while place < len(result):
        kind = kinds.get(result[place])
        place += 1
        words = list(takewhile(lambda word: not word.startswith("--"), result[place:]))
        if kind in (int, float, str) and words and not (len(words) == 1 and words[0].startswith("[")):
            shown = [json.dumps(word) if kind is str else word for word in words]
            result[place : place + len(words)] = [f"[{', '.join(shown)}]"]
    return result


def _refuse_unknown_options(argv: Sequence[str], names: set[str]) -> list[str]:
    """Check every ``--option`` of a command line against ``names``; return the files given with ``--config``."""
    unknown, files = [], []
    for position, argument in enumerate(argv):
        if not argument.startswith("--") or argument == "--":
            continue
        name, _, value = argument[2:].partition("=")
        if name not in names:
            unknown.append(f"unknown option --{name}" + nearest(name, names).replace("mean ", "mean --"))
        elif name == "config":
            files.append(value or (argv[position + 1] if position + 1 < len(argv) else ""))
    if unknown:
        raise UsageError("\n".join(unknown))
    return [file for file in files if file]


def _refuse_unknown_keys(file: str, names: set[str], recipes: Sequence[str]) -> None:
    try:
        tree = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        if recipes and isinstance(error, FileNotFoundError) and not re.search(r"/|\.ya?ml$", file):
            hint = nearest(file, recipes) or f"; the recipes are {', '.join(recipes)}"
            raise UsageError(f"--config {file}: neither a file nor a recipe{hint}") from None
        raise UsageError(f"--config {file}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {file} is not a YAML file: {error}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"--config {file}: expected keys and values at the top, found {type(tree).__name__}")
    _refuse_unknown(tree, names, f"--config {file}: ")


def _refuse_unknown_keys_of_options(argv: Sequence[str], names: set[str]) -> None:
    """Check the lists of groups of settings that a command line gives as YAML, such as ``--stages '[{steps: 5}]'``."""
    lists = {name.partition("[]")[0] for name in names if "[]" in name}
    for argument, following in zip(argv, [*argv, ""][1:], strict=True):
        name, has_value, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in lists:
            try:
                tree = {name: yaml.safe_load(value if has_value else following)}
            except yaml.YAMLError as error:
                raise UsageError(f"--{name} is not YAML: {error}") from None
            _refuse_unknown(tree, names, "")


def _refuse_unknown(tree: dict[str, Any], names: set[str], where: str) -> None:
    """UsageError naming every key of a tree that is no setting."""
    given, groups = _dotted(tree, names), {name.rpartition(".")[0] for name in names}
    lines = []
    for key, shown in given:
        if key in groups:
            lines.append(f"{where}{shown} must hold keys and values, one a line below it")
        elif key not in names and key not in ("config", "print_config"):
            lines.append(f"{where}unknown key {shown}{_hint(key, names)}")
    if lines:
        raise UsageError("\n".join(lines))


def _hint(key: str, names: set[str]) -> str:
    """What was meant by an unknown key: in a list, that a setting belongs to the whole run, or the nearest there."""
    group, in_list, inner = key.rpartition("[].")
    if not in_list:
        return nearest(key, names)
    for name in sorted(names):
        if "[]" not in name and (name == inner or name.endswith(f".{inner}")):
            return f"; {name} is a setting of the whole run"
    return nearest(inner, [name.removeprefix(f"{group}[].") for name in names if name.startswith(f"{group}[].")])


def _dotted(tree: dict[str, Any], names: set[str], prefix: str = "", shown: str = "") -> list[tuple[str, str]]:
    """What a tree gives, by dotted names: in a list as ``list[].key``, and as a user finds it, ``list.0.key``."""
    keys = []
    for key, value in tree.items():
        name, seen = f"{prefix}{key}", f"{shown}{key}"
        is_group = any(known.startswith(f"{name}.") for known in names)
        if isinstance(value, list) and any(known.startswith(f"{name}[].") for known in names):
            for number, item in enumerate(value):
                if isinstance(item, dict):
                    keys += _dotted(item, names, f"{name}[].", f"{seen}.{number}.")
        elif isinstance(value, dict) and (is_group or name not in names):
            keys += _dotted(value, names, f"{name}.", f"{seen}.")
        else:
            keys.append((name, seen))
    return keys


def _keys_in_lists(config_class: Any, prefix: str = "", in_list: bool = False) -> Iterator[str]:
    """Names ``list[].key`` of the settings that stand in a list of groups of settings."""
    for name, kind in get_type_hints(config_class).items():
        inner = next((part for part in get_args(kind) if is_dataclass(part)), None)
        if is_dataclass(kind):
            if in_list:
                yield f"{prefix}{name}"
            yield from _keys_in_lists(kind, f"{prefix}{name}.", in_list)
        elif inner is not None and get_origin(kind) is list:
            yield from _keys_in_lists(inner, f"{prefix}{name}[].", True)
        elif in_list:
            yield f"{prefix}{name}"
            if inner is not None:  # a group that may be None
                yield from _keys_in_lists(inner, f"{prefix}{name}.", True)


def _plain(error: BaseException) -> str:
    """jsonargparse's message with the option's own name and without Python's words for types."""
    text = str(error).strip() or type(error).__name__
    text = re.sub(r'Parser key "([^"]+)":\s*', r"--\1: ", text)
    if union := re.search(r"^(.*?)Does not validate against any of the Union subtypes\s+Subtypes: \[(.*)\]\n", text):
        kinds = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", union[2]).replace(", NoneType", "")
        return f"{union[1]}expected {kinds}, found {text.rpartition('Given value: ')[2]}"
    return re.sub(r"Expected an? <class '(\w+)'>\. Got value: (.*)", r"expected \1, found \2", text)


def run_command(main: Callable[[], int | None]) -> int:
    """Call ``main`` and turn a user's mistake, or a full disk, into one message on stderr.

    A mistake found before the ranks have met is the same on all ranks of a host, so one of each host tells it; later
    each rank tells its own. ``ENGINE_TRACEBACK=1`` shows where a message came from.

    Returns:
        The exit code: 0; 2 for a user's mistake; 75 where the run was asked to stop, has saved and can go on; 76 where
        another rank was lost; 130 for Ctrl-C.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it once, when it is imported
    try:
        return int(main() or 0)
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if os.environ.get("ENGINE_TRACEBACK") or not (isinstance(error, ValueError) or full):
            raise
        number = os.environ.get("RANK", "")  # which may be what is wrong
        rank = int(number) if number.isdecimal() else 0
        first_of_host = os.environ.get("LOCAL_RANK", "0") == "0"
        if rank == 0 or (not isinstance(error, SharedError) and (first_of_host or _ranks_have_met())):
            print(f"error: {error}" if rank == 0 else f"error on rank {rank}: {error}", file=sys.stderr, flush=True)
        else:  # a launcher ends all ranks with the first that ends: the one that tells must have told
            time.sleep(SECONDS_TO_TELL)
        return EXIT_MISTAKE
    except RunStopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, file=sys.stderr, flush=True)
        return EXIT_STOPPED
    except RankLostError as lost:
        if lost.tell:
            print(f"error: {lost}", file=sys.stderr, flush=True)
        return EXIT_RANK_LOST
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def exit_process(code: int) -> NoReturn:
    """End the process of an entry with exactly this exit code.

    The threads of a process group that is torn down at interpreter exit can abort the process after all work was done.
    """
    if code == 0 and _ranks_have_met():
        sys.modules["torch.distributed"].destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ranks_have_met() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and bool(distributed.is_initialized())
