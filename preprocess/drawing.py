"""Plots as SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

# Colours that stand for those of the page: matplotlib wants numbers, the page wants names.
COLOURS = {"#010203": "currentColor", "#040506": "var(--accent)", "#070809": "var(--line)"}
TEXT, ACCENT, LINE = COLOURS
SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": TEXT,
    "text.parse_math": False,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}
SIZE = (7.4, 2.9)  # inches


def require_matplotlib(message: str) -> None:
    """Raise ValueError with a message if plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(message) from None


def draw_svg(
    name: str,
    label: str,
    draw: Callable[[Any], None],
    size: tuple[float, float] = SIZE,
    more_colours: Mapping[str, str] | None = None,
) -> str:
    """Return an SVG element for use within a page; the same for the same content.

    Args:
        name: of the plot, unlike those of the page's other plots; letters, digits and hyphens.
        label: what the plot shows, for those who cannot see it.
        draw: draws into a figure that has no axes yet, in the stand-ins of ``COLOURS`` and ``more_colours``.
        size: width and height in inches.
        more_colours: stand-ins such as "#0a0b0c" of further colours of the page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        **SETTINGS,
        "svg.hashsalt": name,
    }  # ids differ between the plots of a page, and not between runs
    stream = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the page's fonts have the characters that matplotlib's lack
        figure = Figure(figsize=size, layout="tight")
        draw(figure)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    return _for_page(stream.getvalue(), name, label, {**COLOURS, **(more_colours or {})})


def _for_page(svg: str, name: str, label: str, colours: Mapping[str, str]) -> str:
    """Take an SVG file apart for use within a page: no prolog or metadata, ids of its own, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    quoted = escape(label).replace("\\", "\\\\")
    tag = rf'<svg role="img" aria-label="{quoted}" \1 xmlns:xlink="http://www.w3.org/1999/xlink">'
    svg = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', tag, svg)
    svg = svg.replace("'DejaVu Sans'", "system-ui")
    for stand_in, colour in colours.items():
        svg = svg.replace(stand_in, colour)
    return svg.strip()
