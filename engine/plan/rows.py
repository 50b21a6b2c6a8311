"""Rows and sequences of a text, from its counts alone: what a plan and a dry run tell of epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.data.plan import SequenceLayout, room_for_text
from preprocess.manifest import Manifest

FILL = 0.995  # of a row, at least; the row plan's own figure where text is plenty


@dataclass(frozen=True)
class Source:
    """One of the texts that a run mixes.

    Attributes:
        name: short and unlike those of the others.
        weight: its part of all rows.
        tokens: of all documents.
        documents: how many they are.
    """

    name: str
    weight: float
    tokens: int
    documents: int

    @classmethod
    def of(cls, name: str, weight: float, manifest: Manifest) -> Source:
        """The text of a shard folder."""
        shards = manifest.shards
        tokens, documents = sum(shard.num_tokens for shard in shards), sum(shard.num_documents for shard in shards)
        return cls(name, weight, tokens, documents)

    def pieces(self, seq_length: int, layout: SequenceLayout) -> float:
        """Sequences that the documents are cut into.

        A document of n tokens is cut into ceil(n / room) pieces; of lengths that are spread exponentially round their
        mean that is 1 / (1 - exp(-room / mean)) on average.
        """
        if not self.tokens:
            return 0.0
        room = room_for_text(seq_length, layout)
        return self.documents / -math.expm1(-room * self.documents / self.tokens)

    def rows(self, seq_length: int, layout: SequenceLayout) -> int:
        """Rows of an epoch."""
        added = layout.per_sequence * self.pieces(seq_length, layout) + layout.per_document * self.documents
        return max(1, math.ceil((self.tokens + added) / (FILL * seq_length)))

    def lengths(self, seq_length: int, layout: SequenceLayout) -> list[int]:
        """Tokens of the sequences of a row: as many equal ones as there are on average."""
        num = max(1, round(self.pieces(seq_length, layout) / self.rows(seq_length, layout)))
        base, more = divmod(filled(seq_length), num)
        return [base + (number < more) for number in range(num)]


@dataclass(frozen=True)
class Text:
    """What is known of the training text.

    Attributes:
        layout: tokens that the objective adds to it.
        sources: the texts; none where there are no shards yet.
    """

    layout: SequenceLayout
    sources: tuple[Source, ...] = ()

    def rows_of(self, seq_length: int) -> list[tuple[float, list[int]]]:
        """Kinds of rows: the part of all rows, and the tokens of its sequences; without shards one that fills it."""
        if not self.sources:
            return [(1.0, [filled(seq_length)])]
        return [(source.weight, source.lengths(seq_length, self.layout)) for source in self.sources]


def filled(seq_length: int) -> int:
    """Tokens of a row that are not filler."""
    return round(FILL * seq_length)


def estimated_rows(manifest: Manifest, seq_length: int, layout: SequenceLayout) -> int:
    """Rows of an epoch over a shard folder."""
    return Source.of("", 1.0, manifest).rows(seq_length, layout)
