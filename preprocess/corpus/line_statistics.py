"""Counts of a text file's first lines, which tell the layouts apart."""

from __future__ import annotations

import json
import re
import statistics as numbers
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from preprocess.corpus.prose import HEADING, ends_sentence, is_wrapped, width

JUDGED_LINES = 20_000
JSON_LINES = 200
JSON_NAMES = (".jsonl", ".ndjson", ".jsonlines", ".json")
PACKED_NAMES = (".gz", ".zst", ".xz", ".bz2")
MIN_ROWS = 3
MIN_BLOCKS = 8
MAX_PARAGRAPHS = 200
MIN_WRAPPED_WIDTH = 40  # narrower lines are verses, lists or short sentences
SAME_TABS = 0.98  # share of the lines
MAX_DETECTED_LABELS = 1000
MAX_LABEL_LENGTH = 40
SENTENCE_BREAK = re.compile(r"[.!?][\"'”’)_*]* +[\"'“‘(_*]*[A-Z]|[。！？][”’」』）]*[^”’」』）\s]")
BEGUN_OBJECT = re.compile(r'\{\s*"[^"]*"\s*:')
DUMP_START = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!DOCTYPE[^>]*>\s*|<!--.*?-->\s*)*<mediawiki\b", re.DOTALL)


class LineStatistics:
    """Counts of the lines of a sample, and those to judge them by.

    Args:
        lines: raw lines without their ends.

    Attributes:
        num_lines: those that are not blank.
        num_blocks: runs of such lines.
        first_line: the first that is not blank, decoded; "" if none.
    """

    def __init__(self, lines: Sequence[bytes]) -> None:
        self.lines = lines
        filled = [bool(line.strip()) for line in lines]
        self.num_lines = sum(filled)
        self.num_blocks = sum(now and not before for before, now in zip([False, *filled], filled, strict=False))
        self.first_line = next((line for line in lines if line.strip()), b"").decode(errors="replace").strip("\r")

    @cached_property
    def is_dump(self) -> bool:
        """Whether the file begins as a MediaWiki dump does."""
        return DUMP_START.match(b"\n".join(self.lines[:20])[:10_000]) is not None

    @cached_property
    def num_pages(self) -> int:
        """Pages of a MediaWiki dump."""
        return sum(line.strip() == b"<page>" for line in self.lines)

    @cached_property
    def rows(self) -> list[str]:
        """The first lines that are not blank."""
        return [line.decode(errors="replace").rstrip("\r") for line in self.lines[: 2 * JUDGED_LINES] if line.strip()][
            :JUDGED_LINES
        ]

    @cached_property
    def blocks(self) -> list[list[str]]:
        """The first lines in their blocks, without white space at their ends."""
        blocks: list[list[str]] = []
        inside = False
        for line in self.lines[:JUDGED_LINES]:
            stripped = line.decode(errors="replace").strip()
            if stripped and not inside:
                blocks.append([])
            if stripped:
                blocks[-1].append(stripped)
            inside = bool(stripped)
        return blocks


def is_json_lines(path: str, statistics: LineStatistics) -> bool:
    """Whether most of the first lines are JSON objects, or begin as one where nothing else is to be seen.

    Raises:
        ValueError: if the file's name says so, and its lines are something else in JSON.
    """
    rows = [row.strip() for row in statistics.rows[:JSON_LINES]]
    objects = sum(row.startswith("{") and _is_object(row) for row in rows)
    if 2 * objects > len(rows) or (objects == 0 and len(rows) == 1 and BEGUN_OBJECT.match(rows[0])):
        return True
    is_named = _name(path).endswith(JSON_NAMES)
    if is_named and not _name(path).endswith(".json"):
        if objects or any(BEGUN_OBJECT.match(row) for row in rows):
            return True
        if rows:
            raise ValueError(
                f"{path} holds no JSON object a line (its first line is {rows[0][:60]!r}): jsonl needs lines such as "
                '{"text": "..."}; convert it, for example with `jq -c`, or give its --layout'
            )
    return False


def _is_object(row: str) -> bool:
    try:
        return isinstance(json.loads(row), dict)
    except (ValueError, RecursionError):
        return False


def _name(path: str) -> str:
    """Return a file's name in small letters, without the end that a compression gives it."""
    name = path.lower()
    return name.rpartition(".")[0] if name.endswith(PACKED_NAMES) else name


def looks_like_one_json(path: str, statistics: LineStatistics) -> bool:
    """Whether a file named .json begins as one value spread over lines."""
    return _name(path).endswith(".json") and statistics.first_line.strip()[:1] in ("{", "[")


def common_tabs(statistics: LineStatistics) -> int:
    """Return the number of tabs in each line if (nearly) all lines have as many, else 0."""
    rows = statistics.rows
    if len(rows) < MIN_ROWS:
        return 0
    tabs, count = Counter(row.count("\t") for row in rows).most_common(1)[0]
    return tabs if count >= SAME_TABS * len(rows) else 0


def is_labels(statistics: LineStatistics, column: int) -> bool:
    """Whether a column holds few different short values."""
    rows = [row.split("\t") for row in statistics.rows]
    values = Counter(row[column].strip() for row in rows if len(row) > column)
    few = len(values) <= min(MAX_DETECTED_LABELS, max(2, len(rows) // 4))
    return few and all(0 < len(value) <= MAX_LABEL_LENGTH for value in values)


def is_book(statistics: LineStatistics) -> bool:
    """Whether blank lines separate the paragraphs of a longer text.

    Either the lines were broken to fit a width: most lines within blocks end within a sentence, and most blocks do not.
    Or most blocks are one line, many of them several sentences long, and there are headings. Or many blocks are nothing
    but a heading.
    """
    blocks = statistics.blocks
    if len(blocks) < MIN_BLOCKS:
        return False
    inner = [line for block in blocks for line in block[:-1]]
    if len(inner) >= len(blocks):
        whole = sum(ends_sentence(block[-1]) for block in blocks)
        if is_wrapped(inner) and 2 * whole > len(blocks):
            return True
    single = [block[0] for block in blocks if len(block) == 1]
    headings = sum(HEADING.match(line) is not None for line in single)
    if 5 * headings >= len(blocks):
        return True
    several = sum(SENTENCE_BREAK.search(block[-1]) is not None for block in blocks)
    return headings > 0 and 5 * several >= len(blocks) and 5 * len(single) > 3 * len(blocks)


def is_double_spaced(statistics: LineStatistics) -> bool:
    """Whether blank lines separate single lines of several sentences each: documents, as it seems."""
    blocks = statistics.blocks
    if len(blocks) < MIN_BLOCKS or statistics.num_lines > 1.1 * statistics.num_blocks:
        return False
    return 2 * sum(SENTENCE_BREAK.search(block[0]) is not None for block in blocks) > len(blocks)


def are_paragraphs(statistics: LineStatistics) -> bool:
    """Whether many lines are several sentences long."""
    rows = statistics.rows
    several = sum(SENTENCE_BREAK.search(row) is not None for row in rows)
    return 10 * several >= 3 * len(rows) > 0


def may_be_document(statistics: LineStatistics) -> bool:
    """Whether a file is short and may be one document: wrapped lines, paragraphs, or no blank line between lines."""
    if not 0 < len(statistics.rows) <= MAX_PARAGRAPHS:
        return False
    inner = [line for block in statistics.blocks for line in block[:-1]]
    broken = is_wrapped(inner) and numbers.median(width(line) for line in inner) >= MIN_WRAPPED_WIDTH
    return broken or are_paragraphs(statistics) or statistics.num_blocks == 1
