"""Files of prose to paragraphs: lines that were broken to fit a width are joined."""

from __future__ import annotations

import itertools
import re

SENTENCE_ENDS = ".!?…。！？；:：;\"'”’」』)）*_"
MAX_WRAPPED_WIDTH = 120  # longer lines are paragraphs; a CJK character counts as two
CJK = re.compile("[\u2e80-\u303f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")
HEADING = re.compile(
    r"#{1,6}\s|=+ .* =+$|(?:chapter|book|part|volume|act|scene|canto|letter|section)\s+(?:[ivxlcd]+|\d+|the)\b"
    r"|[IVXLC]+\.?$|第[0-9〇零一二三四五六七八九十百千两]{1,7}[章回节卷集部篇]",
    re.IGNORECASE,
)


def ends_sentence(line: str) -> bool:
    """Whether a line (without white space at its end) ends as sentences do."""
    return line[-1:] in SENTENCE_ENDS


def width(line: str) -> int:
    """Return the number of columns that a line takes."""
    return len(line) if line.isascii() else len(line) + len(CJK.findall(line))


def is_wrapped(inner_lines: list[str]) -> bool:
    """Whether lines that another line of their paragraph follows were broken to fit a width.

    That is so if most of them end within a sentence and are not longer than a page is wide.
    """
    if not inner_lines:
        return False
    within = sum(not ends_sentence(line) for line in inner_lines)
    short = sum(width(line) <= MAX_WRAPPED_WIDTH for line in inner_lines)
    return 2 * within > len(inner_lines) and 2 * short > len(inner_lines)


def unwrap(text: str) -> str:
    """Return prose with a paragraph a line.

    Blank lines end paragraphs. Other line ends do, unless the lines were broken to fit a width: then lines are joined
    by a space, or by nothing between two CJK characters.
    """
    lines = [line.strip() for line in text.split("\n")]
    inner = [line for line, after in itertools.pairwise(lines) if line and after]
    if not is_wrapped(inner):
        return "\n".join([line for line in lines if line])
    paragraphs: list[str] = []
    parts: list[str] = []
    for line in lines:
        if line:
            parts.append(line)
        elif parts:
            paragraphs.append(join_lines(parts))
            parts = []
    if parts:
        paragraphs.append(join_lines(parts))
    return "\n".join(paragraphs)


def join_lines(lines: list[str]) -> str:
    """Join the lines of one paragraph."""
    pieces = [lines[0]]
    for before, line in itertools.pairwise(lines):
        if not (CJK.match(before[-1]) and CJK.match(line[0])):
            pieces.append(" ")
        pieces.append(line)
    return "".join(pieces)
