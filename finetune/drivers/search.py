"""What a sweep searches: values or ranges of settings, and how combinations are drawn. Never imports torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config.cli import nearest

METHODS = ("grid", "optuna")
KEYS = ("low", "high", "log", "step")
Changes = dict[str, Any]  # dotted setting -> value


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; whole ones where low and high are whole.

    Attributes:
        low: the least.
        high: the greatest.
        log: whether their logarithm is what is drawn evenly.
        step: distance between the numbers; None: any number, or any whole one.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))


Space = dict[str, "list[Any] | Range"]


def search_problems(search: Mapping[str, Any], method: str) -> list[str]:
    """Everything wrong with what is to be searched, in the user's words."""
    if not search:
        return ["search is empty; name a setting and its values, such as train.optimizer.lr: [1e-5, 3e-5]"]
    found = []
    for name, given in search.items():
        if isinstance(given, list):
            if not given or any(given.count(value) > 1 for value in given):
                found.append(f"search.{name} is {given}; it must hold at least one value, each once")
        elif not isinstance(given, dict):
            found.append(
                f"search.{name} is {given!r}; it must be a list of values or a range such as {{low: 1, high: 5}}"
            )
        else:
            found += [f"search.{name}: {text}" for text in _range_problems(given)]
            if method == "grid":
                found.append(f"search.{name} is a range; a grid needs a list of values; --method optuna takes ranges")
    return found


def _range_problems(given: Mapping[str, Any]) -> list[str]:
    found = [f"unknown key {key}{nearest(str(key), KEYS)}" for key in given if key not in KEYS]
    low, high, step = (_number(given.get(key)) for key in ("low", "high", "step"))
    if low is None or high is None or not low < high:
        return [*found, f"low is {given.get('low')!r} and high {given.get('high')!r}; they must be numbers, low < high"]
    if not isinstance(given.get("log", False), bool):
        found.append(f"log is {given['log']!r}; it must be true or false")
    elif given.get("log") and (low <= 0 or "step" in given):
        found.append("log needs low above 0 and no step")
    if "step" in given and (step is None or step <= 0):
        found.append(f"step is {given['step']!r}; it must be a number above 0")
    return found


def _number(given: Any) -> float | int | None:
    """A number, of a text too: YAML reads 1e-5 as one."""
    if isinstance(given, str):
        try:
            given = float(given)
        except ValueError:
            return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        return None
    return given


def parse_search(search: Mapping[str, Any]) -> Space:
    """What is to be searched, of settings without problems."""
    space: Space = {}
    for name, given in search.items():
        if isinstance(given, list):
            space[name] = [_value(value) for value in given]
        else:
            low, high, step = (_number(given.get(key)) for key in ("low", "high", "step"))
            assert low is not None and high is not None
            space[name] = Range(low, high, given.get("log", False), step)
    return space


def _value(given: Any) -> Any:
    """A value of a list; a text that is a number in all but YAML's eyes is one."""
    number = _number(given) if isinstance(given, str) and "e" in given.lower() else None
    return given if number is None else number


def grid(space: Space) -> list[Changes]:
    """Every combination of values; the last setting changes fastest."""
    values = [choices for choices in space.values() if isinstance(choices, list)]
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*values)]


def with_changes(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of settings with some of them changed, which dotted names say; the tree given stays as it is."""
    tree = {key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if rest:
            inner = tree.get(first)
            tree[first] = with_changes(inner if isinstance(inner, Mapping) else {}, {rest: value})
        else:
            tree[first] = value
    return tree


class Drawing:
    """Draws combinations by Optuna's TPE sampler (Bergstra et al. 2011, NeurIPS), guided by earlier figures.

    A draw is a pure function of the seed, of how many were drawn before, and of what is known of them, so that a sweep
    that was stopped goes on as it would have without.
    """

    def __init__(self, space: Space, maximizes: bool, seed: int) -> None:
        """Begin with nothing known.

        Raises:
            ValueError: if Optuna is not installed.
        """
        try:
            import optuna
        except ImportError:
            raise ValueError("--method optuna needs Optuna: pip install optuna; --method grid works without") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._seed = optuna, space, seed
        self._study = optuna.create_study(direction="maximize" if maximizes else "minimize")
        self._distributions = {name: self._distribution(choices) for name, choices in space.items()}
        self._under_way: dict[int, Any] = {}
        self._texts = {name: [repr(value) for value in c] for name, c in space.items() if isinstance(c, list)}

    def _distribution(self, choices: list[Any] | Range) -> Any:
        kinds = self._optuna.distributions
        if isinstance(choices, list):  # by repr: Optuna wants numbers, texts, switches or None
            return kinds.CategoricalDistribution([repr(value) for value in choices])
        if choices.whole:
            step = int(choices.step or 1)
            return kinds.IntDistribution(int(choices.low), int(choices.high), log=choices.log, step=step)
        return kinds.FloatDistribution(choices.low, choices.high, log=choices.log, step=choices.step)

    def learn(self, changes: Mapping[str, Any], figure: float) -> None:
        """Take in what an earlier start found; what is outside of the space is left out."""
        params = {name: repr(changes[name]) if name in self._texts else changes[name] for name in self._space}
        if all(distribution._contains(distribution.to_internal_repr(params[name]))
               for name, distribution in self._distributions.items()
               if name not in self._texts or params[name] in self._texts[name]):  # fmt: skip
            trial = self._optuna.trial.create_trial(params=params, distributions=self._distributions, value=figure)
            self._study.add_trial(trial)

    def draw(self, number: int) -> Changes:
        """The combination of run ``number``."""
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=(self._seed * 1_000_003 + number) % 2**32, constant_liar=True, n_startup_trials=5
        )
        trial = self._study.ask(self._distributions)
        self._under_way[number] = trial
        return {name: self._found(name, trial.params[name]) for name in self._space}

    def _found(self, name: str, value: Any) -> Any:
        choices = self._space[name]
        return choices[self._texts[name].index(value)] if isinstance(choices, list) else value

    def tell(self, number: int, changes: Mapping[str, Any], figure: float | None) -> None:
        """The figure of run ``number``; None where it failed."""
        trial = self._under_way.pop(number, None)
        failed = figure is None or not math.isfinite(figure)
        if trial is None:  # drawn by an earlier start
            if figure is not None and not failed:
                self.learn(changes, figure)
            return
        state = self._optuna.trial.TrialState.FAIL if failed else None
        self._study.tell(trial, None if failed else figure, state=state)
