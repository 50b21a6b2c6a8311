"""HTML pages in one file, without scripts or anything from elsewhere, in the reader's choice of light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

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
svg { display: block; width: 100%; max-width: 44rem; height: auto; margin: .75rem 0; color: var(--text); }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--soft); font-size: .85rem; }
"""


def html_page(title: str, body: Iterable[str], more_style: str = "") -> str:
    """Return a whole page.

    Args:
        title: plain text.
        body: pieces of HTML.
        more_style: CSS after the common one.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}{more_style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def html_boxes(numbers: Mapping[str, str]) -> str:
    """Boxes that show a number over its name."""
    cells = (f"<div><b>{escape(number)}</b>{escape(name)}</div>" for name, number in numbers.items())
    return f'<div class="numbers">{"".join(cells)}</div>'


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool], bars: Sequence[float] = ()
) -> str:
    """Return a table of plain text, which is escaped.

    Args:
        header: names of the columns.
        rows: cells.
        numbers: for each column whether it holds numbers, which stand to the right.
        bars: a bar's length for each row; empty for none.
    """

    def row(cells: Sequence[str], tag: str, bar: str = "") -> str:
        classes = [' class="number"' if flag else "" for flag in numbers]
        inner = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(classes, cells, strict=True))
        return f"<tr>{''.join(inner)}{bar}</tr>"

    lines = [row(header, "th", "<th></th>" if bars else "")]
    for index, cells in enumerate(rows):
        bar = ""
        if bars:
            share = 100 * bars[index] / max(bars)
            bar = f'<td class="bars"><span class="bar" style="width: {share:.2f}%"></span></td>'
        lines.append(row(cells, "td", bar))
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"
