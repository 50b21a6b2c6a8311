"""--corpus arguments to the files that they stand for, and the names of their sources."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STANDARD_INPUT = "-"
MAX_SOURCES = 1 << 16  # shards number them by uint16
SOURCE_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Argument:
    """One --corpus argument: as written, its path (or pattern, or "-") and the name that the user gave."""

    written: str
    path: str
    name: str | None


def parse_arguments(arguments: Sequence[str]) -> list[Argument]:
    """Read ``[NAME=]PATH`` arguments; a path that exists as written has no name.

    Raises:
        ValueError: if a name has other characters than letters, digits, ".", "_" and "-", two sources have one name,
            standard input is named twice, or there are more than MAX_SOURCES.
    """
    if len(arguments) > MAX_SOURCES:
        raise ValueError(
            f"--corpus has {len(arguments):,} arguments, each of them a source, and at most {MAX_SOURCES:,} are "
            "possible: give the folder or a quoted pattern (such as 'texts/*.txt'), which is one source"
        )
    parsed = [_parse(argument) for argument in arguments]
    first: dict[str, Argument] = {}
    for argument in parsed:
        if argument.name is not None:
            if argument.name in first:
                raise ValueError(
                    f"two sources have the name {argument.name!r}: --corpus {first[argument.name].written} and "
                    f"--corpus {argument.written}; give each its own name, or one folder or pattern for both"
                )
            first[argument.name] = argument
    if sum(argument.path == STANDARD_INPUT for argument in parsed) > 1:
        raise ValueError("--corpus names standard input (-) twice: it can be read once")
    return parsed


def reads_standard_input(arguments: Sequence[str]) -> bool:
    """Whether one of ``[NAME=]PATH`` arguments is standard input."""
    return any(_parse(argument).path == STANDARD_INPUT for argument in arguments if argument.endswith(STANDARD_INPUT))


def _parse(argument: str) -> Argument:
    name, equals, path = argument.partition("=")
    as_written = os.path.lexists(argument) or (glob.has_magic(argument) and glob.glob(argument, recursive=True))
    if not equals or as_written or "/" in name:
        return Argument(argument, argument, None)
    if not path:
        raise ValueError(f"--corpus {argument}: a path is missing behind {name}=")
    if not SOURCE_NAME.fullmatch(name):
        raise ValueError(
            f"--corpus {argument}: the source's name {name!r} may have letters, digits, '.', '_' and '-' only "
            f"(and there is no file {argument})"
        )
    return Argument(argument, path, name)


def source_names(arguments: Sequence[Argument]) -> tuple[str, ...]:
    """Return the given names, and for the others the stem of the file or folder with -2, -3, ... where it is taken."""
    taken = {argument.name for argument in arguments if argument.name}
    last_number: dict[str, int] = {}  # tried for each stem
    names = []
    for argument in arguments:
        name = argument.name
        if name is None:
            stem = _stem(argument.path)
            number, name = last_number.get(stem, 1), stem
            while name in taken:
                number += 1
                name = f"{stem}-{number}"
            last_number[stem] = number
            taken.add(name)
        names.append(name)
    return tuple(names)


def _stem(argument: str) -> str:
    """Return the stem of a file (without .gz and the like) or folder; of a pattern, its folder's name."""
    if argument == STANDARD_INPUT:
        return "stdin"
    path = Path(argument)
    while glob.has_magic(path.name) and not path.exists():
        path = path.parent
    resolved = path if path.name else path.resolve()
    if not resolved.is_file():
        if resolved != path and not _is_utf8(resolved.name):
            raise ValueError(
                f"--corpus {argument}: the name of the folder '{_escaped(resolved.name)}' is not UTF-8; rename it, or "
                f"name the source: --corpus NAME={argument}"
            )
        return resolved.name or "corpus"
    if resolved.suffix in (".gz", ".zst", ".xz", ".bz2"):
        resolved = resolved.with_suffix("")
    return resolved.stem or "corpus"


def expand(argument: str) -> list[tuple[str, str]]:
    """Return (path, name within the source) of each file that a path or pattern stands for, by path bytes.

    Raises:
        ValueError: if there is none, a folder cannot be read, symbolic links make a loop, or a name is not UTF-8.
    """
    found = _expand(argument)
    for path, _ in found:
        if not _is_utf8(path):
            raise ValueError(
                f"the file name '{_escaped(path)}' (from --corpus {_escaped(argument)}) is not UTF-8, and a manifest "
                "could not hold it: rename it, or all of a folder by "
                "`convmv -r -f ENCODING -t UTF-8 --notest FOLDER`"
            )
    return found


def _is_utf8(name: str) -> bool:
    """Whether a file name is UTF-8: Python reads other bytes as halves of surrogate pairs."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(name: str) -> str:
    r"""Return a file name with its bytes that are not UTF-8 as \xff."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _expand(argument: str) -> list[tuple[str, str]]:
    if os.path.lexists(argument):
        return _expand_path(argument)
    if not glob.has_magic(argument):
        raise ValueError(f"no such file or folder: {argument} (from --corpus; it is looked up in {os.getcwd()})")
    root = _glob_root(argument)
    matches = glob.glob(argument, recursive=True)
    found = [(path, os.path.relpath(path, root)) for hit in matches for path, _ in _expand_path(hit)]
    if not found:
        raise ValueError(f"no file matches the pattern {argument} (from --corpus; it is looked up in {os.getcwd()})")
    return sorted(set(found), key=lambda item: os.fsencode(item[0]))


def _glob_root(pattern: str) -> str:
    root = Path(pattern)
    while glob.has_magic(str(root)):
        root = root.parent
    return str(root)


def _expand_path(path: str) -> list[tuple[str, str]]:
    if not os.path.isdir(path):
        return [(path, os.path.basename(path))]
    found = []
    visited = set()
    for folder, subfolders, names in os.walk(path, onerror=_raise_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            raise ValueError(f"the folder {folder} is reached twice under {path}: symbolic links lead back to it")
        visited.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    if not found:
        raise ValueError(f"the folder {path} holds no file (hidden files are skipped)")
    named = [(file, os.path.relpath(file, path)) for file in found]
    return sorted(named, key=lambda item: os.fsencode(item[1]))


def _raise_unreadable(error: OSError) -> None:
    raise ValueError(f"cannot read the folder {error.filename}: {error.strerror}") from error
