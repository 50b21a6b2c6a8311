"""Plots of a shard folder as SVG that takes its colours from the page around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from preprocess.drawing import ACCENT, draw_svg
from preprocess.inspecting.samples import printable
from preprocess.inspecting.shard_statistics import Statistics
from preprocess.manifest import Manifest

LABELS = {
    "document_tokens": "histogram of tokens per document",
    "sentence_tokens": "histogram of tokens per sentence",
    "ranks": "how often the most frequent tokens occur, by rank",
    "sources": "tokens of each source",
}
BINS_PER_OCTAVE = 4
MAX_RANK_POINTS = 400
MAX_SOURCES = 20
MAX_NAME = 28


def draw_plots(manifest: Manifest, statistics: Statistics) -> dict[str, str]:
    """Return SVG by the name of the plot; those of which there is nothing to show are left out."""
    drawings: dict[str, Callable[[Any], None]] = {}
    if manifest.shards:
        drawings["document_tokens"] = lambda axes: _lengths(axes, statistics.document_tokens, "document")
        drawings["sentence_tokens"] = lambda axes: _lengths(axes, statistics.sentence_tokens, "sentence")
        drawings["ranks"] = lambda axes: _ranks(axes, statistics)
    if len(manifest.sources) > 1:
        drawings["sources"] = lambda axes: _sources(axes, manifest)

    def drawing(name: str) -> Callable[[Any], None]:
        return lambda figure: drawings[name](figure.add_subplot())

    return {name: draw_svg(name, LABELS[name], drawing(name)) for name in drawings}


def _lengths(axes: Any, lengths: Mapping[int, int], what: str) -> None:
    """Draw a histogram of lengths with bins of equal ratio; each bin has at least one whole number in it."""
    longest = max(lengths)
    exponents = np.arange(0, np.log2(longest) + 1 + 1 / BINS_PER_OCTAVE, 1 / BINS_PER_OCTAVE)
    edges = np.unique(np.ceil(2.0**exponents).astype(np.int64))
    values = np.array(sorted(lengths))
    counts = np.array([lengths[value] for value in values.tolist()])
    heights, _ = np.histogram(values, bins=edges, weights=counts)
    axes.bar(edges[:-1], heights, width=np.diff(edges) * 0.94, align="edge", color=ACCENT)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(f"tokens per {what}")
    axes.set_ylabel(f"{what}s")
    axes.grid(visible=False, axis="x")


def _ranks(axes: Any, statistics: Statistics) -> None:
    counts = np.sort(statistics.token_counts[statistics.token_counts > 0])[::-1]
    shown = np.unique(np.geomspace(1, len(counts), MAX_RANK_POINTS).astype(np.int64))
    axes.plot(shown, counts[shown - 1], color=ACCENT, linewidth=1.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("rank of the token")
    axes.set_ylabel("times")


def _sources(axes: Any, manifest: Manifest) -> None:
    """Draw the tokens of the largest sources, and of all others together."""
    by_size = sorted(manifest.sources, key=lambda source: -source.num_tokens)
    names = [_short(printable(source.name)) for source in by_size[:MAX_SOURCES]]
    tokens = [source.num_tokens for source in by_size[:MAX_SOURCES]]
    if others := by_size[MAX_SOURCES:]:
        names.append(f"{len(others):,} others")
        tokens.append(sum(source.num_tokens for source in others))
    axes.figure.set_figheight(0.9 + 0.27 * len(names))
    axes.barh(range(len(names)), tokens, height=0.7, color=ACCENT)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("tokens")
    axes.grid(visible=False, axis="y")


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else "..." + name[3 - MAX_NAME :]
