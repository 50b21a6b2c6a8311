"""Lines that tell the user what the inputs were taken for."""

from __future__ import annotations

from collections.abc import Sequence

from preprocess.corpus.detection import MAX_LINES_PER_DOCUMENT, LayoutReport
from preprocess.corpus.layouts import (
    ALL_LAYOUTS,
    DOCUMENT_PER_FILE,
    DOCUMENT_PER_LINE,
    FIELD_LAYOUTS,
    LABELLED_TSV,
    MEDIAWIKI,
    PAIRED_TSV,
    PARAGRAPH_PER_LINE,
    SENTENCE_PER_LINE,
)

MAX_DESCRIBED_FILES = 12
MAX_SHOWN_LABELS = 8
MAX_NAMED_FILES = 5


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
    groups = [[report for report in reports if report.layout == layout] for layout in ALL_LAYOUTS]
    largest = max(map(len, groups))
    return [_describe(_name_files(group, len(group) < largest), group) for group in groups if group]


def _name_files(reports: Sequence[LayoutReport], by_name: bool) -> str:
    """Return how many files there are, with the names of some if they are not like most."""
    if len(reports) == 1:
        return reports[0].path
    shown = ", ".join(report.path for report in reports[:MAX_NAMED_FILES]) if by_name else ""
    more = ", ..." if len(reports) > MAX_NAMED_FILES else ""
    return f"{len(reports):,} files" + (f" ({shown}{more})" if shown else "")


def _describe(what: str, reports: Sequence[LayoutReport]) -> str:
    num_bytes = sum(report.num_bytes for report in reports)
    sampled_bytes = sum(report.sampled_bytes for report in reports)
    packed = sorted({report.compression for report in reports} - {""})
    size = f"{num_bytes:,} bytes" + (f" (unpacked from {', '.join(packed)})" if packed else "")
    given = "given" if all(report.given for report in reports) else "detected"
    part = "" if sampled_bytes == num_bytes else f" in the {sampled_bytes:,} bytes looked at"
    return f"{what}: {size}, {reports[0].layout} ({given}): {_counts(reports)}{part}"


def _counts(reports: Sequence[LayoutReport]) -> str:
    layout = reports[0].layout
    num_lines = sum(report.num_lines for report in reports)
    num_documents = sum(report.num_documents for report in reports)
    num_blocks = sum(report.num_blocks for report in reports)
    documents = f"{num_documents:,} documents"
    if layout == DOCUMENT_PER_FILE:
        taken = f"taken as {num_documents:,} document{'s' if num_documents > 1 else ''} of "
        paragraphs = f"{num_blocks:,} paragraphs, {num_lines:,} lines"
        other, number = SENTENCE_PER_LINE, num_blocks
        if num_blocks == num_documents:
            other, number = DOCUMENT_PER_LINE, num_lines
        return f"{taken}{paragraphs}; --layout {other} would make {number:,} documents"
    if layout in FIELD_LAYOUTS:
        return f"{documents}, text in the field {reports[0].text_field!r}"
    if layout == MEDIAWIKI:
        return f"{num_documents:,} pages"
    header = ", header line left out" if any(report.has_header for report in reports) else ""
    if layout == PAIRED_TSV:
        return f"{documents} of two columns (source, target){header}"
    if layout == LABELLED_TSV:
        columns = sorted({report.num_tabs + 1 for report in reports if report.num_tabs})
        shape = f" of {' or '.join(map(str, columns))} columns" if columns else ""
        return f"{documents}{shape}, {_labels(reports)}{header}"
    tabs = "" if not reports[0].num_tabs else f", {reports[0].num_tabs + 1} columns separated by tabs taken as text"
    if layout == DOCUMENT_PER_LINE:
        books = "; it looks like prose with paragraphs, but is too large for one book" * reports[0].is_many_books
        return f"{documents}, a line each{books}{tabs}"
    what = "paragraphs" if layout == PARAGRAPH_PER_LINE else "sentences"
    lines = f"{num_lines:,} lines ({what}), {num_lines / max(1, num_documents):.1f} lines per document"
    return f"{documents}, {lines}{tabs}"


def _labels(reports: Sequence[LayoutReport]) -> str:
    labels = sorted(frozenset().union(*(report.labels for report in reports)))
    shown = ", ".join(labels[:MAX_SHOWN_LABELS]) + (", ..." if len(labels) > MAX_SHOWN_LABELS else "")
    return f"{len(labels):,} labels ({shown})"
