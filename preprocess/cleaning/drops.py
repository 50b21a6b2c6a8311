"""What was dropped: counted by reason, and written aside if the user wants to see it."""

from __future__ import annotations

import json
from collections import Counter
from typing import TextIO

from preprocess.corpus.document import Document


class Drops:
    """Counts by reason ("documents_too_short"), and the dropped texts as JSON lines.

    Args:
        aside: where dropped texts go, one object a line: reason, file, offset, text.
    """

    def __init__(self, aside: TextIO | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.aside = aside

    def add(self, reason: str, text: str, document: Document) -> None:
        """Count a dropped document, or a dropped sentence of one; ``text`` is what is lost."""
        self.counts[reason] += 1
        if self.aside is not None:
            self.write(reason, text, document.file, document.offset)

    def add_record(self, reason: str, data: bytes, file: str, offset: int) -> None:
        """Count a record that could not become a document."""
        self.counts[reason] += 1
        if self.aside is not None:
            self.write(reason, data.decode(errors="replace"), file, offset)

    def write(self, reason: str, text: str, file: str, offset: int) -> None:
        """Write one dropped text aside."""
        record = {"reason": reason, "file": file, "offset": offset, "text": text}
        json.dump(record, self.aside, ensure_ascii=False)  # type: ignore[arg-type]
        self.aside.write("\n")  # type: ignore[union-attr]
