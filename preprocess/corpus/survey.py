"""What each input file is: compression, layout, uncompressed size, labels."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from preprocess.corpus.corpus import InputFile
from preprocess.corpus.detection import SAMPLE_BYTES, LayoutReport, detect_layout
from preprocess.corpus.layouts import (
    DOCUMENT_PER_FILE,
    DOCUMENT_PER_LINE,
    FIELD_LAYOUTS,
    LABELLED_TSV,
    MEDIAWIKI,
    PARQUET,
    PLAIN_LAYOUTS,
)
from preprocess.corpus.mediawiki import check_dump, require_parser
from preprocess.corpus.parquet import MAGIC, Column
from preprocess.corpus.record_ranges import MAX_DOCUMENT_BYTES, way_out
from preprocess.corpus.records import TextRecords
from preprocess.corpus.streams import compression_of, open_stream
from preprocess.workers import run_blocks

READ_BYTES = 1 << 20
PROGRESS_BYTES = 4 << 20
ALONE_BYTES = 16 << 20  # so little is looked through by this process
MAX_CORPUS_LABELS = 1 << 16
MIN_FILES = 8  # of a source, to be judged together
NEARLY_ALL = 0.9
MAX_BOOK_BYTES = 32 << 20  # prose with paragraphs in a larger file is many books
MAX_PARAGRAPH_LINES = 1.5
TAR_OFFSET = 257
ARCHIVES = {
    b"PK\x03\x04": ("zip archive", "`unzip`"),
    b"7z\xbc\xaf\x27\x1c": ("7z archive", "`7z x`"),
    b"Rar!": ("rar archive", "`unrar x`"),
    b"\x1f\x9d": ("compress (.Z) file", "`uncompress`"),
    b"\x04\x22\x4d\x18": ("lz4 file", "`lz4 -d`"),
}


@dataclass(frozen=True)
class Survey:
    """A file to look at: where it is, and what the user said about it."""

    path: str
    name: str
    source: int
    layout: str
    text_field: str
    invalid_utf8: str
    max_expansion: int
    incomplete_records: str


@dataclass(frozen=True)
class Surveyed:
    """What was found: the file (its start still 0), and the report for the user.

    Attributes:
        is_measured: whether its size and labels are known, or it must be read through.
        has_second: whether there are second texts.
    """

    file: InputFile
    report: LayoutReport
    is_measured: bool = True
    has_second: bool = False


def survey_files(
    wanted: Sequence[Survey],
    num_workers: int,
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
) -> list[Surveyed]:
    """Look at the beginning of every file, then through those which that does not tell enough."""
    surveys = [_look_at(survey) for survey in wanted]
    long = [index for index, survey in enumerate(surveys) if not survey.is_measured]
    if long:
        total = sum(surveys[index].file.stored_bytes for index in long)
        job = SurveyJob([(wanted[index], surveys[index]) for index in long])
        with progress("looking through", total) as advance:
            found = run_blocks(job, range(len(long)), num_workers if total > ALONE_BYTES else 1, advance)
        for index, survey in zip(long, found, strict=True):
            surveys[index] = survey
    surveys = [_without_large_book(survey) for survey in _as_one_source(surveys)]
    for survey in surveys:
        if survey.file.layout == DOCUMENT_PER_FILE and survey.file.num_bytes > MAX_DOCUMENT_BYTES:
            raise ValueError(
                f"{survey.file.path} would be one document of {survey.file.num_bytes:,} bytes, and at most "
                f"{MAX_DOCUMENT_BYTES:,} are possible: {way_out(DOCUMENT_PER_FILE)}"
            )
    return surveys


def _as_one_source(surveys: list[Surveyed]) -> list[Surveyed]:
    """Judge the files of a folder together, where there are MIN_FILES or more plain ones whose layout was detected.

    If most of them may be one document each, all of them are. Otherwise, if nearly all have one layout, all have it.
    """
    plain: dict[int, list[int]] = defaultdict(list)
    for index, survey in enumerate(surveys):
        if survey.report.layout in PLAIN_LAYOUTS and not survey.report.given:
            plain[survey.file.source].append(index)
    result = list(surveys)
    for indices in plain.values():
        if len(indices) < MIN_FILES:
            continue
        documents = sum(
            surveys[index].report.may_be_document or surveys[index].report.layout == DOCUMENT_PER_FILE
            for index in indices
        )
        layout, count = Counter(surveys[index].report.layout for index in indices).most_common(1)[0]
        if 2 * documents > len(indices):
            layout, count = DOCUMENT_PER_FILE, len(indices)
        if count >= NEARLY_ALL * len(indices):
            for index in indices:
                result[index] = _with_layout(surveys[index], layout)
    return result


def _with_layout(survey: Surveyed, layout: str) -> Surveyed:
    return replace(survey, file=replace(survey.file, layout=layout), report=replace(survey.report, layout=layout))


def _without_large_book(survey: Surveyed) -> Surveyed:
    """Take a file that looks like a book, but is too large for one, for a document a paragraph.

    Raises:
        ValueError: if its paragraphs have several lines.
    """
    report = survey.report
    if report.given or report.layout != DOCUMENT_PER_FILE or report.num_bytes <= MAX_BOOK_BYTES:
        return survey
    if report.num_lines > MAX_PARAGRAPH_LINES * report.num_blocks:
        raise ValueError(
            f"{report.path} has {report.num_bytes:,} bytes of wrapped prose with blank lines between paragraphs: too "
            "much for one book, and nothing says where one ends; put each into a file of its own, or give --layout "
            "sentence_per_line (every block a document, every line a sentence) or document_per_file"
        )
    return replace(
        survey,
        file=replace(survey.file, layout=DOCUMENT_PER_LINE),
        report=replace(report, layout=DOCUMENT_PER_LINE, is_many_books=True),
    )


@dataclass(frozen=True)
class SurveyJob:
    """Reads files through; see ``workers.Job``."""

    pairs: Sequence[tuple[Survey, Surveyed]]

    def start(self) -> None:
        """Load nothing."""

    def run(self, state: Any, block: int, progress: Callable[[int], None]) -> Surveyed:
        """Return what was found, with size, row groups and labels."""
        wanted, found = self.pairs[block]
        if found.file.layout == PARQUET:
            return _measure_parquet(found, progress)
        if found.file.num_bytes < 0:
            num_bytes = _measure(found.file, wanted.max_expansion, progress)
            found = replace(
                found, file=replace(found.file, num_bytes=num_bytes), report=replace(found.report, num_bytes=num_bytes)
            )
        return _find_labels(found, wanted) if found.file.layout == LABELLED_TSV else found


def _measure(file: InputFile, max_expansion: int, progress: Callable[[int], None]) -> int:
    """Return the uncompressed size of a file by reading it."""
    stream = open_stream(file.path, file.compression, max_expansion)
    num_bytes = seen = 0
    while piece := stream.read(num_bytes, READ_BYTES):
        num_bytes += len(piece)
        if stream.file.tell() - seen >= PROGRESS_BYTES:
            progress(stream.file.tell() - seen)
            seen = stream.file.tell()
    progress(file.stored_bytes - seen)
    stream.close()
    return num_bytes


def _measure_parquet(found: Surveyed, progress: Callable[[int], None]) -> Surveyed:
    column = Column(found.file.path, found.file.text_field)
    share = found.file.stored_bytes // max(1, column.num_groups)
    ends = column.measure(lambda groups: progress(groups * share))
    num_rows = column.num_rows
    column.close()
    report = replace(found.report, num_bytes=ends[-1], sampled_bytes=ends[-1], num_lines=num_rows, num_blocks=num_rows)
    return replace(found, file=replace(found.file, num_bytes=ends[-1], row_groups=ends[:-1]), report=report)


def _find_labels(found: Surveyed, wanted: Survey) -> Surveyed:
    """Return what was found with all labels of the file."""
    records = TextRecords(found.file, wanted.invalid_utf8, wanted.max_expansion, wanted.incomplete_records)
    labels: set[str] = set()
    num_documents = 0
    has_second = False
    for _, documents in records.read(0, found.file.num_bytes):
        for document in documents:
            labels.add(document.label or "")
            has_second = has_second or document.second is not None
            num_documents += 1
        if len(labels) > MAX_CORPUS_LABELS:
            raise too_many_labels(found.file.path)
    records.close()
    size = found.file.num_bytes
    report = replace(
        found.report,
        labels=frozenset(labels),
        num_lines=num_documents + found.report.has_header,
        num_bytes=size,
        sampled_bytes=size,
    )
    return replace(found, report=report, has_second=has_second)


def too_many_labels(where: str) -> ValueError:
    """Return the error for more labels than shards can hold."""
    return ValueError(
        f"{where}: more than {MAX_CORPUS_LABELS:,} different labels; the first column must be a label, not a text or "
        "number of the line; give another --layout if it is none"
    )


def _look_at(wanted: Survey) -> Surveyed:
    """Look at the beginning of a file."""
    path = wanted.path
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"cannot read {path}: it is no ordinary file (workers read parts of it); write it to a file")
    stream = open_stream(path, "", 0)
    head = stream.read(0, 512)
    stream.close()
    _refuse_archives(path, head)
    file = InputFile(
        path=path,
        name=wanted.name,
        source=wanted.source,
        start=0,
        num_bytes=status.st_size,
        layout=wanted.layout,
        stored_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
    )
    if head.startswith(MAGIC) or wanted.layout == PARQUET:
        return _look_at_parquet(file, wanted, head)
    return _look_at_text(replace(file, compression=compression_of(head)), wanted)


def _look_at_parquet(file: InputFile, wanted: Survey, head: bytes) -> Surveyed:
    if wanted.layout not in ("auto", PARQUET) or not head.startswith(MAGIC):
        what = "is no parquet file" if wanted.layout == PARQUET else "is a parquet file"
        raise ValueError(f"--layout {wanted.layout} does not fit {file.path}: it {what}")
    Column(file.path, wanted.text_field).close()
    report = LayoutReport(file.path, PARQUET, 0, 0, 0, 0, wanted.layout != "auto", text_field=wanted.text_field)
    return Surveyed(replace(file, layout=PARQUET, text_field=wanted.text_field), report, is_measured=False)


def _look_at_text(file: InputFile, wanted: Survey) -> Surveyed:
    stream = open_stream(file.path, file.compression, wanted.max_expansion)
    sample = stream.read(0, SAMPLE_BYTES + 1)
    stream.close()
    whole = len(sample) <= SAMPLE_BYTES
    if sample[TAR_OFFSET : TAR_OFFSET + 5] == b"ustar":
        raise ValueError(f"{file.path} is a tar archive: unpack it (`tar xf`) and give the folder")
    report = detect_layout(file.path, sample[:SAMPLE_BYTES], whole, wanted.layout)
    layout = report.layout
    if layout == MEDIAWIKI:
        require_parser(file.path)
        check_dump(file.path, sample[:SAMPLE_BYTES])
    num_bytes = len(sample) if whole else -1 if file.compression else file.stored_bytes
    text_field = wanted.text_field if layout in FIELD_LAYOUTS else ""
    report = replace(report, num_bytes=num_bytes, text_field=text_field, compression=file.compression)
    file = replace(file, num_bytes=num_bytes, layout=layout, text_field=text_field, has_header=report.has_header)
    return Surveyed(file, report, num_bytes >= 0 and layout != LABELLED_TSV)


def _refuse_archives(path: str, head: bytes) -> None:
    for magic, (what, tool) in ARCHIVES.items():
        if head.startswith(magic):
            raise ValueError(f"{path} is a {what}: unpack it first ({tool}), then give the files")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is UTF-16: convert it: iconv -f UTF-16 -t UTF-8 {path} > NEW_FILE")
