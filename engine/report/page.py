"""A report as one HTML page: tables and curves, without scripts or anything from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from engine.report import facts
from engine.report.curves import Chart, Curve, charts
from engine.report.drawing import colour_style, draw_chart
from engine.report.runs import Run
from preprocess.pages import html_boxes, html_page, html_table

STYLE = """\
body { max-width: 68rem; }
svg { max-width: none; margin: .25rem 0 0; }
.charts { display: flex; flex-wrap: wrap; gap: 1.25rem 1.5rem; }
figure { margin: 0; flex: 0 1 calc(50% - .75rem); min-width: min(26rem, 100%); }
figure.wide { flex-basis: 100%; }
h3 { font-size: .95rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
figcaption { font-size: .8rem; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: 0; font-size: .85rem; }
.legend span { overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 1.5rem; height: 0; margin-right: .35rem; vertical-align: middle;
  border-top: 3px solid var(--soft); }
.legend i.dashed { border-top-style: dashed; border-top-width: 2px; }
.status { margin: .1rem 0 0; }
td:first-child { overflow-wrap: anywhere; }
"""
NUMBER = re.compile(r"[-+\d.,:%]+(e-?\d+)?( \([\d,]+\))?")
KIND = {False: "training", True: "held out"}


def render_page(runs: Sequence[Run]) -> str:
    """Return the page; whatever comes from the runs' files is escaped."""
    names = ", ".join(run.name for run in runs)
    body = [f"<h1>{escape(names)}</h1>", *_about(runs)]
    drawn = charts(runs)
    for group, members in groupby(drawn, key=lambda chart: chart.group):
        body.append(f"<h2>{escape(group)}</h2>")
        figures = "\n".join(_figure(chart, runs) for chart in members)
        body.append(f'<div class="charts">\n{figures}\n</div>')
    if not drawn:
        body.append("<p>There are no figures yet.</p>")
    tables = [facts.final_figures(runs)] if drawn else []
    tables += [facts.settings(runs), facts.data(runs), facts.hardware(runs)]
    body += [_table(table) for table in tables]
    body += [_table(facts.all_settings(run), closed=True) for run in runs]
    return html_page(f"Report: {names}", body, STYLE + colour_style(len(runs)))


def _about(runs: Sequence[Run]) -> Iterator[str]:
    """What the runs are, and where they stand."""
    for run in runs:
        name, status = ("", f"; {run.status()}") if len(runs) == 1 else (f"<b>{escape(run.name)}</b>: ", "")
        swatch = _swatch(runs.index(run)) if name else ""
        yield f'<p class="status legend"><span>{swatch}{name}{escape(_kind(run) + status)}</span></p>'
        if run.num_unreadable:
            what = "a line" if run.num_unreadable == 1 else f"{run.num_unreadable:,} lines"
            yield f'<p class="soft">{escape(f"{what} of its metrics could not be read")}</p>'
    table = facts.summary(runs)
    if len(runs) > 1:
        yield _table(table)
        return
    cells = list(zip(table.header, table.rows[0], strict=True))[2:]
    steps = {"step": f"{runs[0].step:,}" + (f" / {runs[0].steps:,}" if runs[0].steps else "")}
    yield html_boxes(steps | {name: cell for name, cell in cells if cell not in (facts.ABSENT, "0")})


def _kind(run: Run) -> str:
    """What a run trains, in a few words."""
    arch = run.config.get("arch")
    shape = arch if isinstance(arch, dict) else {}
    model = "GPT-2" if shape.get("causal") else "BERT"
    learns = run.config.get("objective") or run.config.get("task") or "unknown objective"
    return f"{learns}, {model} of {shape.get('num_layers', '?')} layers x {shape.get('hidden_size', '?')}"


def _figure(chart: Chart, runs: Sequence[Run]) -> str:
    wide = chart.beside is not None or (chart.title == "Loss" and chart.over == "step")
    every = [*chart.curves, *(chart.beside.curves if chart.beside else ())]
    over = " over tokens" if chart.over == "tokens" else ""
    parts = [f"<h3>{escape(chart.title + over)}</h3>", _legend(every, runs), draw_chart(chart, len(runs), wide=wide)]
    if (each := max(curve.each for curve in every)) > 1:
        text = f"Each point is the mean of up to {each:,} lines; the band reaches from the least to the greatest."
        parts.append(f"<figcaption>{text}</figcaption>")
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>\n" + "\n".join(part for part in parts if part) + "\n</figure>"


def _legend(curves: Sequence[Curve], runs: Sequence[Run]) -> str:
    entries = []
    if len(runs) > 1:
        numbers = sorted({curve.run for curve in curves})
        entries += [f"<span>{_swatch(number)}{escape(runs[number].name)}</span>" for number in numbers]
    kinds = sorted({curve.held_out for curve in curves})
    if kinds != [False]:
        marks = {False: "<i></i>", True: '<i class="dashed"></i>'}
        entries += [f"<span>{marks[kind]}{KIND[kind]}</span>" for kind in kinds]
    return f'<p class="legend">{"".join(entries)}</p>' if entries else ""


def _swatch(run: int) -> str:
    return f'<i style="border-color: var(--run-{run})"></i>'


def _table(table: facts.Table, *, closed: bool = False) -> str:
    columns = range(len(table.header))
    numbers = [column > 0 and all(NUMBER.fullmatch(row[column]) for row in table.rows) for column in columns]
    html = html_table(table.header, table.rows, numbers) if table.rows else ""
    if closed:
        return f"<details><summary>{escape(table.title)}</summary>{html}</details>"
    about = f'<p class="soft">{escape(table.about)}</p>' if table.about else ""
    return "\n".join(part for part in (f"<h2>{escape(table.title)}</h2>", about, html) if part)
