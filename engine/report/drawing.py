"""Charts as SVG: a colour for each run, the page's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.report.curves import Chart, Curve
from preprocess.drawing import draw_svg

WIDE, NARROW = (10.4, 3.1), (5.2, 2.7)  # inches
FEW = 30  # points of a curve that are marked one by one
LIGHT = ("#2563a8", "#d4570a", "#2b8a3e", "#9c36b5", "#c2255c", "#0b7285", "#946200", "#5c5f66")
DARK = ("#7ab3ef", "#ff9d5c", "#69c779", "#d59bea", "#ff8fb1", "#5cc8d6", "#e2b84a", "#b3b8c0")
MANY = 50.0  # range of positive figures from which on a chart that may be is logarithmic


def colour_style(num_runs: int) -> str:
    """CSS that gives run i the colour ``--run-i``, in light and dark."""

    def variables(palette: Sequence[str], lightness: int) -> str:
        hues = (f"hsl({number * 137.5 % 360:.0f} 60% {lightness}%)" for number in range(num_runs))
        colours = [*palette[:num_runs], *list(hues)[len(palette) :]]
        return " ".join(f"--run-{number}: {colour};" for number, colour in enumerate(colours))

    light, dark = variables(LIGHT, 42), variables(DARK, 70)
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def draw_chart(chart: Chart, num_runs: int, *, wide: bool) -> str:
    """The chart as an SVG element; a chart that stands beside another is in the same picture."""
    stand_ins = {_stand_in(number): f"var(--run-{number})" for number in range(num_runs)}

    def draw(figure: Any) -> None:
        parts = [chart] if chart.beside is None else [chart, chart.beside]
        for axes, part in zip(figure.subplots(1, len(parts), sharex=True, squeeze=False)[0], parts, strict=True):
            _draw(axes, part)
            if len(parts) > 1:
                axes.set_ylabel(part.title)

    size = WIDE if wide or chart.beside else NARROW
    return draw_svg(chart.name, f"{chart.title} over {chart.over}", draw, size, stand_ins)


def short(value: float) -> str:
    """A number of an axis: 950, 12k, 3.5M, 0.001, 2e-05."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if letter == 'k' else unit):.4g}{letter}"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.4g}"


def _draw(axes: Any, chart: Chart) -> None:
    for curve in chart.curves:
        _draw_curve(axes, curve)
    values = [value for curve in chart.curves for value in curve.y]
    if chart.may_be_logarithmic and min(values) > 0 and max(values) / min(values) > MANY:
        axes.set_yscale("log")
    axes.margins(x=0.015)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: short(value))
        axis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel(chart.over)


def _draw_curve(axes: Any, curve: Curve) -> None:
    colour = _stand_in(curve.run)
    look = {"linestyle": (0, (4, 2)) if curve.held_out else "-", "linewidth": 1.6, "color": colour}
    if len(curve.x) <= FEW:
        look |= {"marker": "o", "markersize": 3.5, "markeredgewidth": 0}
    if curve.low is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(curve.x, curve.y, **look)


def _stand_in(run: int) -> str:
    """What stands for a run's colour until it is part of a page."""
    return f"#0b{run // 256:02x}{run % 256:02x}"
