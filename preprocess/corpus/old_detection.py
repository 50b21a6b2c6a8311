"""How documents lie in a text file, and how to tell."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from preprocess.corpus.text_errors import check_no_nul

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SENTENCE_PER_LINE = "sentence_per_line"
DOCUMENT_PER_LINE = "document_per_line"
LAYOUTS = (SENTENCE_PER_LINE, DOCUMENT_PER_LINE)

SAMPLE_BYTES = 4 << 20
MAX_DESCRIBED_FILES = 12
HEAD_BYTES = 1 << 20
MAX_LINES_WITHOUT_BLANK = 2000  # so many lines without any blank line are not one document
MAX_LINES_PER_DOCUMENT = 500  # chapters have up to a few hundred lines; blank lines further apart are accidents


@dataclass(frozen=True)
class LayoutReport:
    """What a file, or its beginning, looks like.

    Attributes:
        num_bytes: size of the file.
        sampled_bytes: how much of it was looked at.
        num_lines: lines that are not blank.
        num_blocks: runs of such lines, separated by blank lines.
    """

    path: str
    layout: str
    num_bytes: int
    sampled_bytes: int
    num_lines: int
    num_blocks: int
    given: bool

    @property
    def num_documents(self) -> int:
        """Documents in what was looked at."""
        return self.num_blocks if self.layout == SENTENCE_PER_LINE else self.num_lines

    @property
    def is_doubtful(self) -> bool:
        """Whether lines were detected as documents although there are blank lines between them."""
        return not self.given and self.layout == DOCUMENT_PER_LINE and self.num_blocks > 1


def describe_layouts(reports: Sequence[LayoutReport]) -> list[str]:
    """Return lines for the user: one a file, or one a layout where there are many files; and a note on doubts."""
    return [*_descriptions(reports), *_note([report for report in reports if report.is_doubtful])]


def _note(doubtful: Sequence[LayoutReport]) -> list[str]:
    if not doubtful:
        return []
    most = max(doubtful, key=lambda report: report.num_lines / report.num_blocks)
    where = most.path if len(doubtful) == 1 else f"{len(doubtful):,} files, such as {most.path}"
    return [
        f"note: blank lines were taken as accidents in {where}: they separate blocks of "
        f"{most.num_lines / most.num_blocks:,.1f} lines on average, and documents of sentences have at most "
        f"{MAX_LINES_PER_DOCUMENT}; --layout {SENTENCE_PER_LINE} makes every block a document instead of every line"
    ]


def _descriptions(reports: Sequence[LayoutReport]) -> list[str]:
    if len(reports) <= MAX_DESCRIBED_FILES:
        return [_describe(report.path, [report]) for report in reports]
    lines = []
    for layout in LAYOUTS:
        alike = [report for report in reports if report.layout == layout]
        if alike:
            lines.append(_describe(f"{len(alike):,} files", alike))
    return lines


def _describe(what: str, reports: Sequence[LayoutReport]) -> str:
    num_lines = sum(report.num_lines for report in reports)
    num_documents = sum(report.num_documents for report in reports)
    num_bytes = sum(report.num_bytes for report in reports)
    sampled_bytes = sum(report.sampled_bytes for report in reports)
    part = "" if sampled_bytes == num_bytes else f" in the {sampled_bytes:,} bytes looked at"
    return (
        f"{what}: {num_bytes:,} bytes, {reports[0].layout} ({'given' if reports[0].given else 'detected'}): "
        f"{num_documents:,} documents, {num_lines:,} lines (sentences), {num_lines / max(1, num_documents):.1f} lines "
        f"per document{part}"
    )


def detect_layout(path: str, layout: str = "auto") -> LayoutReport:
    """Look at the first bytes of a file and tell its layout.

    Args:
        path: the file.
        layout: "auto", or the layout that the user gave; then the file may only not contradict it.

    Raises:
        ValueError: if the file cannot be read, has a NUL byte or old Macintosh line ends at its beginning, or is
            nothing like ``layout``.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(
                f"cannot read {path}: it is no ordinary file (workers read parts of it); write it to a file"
            )
        with open(path, "rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            sample = file.read(SAMPLE_BYTES)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    _check_text(path, sample)
    whole = len(sample) == num_bytes
    lines = [bool(line.strip()) for line in sample.removeprefix(BYTE_ORDER_MARK).split(b"\n")]
    if not whole and len(lines) > 1:
        lines.pop()  # cut within a line
    num_lines = sum(lines)
    num_blocks = sum(now and not before for before, now in zip([False, *lines], lines, strict=False))
    if layout != "auto":
        _check_given(path, layout, num_lines, num_blocks)
    separated = num_blocks > 1 and num_lines <= MAX_LINES_PER_DOCUMENT * num_blocks
    detected = SENTENCE_PER_LINE if separated else DOCUMENT_PER_LINE
    chosen = detected if layout == "auto" else layout
    return LayoutReport(path, chosen, num_bytes, len(sample), num_lines, num_blocks, layout != "auto")


def _check_text(path: str, sample: bytes) -> None:
    check_no_nul(path, 0, sample)
    head = sample[:HEAD_BYTES]
    if b"\r" in head and b"\n" not in head:
        raise ValueError(
            f"{path} has the line ends of old Macintosh files: carriage returns and no line feed in its first "
            f"{len(head):,} bytes, so it would be one line; convert it: tr '\\r' '\\n' < {path} > NEW_FILE"
        )


def _check_given(path: str, layout: str, num_lines: int, num_blocks: int) -> None:
    if layout == SENTENCE_PER_LINE and num_blocks <= 1 and num_lines > MAX_LINES_WITHOUT_BLANK:
        raise ValueError(
            f"--layout sentence_per_line does not fit {path}: its first {num_lines:,} lines have no blank line between "
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
