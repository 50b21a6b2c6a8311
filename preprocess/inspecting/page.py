"""The facts about a shard folder as one HTML page: tables and plots, without scripts or anything from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from preprocess.drawing import require_matplotlib
from preprocess.inspecting.facts import Section
from preprocess.inspecting.plots import draw_plots
from preprocess.inspecting.shard_statistics import Statistics
from preprocess.manifest import Manifest
from preprocess.pages import html_boxes, html_page, html_table

MORE_STYLE = """\
.sample { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem 1rem;
  margin: .6rem 0; }
"""


def require_plots() -> None:
    """Raise ValueError if the plots cannot be drawn, before any work."""
    require_matplotlib("--html draws its plots with matplotlib: pip install matplotlib, or leave --html out")


def render_page(manifest: Manifest, statistics: Statistics, sections: Sequence[Section]) -> str:
    """Return the page; whatever comes from the corpus or the manifest is escaped."""
    plots = draw_plots(manifest, statistics)
    name = escape(manifest.folder.resolve().name)
    about = [escape(line) for line in sections[0].lines]
    body = [f"<h1>{name}</h1>", *(f'<p class="soft">{line}</p>' for line in about[:4])]
    body.append(_numbers(manifest))  # which about[4] says in words
    body += [f"<p>{line}</p>" for line in about[5:]]
    for section in sections[1:]:
        body.append(_section(section, plots.get(section.plot, "")))
    return html_page(f"{manifest.folder.resolve().name}: token shards", body, MORE_STYLE)


def _numbers(manifest: Manifest) -> str:
    boxes = {"shards": len(manifest.shards), **{k: manifest.counts[k] for k in ("documents", "sentences", "tokens")}}
    return html_boxes({name: f"{count:,}" for name, count in boxes.items()})


def _section(section: Section, plot: str) -> str:
    is_samples = section.title.startswith("samples")
    title, _, explanation = section.title.partition(" (")
    parts = [f"<h2>{escape(title[:1].upper() + title[1:])}</h2>"]
    if explanation:
        parts.append(f'<p class="soft">{escape(explanation.removesuffix(")"))}</p>')
    for line in section.lines:
        parts.append(f'<div class="sample">{_sample(line)}</div>' if is_samples else f"<p>{escape(line)}</p>")
    parts.append(plot)
    if section.rows:
        table = _table(section)
        parts.append(f"<details><summary>As a table</summary>{table}</details>" if section.bars and plot else table)
    return "\n".join(part for part in parts if part)


def _sample(line: str) -> str:
    about, _, text = line.partition("]: ")
    return f'<p class="soft">{escape(about)}]</p><p>{escape(text)}</p>'


def _table(section: Section) -> str:
    numbers = [section.is_number(column) for column in range(len(section.header))]
    return html_table(section.header, section.rows, numbers, section.bars)
