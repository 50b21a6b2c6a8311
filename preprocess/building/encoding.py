"""Documents to the arrays of a block's shards: batches of sentences through the tokenizer, only numbers are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preprocess.cleaning.drops import Drops
from preprocess.corpus.document import Document
from preprocess.shards import ShardArrays
from preprocess.tokenizer import Tokenizer
from preprocess.words import Segmenter

BATCH_CHARACTERS = 1 << 18
LONG_SENTENCE = 1 << 20  # characters; a longer one is encoded in pieces, so that memory stays bounded
NO_LABEL = -1

IntArray = npt.NDArray[np.int64]


@dataclass
class EncodedPart:
    """Documents of one part of a block (kept or held out).

    Attributes:
        arrays: what goes into the shard; None if there is no document.
        counts: source -> numbers of documents, sentences and tokens.
    """

    arrays: ShardArrays | None
    counts: dict[int, tuple[int, int, int]] = field(default_factory=dict)


@dataclass
class _Batch:
    """Sentences that wait to be encoded."""

    texts: list[str] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)  # of each text, if dropped texts are kept
    further: list[int] = field(default_factory=list)  # texts that go on with the sentence of the text before
    num_characters: int = 0


class BlockEncoder:
    """Collects the documents of a block and encodes them.

    Args:
        tokenizer: gives the ids.
        segmenter: tells where words start, None if that follows from the ids.
        labels: label -> number; None if the documents have none.
        has_second: whether documents may have a second text.
        heldout: share of the documents to hold out, chosen by a hash of each one's text.
        drops: counts what has no token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        segmenter: Segmenter | None = None,
        labels: Mapping[str, int] | None = None,
        has_second: bool = False,
        heldout: float = 0.0,
        drops: Drops | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.segmenter = segmenter
        self.labels = labels
        self.has_second = has_second
        self.heldout_limit = int(heldout * 2**64)
        self.drops = drops or Drops()
        self._strips = not tokenizer.keeps_whitespace
        self._batch = _Batch()
        self._ids: list[np.ndarray] = [np.zeros(0, tokenizer.dtype)]
        self._starts: list[npt.NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
        self._lengths: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
        self._documents: list[Document] = []  # all, if dropped texts are kept
        self._num_sentences: list[int] = []  # of each document, both texts
        self._num_first: list[int] = []  # of each document's first text
        self._source: list[int] = []
        self._label: list[int] = []
        self._is_heldout: list[bool] = []

    def add(self, document: Document, sentences: Sequence[str], second: Sequence[str] = ()) -> None:
        """Take in a document.

        Args:
            sentences: its text, cut; white space between two sentences is at the beginning of the later one.
            second: its second text, cut likewise.
        """
        if self.drops.keep_texts:
            self._documents.append(document)
        self._queue(sentences, document)
        if second:
            self._queue(second, document)
        self._num_sentences.append(len(sentences) + len(second))
        self._num_first.append(len(sentences))
        self._source.append(document.source)
        if self.labels is not None:
            self._label.append(NO_LABEL if document.label is None else self.labels[document.label])
        self._is_heldout.append(self.heldout_limit > 0 and document_hash(document) < self.heldout_limit)

    def _queue(self, sentences: Sequence[str], document: Document) -> None:
        num_characters = sum(map(len, sentences))
        if num_characters > LONG_SENTENCE or self.drops.keep_texts:
            self._queue_one_by_one(sentences, document)
            return
        if self._batch.num_characters >= BATCH_CHARACTERS:
            self._flush()
        self._batch.texts += [sentence.strip() for sentence in sentences] if self._strips else sentences
        self._batch.num_characters += num_characters

    def _queue_one_by_one(self, sentences: Sequence[str], document: Document) -> None:
        """Queue sentences of a long document, or with the document of each."""
        for sentence in sentences:
            if self._batch.num_characters >= BATCH_CHARACTERS:
                self._flush()
            batch = self._batch
            if len(sentence) > LONG_SENTENCE:
                self._queue_long(sentence)
            else:
                batch.texts.append(sentence.strip() if self._strips else sentence)
                batch.num_characters += len(sentence)
            if self.drops.keep_texts:
                batch.documents += [document] * (len(batch.texts) - len(batch.documents))

    def _queue_long(self, sentence: str) -> None:
        """Queue a sentence in pieces that are cut before a space, or anywhere if a word is that long."""
        start = 0
        while start < len(sentence):
            end = start + LONG_SENTENCE
            if end < len(sentence):
                space = sentence.rfind(" ", start + 1, end)
                end = space if space > start else end
            if start:
                self._batch.further.append(len(self._batch.texts))
            self._batch.texts.append(sentence[start:end])
            self._batch.num_characters += end - start
            start = end

    def _flush(self) -> None:
        batch, self._batch = self._batch, _Batch()
        if not batch.texts:
            return
        if self.segmenter is None:
            ids, lengths = self.tokenizer.encode(batch.texts)
        else:
            ids, lengths, positions = self.tokenizer.encode_with_positions(batch.texts)
            word_starts = self.segmenter.word_starts("\n".join(batch.texts))
            self._starts.append((positions >= 0) & word_starts[positions])
        if batch.further:
            begins = np.delete(np.arange(len(lengths)), batch.further)
            lengths = np.add.reduceat(lengths, begins)
        self._drop_sentences(batch, lengths)
        self._ids.append(ids)
        self._lengths.append(lengths.astype(np.int32))

    def _drop_sentences(self, batch: _Batch, lengths: IntArray) -> None:
        """Count the sentences without tokens, with their texts where these are kept."""
        empty = np.flatnonzero(lengths == 0)
        if not batch.documents:
            self.drops.counts["sentences_without_tokens"] += len(empty)
            return
        begins = np.delete(np.arange(len(batch.texts)), batch.further)
        for index in begins[empty].tolist():
            self.drops.add("sentences_without_tokens", batch.texts[index], batch.documents[index])

    def _drop_documents(self, empty: IntArray) -> None:
        """Count the documents without tokens, given by their numbers, likewise."""
        if not self.drops.keep_texts:
            self.drops.counts["documents_without_tokens"] += len(empty)
            return
        for index in empty.tolist():
            self.drops.add("documents_without_tokens", self._documents[index].text, self._documents[index])

    def finish(self) -> tuple[EncodedPart, EncodedPart]:
        """Encode what waits and return the documents that stay, and those held out; what has no token is counted."""
        self._flush()
        tokens = np.concatenate(self._ids)
        self._ids = []
        starts = np.concatenate(self._starts) if self.segmenter is not None else None
        lengths = np.concatenate(self._lengths).astype(np.int64)
        num_sentences = np.array(self._num_sentences, np.int64)
        document = np.repeat(np.arange(len(num_sentences)), num_sentences)  # of each sentence
        num_tokens = np.bincount(document, lengths, len(num_sentences)).astype(np.int64)
        first = np.arange(len(document)) - _offsets(num_sentences)[document] < np.array(self._num_first)[document]
        first_tokens = np.bincount(document, lengths * first, len(num_sentences)).astype(np.int64)
        full = num_tokens > 0
        self._drop_documents(np.flatnonzero(~full))
        heldout = np.array(self._is_heldout, np.bool_)
        whole = _Documents(
            tokens=tokens,
            starts=starts,
            lengths=lengths,
            document=document,
            num_tokens=num_tokens,
            first_tokens=first_tokens if self.has_second else None,
            source=np.array(self._source, np.uint16),
            label=np.array(self._label, np.int32) if self.labels is not None else None,
        )
        return whole.part(full & ~heldout), whole.part(full & heldout)


@dataclass(frozen=True, kw_only=True)
class _Documents:
    """All documents of a block: T tokens, S sentences, D documents.

    tokens [T] and starts [T]; lengths (tokens) and document [S]; num_tokens, first_tokens, source and label [D].
    """

    tokens: np.ndarray
    starts: npt.NDArray[np.bool_] | None
    lengths: IntArray
    document: IntArray
    num_tokens: IntArray
    first_tokens: IntArray | None
    source: npt.NDArray[np.uint16]
    label: npt.NDArray[np.int32] | None

    def part(self, chosen: npt.NDArray[np.bool_]) -> EncodedPart:
        """Return the arrays and counts of the documents where ``chosen`` [D] is true."""
        if not chosen.any():
            return EncodedPart(None)
        sentences = chosen[self.document] & (self.lengths > 0)
        of_tokens = slice(None) if chosen.all() else np.repeat(chosen, self.num_tokens)
        document_offsets = _offsets(self.num_tokens[chosen])
        arrays = ShardArrays(
            self.tokens[of_tokens],
            _offsets(self.lengths[sentences]),
            document_offsets,
            self.source[chosen],
            word_starts=None if self.starts is None else self.starts[of_tokens],
            document_label=None if self.label is None else self.label[chosen],
            second_offsets=None if self.first_tokens is None else document_offsets[:-1] + self.first_tokens[chosen],
        )
        num_sentences = np.bincount(self.document[sentences], minlength=len(chosen))
        counts = {}
        for source in np.unique(self.source[chosen]).tolist():
            own = chosen & (self.source == source)
            counts[source] = (int(own.sum()), int(num_sentences[own].sum()), int(self.num_tokens[own].sum()))
        return EncodedPart(arrays, counts)


def _offsets(lengths: IntArray) -> IntArray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def document_hash(document: Document) -> int:
    """Return the 64-bit BLAKE2b of a document's text; a second text goes behind it and a tab."""
    text = document.text if document.second is None else f"{document.text}\t{document.second}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
