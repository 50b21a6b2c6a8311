"""The facts about a shard folder as one HTML page: tables and plots, without scripts or anything from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from preprocess.inspecting.facts import Section
from preprocess.inspecting.plots import draw_plots
from preprocess.inspecting.shard_statistics import Statistics
from preprocess.manifest import Manifest

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """\
:root { color-scheme: light dark; --text: #1c2024; --soft: #60646c; --line: #e0e3e8; --back: #ffffff;
  --card: #f7f8fa; --accent: #2563a8; }
@media (prefers-color-scheme: dark) { :root { --text: #e8eaed; --soft: #9aa0a8; --line: #33373d; --back: #16181b;
  --card: #1e2125; --accent: #7ab3ef; } }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; color: var(--text); background: var(--back);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: .85rem; }
.numbers { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
.numbers div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; }
.numbers b { display: block; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; }
th { color: var(--soft); font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: block; height: .7rem; min-width: 1px; border-radius: .15rem; background: var(--accent); }
td.bars { width: 14rem; padding-right: 0; }
.sample { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem 1rem;
  margin: .6rem 0; }
svg { display: block; width: 100%; max-width: 44rem; height: auto; margin: .75rem 0; color: var(--text); }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--soft); font-size: .85rem; }
"""


def require_plots() -> None:
    """Raise ValueError if the plots cannot be drawn, before any work."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "--html draws its plots with matplotlib: pip install matplotlib, or leave --html out"
        ) from None


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
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: token shards</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _numbers(manifest: Manifest) -> str:
    boxes = {"shards": len(manifest.shards), **{k: manifest.counts[k] for k in ("documents", "sentences", "tokens")}}
    cells = (f"<div><b>{count:,}</b>{name}</div>" for name, count in boxes.items())
    return f'<div class="numbers">{"".join(cells)}</div>'


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
    number = [section.is_number(column) for column in range(len(section.header))]

    def row(cells: Sequence[str], tag: str, bar: str = "") -> str:
        classes = [' class="number"' if flag else "" for flag in number]
        inner = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(classes, cells, strict=True))
        return f"<tr>{''.join(inner)}{bar}</tr>"

    lines = [row(section.header, "th", "<th></th>" if section.bars else "")]
    for index, cells in enumerate(section.rows):
        bar = ""
        if section.bars:
            share = 100 * section.bars[index] / max(section.bars)
            bar = f'<td class="bars"><span class="bar" style="width: {share:.2f}%"></span></td>'
        lines.append(row(cells, "td", bar))
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"
