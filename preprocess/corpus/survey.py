"""What each input file is: compression, layout and uncompressed size."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from preprocess.corpus.corpus import InputFile
from preprocess.corpus.detection import SAMPLE_BYTES, LayoutReport, detect_layout
from preprocess.corpus.layouts import FIELD_LAYOUTS
from preprocess.corpus.streams import compression_of, open_stream
from preprocess.workers import run_blocks

READ_BYTES = 1 << 20
PROGRESS_BYTES = 4 << 20


@dataclass(frozen=True)
class Survey:
    """A file to look at: where it is, and what the user said about it."""

    path: str
    name: str
    source: int
    layout: str
    text_field: str
    max_expansion: int


@dataclass(frozen=True)
class Surveyed:
    """What was found: the file (its start still 0), and the report for the user."""

    file: InputFile
    report: LayoutReport


def survey_files(
    wanted: Sequence[Survey],
    num_workers: int,
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
) -> list[Surveyed]:
    """Look at the beginning of every file, then through those whose size that does not tell."""
    surveys = [_look_at(survey) for survey in wanted]
    long = [index for index, survey in enumerate(surveys) if survey.file.num_bytes < 0]
    if long:
        total = sum(surveys[index].file.stored_bytes for index in long)
        job = SurveyJob([(wanted[index], surveys[index]) for index in long])
        with progress("looking through", total) as advance:
            found = run_blocks(job, range(len(long)), num_workers, advance)
        for index, survey in zip(long, found, strict=True):
            surveys[index] = survey
    return surveys


@dataclass(frozen=True)
class SurveyJob:
    """Reads files through; see ``workers.Job``."""

    pairs: Sequence[tuple[Survey, Surveyed]]

    def start(self) -> None:
        """Load nothing."""

    def run(self, state: Any, block: int, progress: Callable[[int], None]) -> Surveyed:
        """Return what was found, with the size."""
        wanted, found = self.pairs[block]
        stream = open_stream(wanted.path, found.file.compression, wanted.max_expansion)
        num_bytes = seen = 0
        while piece := stream.read(num_bytes, READ_BYTES):
            num_bytes += len(piece)
            if stream.file.tell() - seen >= PROGRESS_BYTES:
                progress(stream.file.tell() - seen)
                seen = stream.file.tell()
        progress(found.file.stored_bytes - seen)
        stream.close()
        return replace(
            found, file=replace(found.file, num_bytes=num_bytes), report=replace(found.report, num_bytes=num_bytes)
        )


def _look_at(wanted: Survey) -> Surveyed:
    """Look at the beginning of a file; its size is -1 if that does not tell it."""
    path = wanted.path
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"cannot read {path}: it is no ordinary file (workers read parts of it); write it to a file")
    with open_stream(path, "", 0).file as file:
        compression = compression_of(file.read(8))
    stream = open_stream(path, compression, wanted.max_expansion)
    sample = stream.read(0, SAMPLE_BYTES + 1)
    stream.close()
    whole = len(sample) <= SAMPLE_BYTES
    report = detect_layout(path, sample[:SAMPLE_BYTES], whole, wanted.layout)
    num_bytes = len(sample) if whole else -1 if compression else status.st_size
    file_found = InputFile(
        path=path,
        name=wanted.name,
        source=wanted.source,
        start=0,
        num_bytes=num_bytes,
        layout=report.layout,
        compression=compression,
        stored_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        text_field=wanted.text_field if report.layout in FIELD_LAYOUTS else "",
    )
    return Surveyed(file_found, replace(report, num_bytes=num_bytes))
