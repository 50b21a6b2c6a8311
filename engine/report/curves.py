"""Which curves a report shows, and with how many points."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.report.runs import HELD_OUT, Point, Run

DOWNSTREAM = "downstream_"
MAX_POINTS = 500
LOSS, TARGETS, SCORES, OPTIMIZER, SPEED, OTHER = (
    "Loss",
    "Accuracy and perplexity",
    "Downstream tasks",
    "Steps",
    "Speed and memory",
    "Other figures",
)
TITLES = {
    "loss": "Loss",
    "perplexity": "Perplexity",
    "accuracy": "Accuracy, %",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm, before clipping",
    "loss_scale": "Loss scale (fp16)",
    "skipped_steps": "Skipped steps, since a start",
    "seq_length": "Tokens of a row",
    "batch_size": "Rows of a step",
    "masking_rate": "Masked share, %",
    "stage": "Stage",
    "tokens": "Real tokens seen",
    "eta": "Time left, h:mm:ss",
    "tokens_per_second": "Real tokens per second",
    "mfu": "MFU, %",
    "memory_bytes": "Peak memory of a rank, GiB",
    "data_wait": "Waiting for data, % of the time",
    "filler": "Filler, % of the computed tokens",
}
STEP_FIGURES = ("lr", "grad_norm", "loss_scale", "skipped_steps", "batch_size", "seq_length", "masking_rate", "stage")
SPEED_FIGURES = ("tokens_per_second", "mfu", "memory_bytes", "data_wait", "filler")
NOT_DRAWN = ("tokens", "eta")  # straight lines, or nearly
RATIOS = ("perplexity", "grad_norm", "loss_scale")
SHARES = ("mfu", "data_wait", "filler", "masking_rate", "accuracy")


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        run: number of the run.
        held_out: whether it was measured on held-out data.
        x: of the points.
        y: of the points; where each stands for several, their means.
        low: least of those that a point stands for; None where it stands for one.
        high: greatest of those.
        each: how many figures a point stands for, at most.
    """

    run: int
    held_out: bool
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    each: int = 1


@dataclass(frozen=True)
class Chart:
    """Curves of all runs over each other.

    Attributes:
        name: of letters, digits and hyphens, unlike those of other charts.
        title: what the vertical axis is.
        group: the heading that it stands under.
        curves: at least one.
        over: what the horizontal axis is.
        beside: another chart of the same steps, to stand beside it.
        may_be_logarithmic: whether its figures are ratios rather than amounts.
    """

    name: str
    title: str
    group: str
    curves: tuple[Curve, ...]
    over: str = "step"
    beside: Chart | None = None
    may_be_logarithmic: bool = False


def charts(runs: Sequence[Run]) -> list[Chart]:
    """All charts, in the order of the page: one for each figure, with what was measured of it on held-out data."""
    keys = dict.fromkeys(key for run in runs for key in run.keys())  # noqa: SIM118
    bases = dict.fromkeys(key.removeprefix(HELD_OUT) for key in keys)
    drawn = [base for base in bases if base not in NOT_DRAWN and not base.startswith("rows/")]
    made = []
    for number, base in enumerate(sorted(drawn, key=_rank)):
        chart = _chart(f"c{number}", base, runs)
        made.append(chart)
        if base == "loss" and (over_tokens := _curves(runs, base, _tokens_at)):
            made.append(Chart(f"c{number}-tokens", TITLES[base], LOSS, over_tokens, "tokens"))
    return made


def _chart(name: str, base: str, runs: Sequence[Run]) -> Chart:
    beside = None
    if base.startswith(DOWNSTREAM) and (losses := _curves(runs, "loss", _step_of)):
        beside = Chart(f"{name}-loss", TITLES["loss"], SCORES, losses)
    ratio = base.startswith(RATIOS)
    curves = _curves(runs, base, _step_of)
    return Chart(name, title_of(base), _group(base), curves, beside=beside, may_be_logarithmic=ratio)


def title_of(key: str) -> str:
    """A figure's name in words."""
    base = key.removeprefix(HELD_OUT)
    if base in TITLES:
        return TITLES[base]
    if base.startswith(DOWNSTREAM):
        return base.removeprefix(DOWNSTREAM).replace("_", " ")
    for name in ("loss", "perplexity", "accuracy"):
        if base.startswith((f"{name}_", f"{name}/")):
            word = "of" if base[len(name)] == "_" else "on"
            return f"{name.capitalize()} {word} {base[len(name) + 1 :]}" + (", %" if name == "accuracy" else "")
    return base.replace("_", " ")


def in_unit(key: str, value: float) -> float:
    """A figure in the unit of its title."""
    base = key.removeprefix(HELD_OUT)
    if base == "memory_bytes":
        return value / 2**30
    return 100 * value if base.startswith(SHARES) else value


def _group(base: str) -> str:
    beginnings = {
        DOWNSTREAM: SCORES,
        "loss_scale": OPTIMIZER,
        "loss": LOSS,
        "accuracy": TARGETS,
        "perplexity": TARGETS,
    }
    for beginning, group in beginnings.items():
        if base.startswith(beginning):
            return group
    return OPTIMIZER if base in STEP_FIGURES else SPEED if base in SPEED_FIGURES else OTHER


def _rank(base: str) -> tuple[int, int]:
    groups = (LOSS, TARGETS, SCORES, OPTIMIZER, SPEED, OTHER)
    known = ("loss", *STEP_FIGURES, *SPEED_FIGURES)
    return groups.index(_group(base)), known.index(base) if base in known else len(known)


def _step_of(run: Run, point: Point) -> float | None:
    return point.step


def _tokens_at(run: Run, point: Point) -> float | None:
    """Tokens that the run had seen at a point's step; evaluations have no such figure of their own."""
    tokens = run.points("tokens")
    number = bisect.bisect_right(tokens, point.step, key=lambda other: other.step)
    return tokens[number - 1].value if number else None


def _curves(runs: Sequence[Run], base: str, place: Callable[[Run, Point], float | None]) -> tuple[Curve, ...]:
    found = []
    for number, run in enumerate(runs):
        for key in (base, HELD_OUT + base):
            placed = [(place(run, point), in_unit(key, point.value)) for point in run.points(key)]
            points = [(x, y) for x, y in placed if x is not None]
            if points:
                x, y = np.array(points, np.float64).T
                found.append(thinned(number, key != base, x, y))
    return tuple(found)


def thinned(run: int, held_out: bool, x: np.ndarray, y: np.ndarray) -> Curve:
    """A curve of at most ``MAX_POINTS`` points: of more, each stands for equally many neighbours, but the last."""
    each = -(-len(x) // MAX_POINTS)
    if each == 1:
        return Curve(run, held_out, x.tolist(), y.tolist())
    starts = np.arange(0, len(x), each)
    sizes = np.diff([*starts, len(x)])
    return Curve(
        run,
        held_out,
        (np.add.reduceat(x, starts) / sizes).tolist(),
        (np.add.reduceat(y, starts) / sizes).tolist(),
        np.minimum.reduceat(y, starts).tolist(),
        np.maximum.reduceat(y, starts).tolist(),
        each,
    )
