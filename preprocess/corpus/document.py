"""What flows from the readers to the encoder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Document:
    """One document of the corpus as text.

    Attributes:
        text: without white space at its ends; lines end with "\\n".
        source: index of its source.
        lines_are_sentences: whether each line is a sentence; otherwise the text is prose, still to be split.
        second: its second text (text_b of a pair, or the target), if it has one.
        label: its label, if it has one.
        file: path of the file that it is from, for messages.
        offset: first byte of its record in that file (uncompressed), for messages.
    """

    text: str
    source: int
    lines_are_sentences: bool = False
    second: str | None = None
    label: str | None = None
    file: str = ""
    offset: int = 0
