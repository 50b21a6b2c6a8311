"""What was dropped: counted by reason, and kept to be written aside if the user wants to see it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from preprocess.corpus.document import Document


class DroppedText(NamedTuple):
    """A text that was dropped, why, and where its record begins."""

    reason: str
    file: str
    offset: int
    text: str


class Drops:
    """Counts by reason ("documents_too_short").

    Args:
        keep_texts: whether the dropped texts are kept too.
    """

    def __init__(self, keep_texts: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self.keep_texts = keep_texts
        self.texts: list[DroppedText] = []

    def add(self, reason: str, text: str, document: Document) -> None:
        """Count a dropped document, or a dropped sentence of one; ``text`` is what is lost."""
        self.counts[reason] += 1
        if self.keep_texts:
            self.texts.append(DroppedText(reason, document.file, document.offset, text))

    def add_record(self, reason: str, data: bytes, file: str, offset: int) -> None:
        """Count a record that could not become a document."""
        self.counts[reason] += 1
        if self.keep_texts:
            self.texts.append(DroppedText(reason, file, offset, data.decode(errors="replace")))

    def write(self, output: TextIO, files: Sequence[str]) -> None:
        """Write the texts as JSON lines, in the order of ``files`` and of the records in each."""
        number = {file: index for index, file in enumerate(files)}
        for dropped in sorted(self.texts, key=lambda dropped: (number[dropped.file], dropped.offset)):
            json.dump(dropped._asdict(), output, ensure_ascii=False)
            output.write("\n")
