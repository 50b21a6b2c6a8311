"""How documents lie in a file: what its beginning looks like, in numbers that the user can check."""

from __future__ import annotations

from dataclasses import dataclass, replace

from preprocess.corpus.columns import header_layout
from preprocess.corpus.layouts import (
    BYTE_ORDER_MARK,
    DOCUMENT_PER_FILE,
    DOCUMENT_PER_LINE,
    JSONL,
    LABELLED_TSV,
    MEDIAWIKI,
    PAIRED_TSV,
    PARAGRAPH_PER_LINE,
    PLAIN_LAYOUTS,
    SENTENCE_PER_LINE,
)
from preprocess.corpus.line_statistics import (
    LineStatistics,
    are_paragraphs,
    common_tabs,
    is_book,
    is_double_spaced,
    is_json_lines,
    is_labels,
    looks_like_one_json,
    may_be_document,
)
from preprocess.corpus.text_errors import check_no_nul

SAMPLE_BYTES = 4 << 20
HEAD_BYTES = 1 << 20
MAX_LINES_WITHOUT_BLANK = 2000  # so many lines without any blank line are not one document
MAX_LINES_PER_DOCUMENT = 500  # chapters have up to a few hundred lines; blank lines further apart are accidents


@dataclass(frozen=True)
class LayoutReport:
    """What a file, or its beginning, looks like.

    Attributes:
        num_bytes: its size, uncompressed.
        sampled_bytes: how much of it was looked at.
        num_lines: lines that are not blank.
        num_blocks: runs of such lines, separated by blank lines; pages of a dump, rows of parquet.
        given: whether the user gave the layout.
        has_header: whether its first line names the columns.
        num_tabs: tabs in each line, if (nearly) all lines have as many; else 0.
        text_field: field of the text, in the layouts that have fields.
        labels: the labels of a labelled file.
        compression: of the whole file, or "".
        may_be_document: whether it is short and may be one document; False if the layout was given.
        is_many_books: whether it looks like a book, and is too large to be one.
    """

    path: str
    layout: str
    num_bytes: int
    sampled_bytes: int
    num_lines: int
    num_blocks: int
    given: bool
    has_header: bool = False
    num_tabs: int = 0
    text_field: str = ""
    labels: frozenset[str] = frozenset()
    compression: str = ""
    may_be_document: bool = False
    is_many_books: bool = False

    @property
    def num_documents(self) -> int:
        """Documents in what was looked at."""
        if self.layout == DOCUMENT_PER_FILE:
            return 1
        if self.layout in (DOCUMENT_PER_LINE, JSONL, LABELLED_TSV, PAIRED_TSV):
            return self.num_lines - self.has_header
        return self.num_blocks

    @property
    def is_doubtful(self) -> bool:
        """Whether lines were detected as documents although there are blank lines between them."""
        is_far = self.num_lines > MAX_LINES_PER_DOCUMENT * self.num_blocks
        return not self.given and self.layout == DOCUMENT_PER_LINE and self.num_blocks > 1 and is_far


def detect_layout(path: str, sample: bytes, whole: bool, layout: str = "auto") -> LayoutReport:
    """Tell the layout of a text file from its first bytes.

    Args:
        path: the file, for messages.
        sample: its first bytes, uncompressed.
        whole: whether that is all of it.
        layout: "auto", or the layout that the user gave; then the file may only not contradict it.

    Raises:
        ValueError: if there is a NUL byte or old Macintosh line ends, or the file is nothing like ``layout``.
    """
    _check_text(path, sample)
    lines = sample.removeprefix(BYTE_ORDER_MARK).split(b"\n")
    if not whole and len(lines) > 1:
        lines.pop()  # cut within a line
    statistics = LineStatistics(lines)
    report = LayoutReport(
        path,
        layout,
        len(sample),
        len(sample),
        statistics.num_lines,
        statistics.num_blocks,
        layout != "auto",
        num_tabs=common_tabs(statistics),
    )
    if layout == "auto":
        layout = _detect(path, report, statistics)
        is_short = whole and layout in PLAIN_LAYOUTS and may_be_document(statistics)
        report = replace(report, layout=layout, may_be_document=is_short)
    else:
        _check_given(path, layout, statistics)
    if report.layout == MEDIAWIKI:
        report = replace(report, num_blocks=statistics.num_pages)
    named = header_layout(statistics.first_line)
    return replace(report, has_header=named == report.layout)


def _detect(path: str, report: LayoutReport, statistics: LineStatistics) -> str:
    if statistics.is_dump:
        return MEDIAWIKI
    if is_json_lines(path, statistics):
        return JSONL
    if looks_like_one_json(path, statistics):
        raise ValueError(
            f"{path} is one JSON value over several lines; jsonl needs one object a line: convert it, for example with "
            "`jq -c '.[]'`, or give its --layout"
        )
    if named := header_layout(statistics.first_line):
        return named
    if report.num_tabs in (1, 2):
        return _columns(path, report.num_tabs, statistics)
    if is_book(statistics):
        return DOCUMENT_PER_FILE
    if is_double_spaced(statistics):
        return DOCUMENT_PER_LINE
    if statistics.num_blocks == 1 or statistics.num_lines > MAX_LINES_PER_DOCUMENT * statistics.num_blocks:
        return DOCUMENT_PER_LINE
    return PARAGRAPH_PER_LINE if are_paragraphs(statistics) else SENTENCE_PER_LINE


def _columns(path: str, num_tabs: int, statistics: LineStatistics) -> str:
    """Return the layout of lines with two or three columns."""
    if is_labels(statistics, 0):
        return LABELLED_TSV
    if num_tabs == 1 and not is_labels(statistics, 1):
        return PAIRED_TSV
    in_last = is_labels(statistics, num_tabs)
    problem = "with the labels in the last" if in_last else "and the first does not look like labels"
    raise ValueError(
        f"{path} has {num_tabs + 1} columns {problem}: put them in the order "
        "label<TAB>text[<TAB>text_b] or source<TAB>target, or give its --layout (document_per_line takes the lines as "
        "they are)"
    )


def _check_text(path: str, sample: bytes) -> None:
    check_no_nul(path, 0, sample, lambda offset: 1 + sample.count(b"\n", 0, offset))
    head = sample[:HEAD_BYTES]
    if b"\r" in head and b"\n" not in head:
        raise ValueError(
            f"{path} has the line ends of old Macintosh files: carriage returns and no line feed in its first "
            f"{len(head):,} bytes, so it would be one line; convert it: tr '\\r' '\\n' < {path} > NEW_FILE"
        )


def _check_given(path: str, layout: str, statistics: LineStatistics) -> None:
    num_lines, num_blocks = statistics.num_lines, statistics.num_blocks
    if layout in (SENTENCE_PER_LINE, PARAGRAPH_PER_LINE) and num_blocks <= 1 and num_lines > MAX_LINES_WITHOUT_BLANK:
        raise ValueError(
            f"--layout {layout} does not fit {path}: its first {num_lines:,} lines have no blank line between "
            "them, so they would all be one document; give --layout document_per_line, or put blank lines between "
            "documents"
        )
    lines_per_block = num_lines / max(1, num_blocks)
    if layout == DOCUMENT_PER_LINE and num_blocks > 1 and 1.5 <= lines_per_block <= MAX_LINES_PER_DOCUMENT:
        raise ValueError(
            f"--layout document_per_line does not fit {path}: blank lines separate {num_blocks:,} blocks of "
            f"{lines_per_block:.1f} lines on average, as in sentence_per_line; give --layout sentence_per_line, or "
            "remove the blank lines if every line is a document"
        )
    if layout == MEDIAWIKI and num_lines and not statistics.is_dump:
        raise ValueError(f"--layout mediawiki does not fit {path}: it does not begin with <mediawiki")
