"""Recipes: settings of known pretraining runs, which ``--config`` can name. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RECIPE_FOLDER = Path(__file__).resolve().parent.parent / "recipes"


def recipe_names(folder: Path = RECIPE_FOLDER) -> list[str]:
    """List the recipes, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def with_recipe_files(argv: Sequence[str], folder: Path = RECIPE_FOLDER) -> list[str]:
    """A command line whose ``--config NAME`` has the recipe's file where no file is called NAME."""
    result: list[str] = []
    for argument in argv:
        option, has_value, value = argument.partition("=")
        if option == "--config" and has_value:
            argument = f"--config={_file_of(value, folder)}"
        elif result and result[-1] == "--config":
            argument = _file_of(argument, folder)
        result.append(argument)
    return result


def _file_of(value: str, folder: Path) -> str:
    is_recipe = value in recipe_names(folder) and not Path(value).is_file()
    return str(folder / f"{value}.yaml") if is_recipe else value
