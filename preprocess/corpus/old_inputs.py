"""The reader of plain text that the present callers use: which files, which layout, and the documents of a byte range.

The input is the concatenation of the files in order. Block k is the documents whose first byte lies in
[k * block_bytes, (k + 1) * block_bytes) of it, so anyone can find a block without reading what comes before. A document
never spans files, lines end at b"\\n" only, and a line of nothing but ASCII white space is blank.
"""

from __future__ import annotations

import bisect
import glob
import operator
import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from preprocess.corpus.corpus import Corpus, InputFile
from preprocess.corpus.finding import expand
from preprocess.corpus.old_detection import BYTE_ORDER_MARK, DOCUMENT_PER_LINE, describe_layouts, detect_layout


def plain_block(corpus: Corpus, index: int, block_bytes: int) -> Iterator[tuple[InputFile, int, bytes]]:
    """Yield (file, offset within the file, bytes) for each file that has documents beginning in a block."""
    first, last = index * block_bytes, (index + 1) * block_bytes
    start_of = operator.attrgetter("start")
    begin_file = max(0, bisect.bisect_right(corpus.files, first, key=start_of) - 1)
    end_file = bisect.bisect_left(corpus.files, last, key=start_of)
    for file in corpus.files[begin_file:end_file]:
        if file.start + file.num_bytes <= first:
            continue
        with open(file.path, "rb") as stream:
            _check_size(file, stream)
            begin = document_boundary(stream, first - file.start, file.layout)
            end = file.num_bytes
            if last < file.start + file.num_bytes:
                end = document_boundary(stream, last - file.start, file.layout)
            stream.seek(begin)
            data = stream.read(end - begin)
        if begin == 0 and data.startswith(BYTE_ORDER_MARK):
            begin, data = len(BYTE_ORDER_MARK), data[len(BYTE_ORDER_MARK) :]
        if data:
            yield file, begin, data


def _check_size(file: InputFile, stream: BinaryIO) -> None:
    found = os.fstat(stream.fileno()).st_size
    if found != file.num_bytes:
        raise ValueError(f"{file.path} had {file.num_bytes:,} bytes and now has {found:,}: it changes while it is read")


def document_boundary(stream: BinaryIO, offset: int, layout: str) -> int:
    """Return the first line start at or after ``offset`` where a document may begin; the file's size if none.

    In document_per_line that is any line start, in sentence_per_line one that follows a blank line.
    """
    if offset <= len(BYTE_ORDER_MARK):
        stream.seek(0)
        mark = len(BYTE_ORDER_MARK) if stream.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
        if offset <= mark:
            return 0
    stream.seek(offset - 1)
    line = stream.readline()
    position = offset - 1 + len(line)
    if layout == DOCUMENT_PER_LINE:
        return position
    blank = not line.strip() and _blank_before(stream, offset - 1)
    stream.seek(position)
    while not blank and (line := stream.readline()):
        position += len(line)
        blank = not line.strip()
    return position


def _blank_before(stream: BinaryIO, position: int) -> bool:
    """Whether the line that holds ``position`` is blank up to there."""
    while position > 0:
        start = max(0, position - 4096)
        stream.seek(start)
        chunk = stream.read(position - start)
        if start == 0:
            chunk = chunk.removeprefix(BYTE_ORDER_MARK)
        if chunk[chunk.rfind(b"\n") + 1 :].strip():
            return False
        if b"\n" in chunk:
            return True
        position = start
    return True


def open_corpus(arguments: Sequence[str], layout: str = "auto") -> tuple[Corpus, list[str]]:
    """Find the files of a command's --corpus arguments and their layouts.

    Args:
        arguments: files, folders (read recursively, hidden entries skipped) and glob patterns.
        layout: "auto" to detect it in each file, or the layout of all files.

    Returns:
        the corpus, and lines that tell the user what was found.

    Raises:
        ValueError: if a file is missing or unreadable, the input is empty, or a file contradicts ``layout``.
    """
    names: dict[str, None] = {}
    files: list[InputFile] = []
    reports = []
    start = 0
    for source, argument in enumerate(arguments):
        names[_unique_name(argument, names)] = None
        for path, name in expand(argument):
            detected = detect_layout(path, layout)
            reports.append(detected)
            file = InputFile(
                path=path,
                name=name,
                source=source,
                start=start,
                num_bytes=detected.num_bytes,
                layout=detected.layout,
            )
            files.append(file)
            start += file.num_bytes
    corpus = Corpus(tuple(names), tuple(files))
    if not any(report.num_lines for report in reports):
        raise ValueError(f"the corpus is empty: no text in {', '.join(arguments)} ({len(files)} files)")
    return corpus, describe_layouts(reports)


def _unique_name(argument: str, taken: Container[str]) -> str:
    """Return the stem of a file or folder; of a pattern, its folder's name; -2, -3, ... make it unique."""
    path = Path(argument)
    while glob.has_magic(path.name) and not path.exists():
        path = path.parent
    resolved = path if path.name else path.resolve()
    stem = (resolved.stem if resolved.is_file() else resolved.name) or "corpus"
    number, name = 1, stem
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name
