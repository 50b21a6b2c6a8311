"""Text of a block to the arrays of its shard: lines, documents, ids, held-out documents."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preprocess.corpus.detection import SENTENCE_PER_LINE
from preprocess.corpus.inputs import Corpus, InputFile
from preprocess.corpus.text_errors import check_no_nul, invalid_utf8
from preprocess.shards import ShardArrays
from preprocess.tokenizer.wordpiece import WordPieceEncoder

PIECE_BYTES = 1 << 19
LONG_LINE_BYTES = 1 << 22  # a longer line is cut at spaces, so that memory stays bounded
NEWLINE = 0x0A
NOT_BLANK = np.ones(256, np.bool_)
NOT_BLANK[list(b" \t\n\r\x0b\x0c")] = False

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Documents:
    """Tokens [T] cut into sentences (lengths [S]) and documents (sentences [D] and tokens [D] of each, source [D])."""

    tokens: np.ndarray
    sentence_lengths: IntArray
    num_sentences: IntArray
    num_tokens: IntArray
    source: npt.NDArray[np.uint16]

    def select(self, chosen: npt.NDArray[np.bool_]) -> Documents:
        """Return the documents where ``chosen`` [D] is true."""
        if chosen.all():
            return self
        return Documents(
            self.tokens[np.repeat(chosen, self.num_tokens)],
            self.sentence_lengths[np.repeat(chosen, self.num_sentences)],
            self.num_sentences[chosen],
            self.num_tokens[chosen],
            self.source[chosen],
        )

    def arrays(self) -> ShardArrays:
        """Return the shard's arrays."""
        return ShardArrays(self.tokens, _offsets(self.sentence_lengths), _offsets(self.num_tokens), self.source)

    def counts(self, source: int | None = None) -> tuple[int, int, int]:
        """Return the numbers of documents, sentences and tokens, of one source or of all."""
        chosen = slice(None) if source is None else self.source == source
        return len(self.source[chosen]), int(self.num_sentences[chosen].sum()), int(self.num_tokens[chosen].sum())


@dataclass
class EncodedBlock:
    """A block's documents, those held out, the digest of its text, and how many things were dropped by reason."""

    kept: Documents
    heldout: Documents
    input_sha256: str
    dropped: Counter[str] = field(default_factory=Counter)


def _offsets(lengths: IntArray) -> IntArray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def encode_block(
    corpus: Corpus,
    index: int,
    block_bytes: int,
    encoder: WordPieceEncoder,
    heldout: float,
    progress: Callable[[int], None] = lambda _: None,
) -> EncodedBlock:
    """Encode block ``index`` of the input.

    Args:
        heldout: share of the documents to hold out, chosen by a hash of each document's bytes.
        progress: called with the number of bytes done since the last call.

    Raises:
        ValueError: naming file, byte and line where the text is not UTF-8, or binary.
    """
    parts: list[Documents] = []
    flags: list[npt.NDArray[np.bool_]] = []
    digest = hashlib.sha256()
    dropped: Counter[str] = Counter()
    for file, begin, data in corpus.block(index, block_bytes):
        digest.update(data)
        check_no_nul(file.path, begin, data)
        lines = _Lines(data)
        token_ends, tokens = _encode_lines(file, begin, data, lines, encoder, progress)
        documents, flag = _documents(file, data, lines, token_ends, tokens, heldout, dropped)
        parts.append(documents)
        flags.append(flag)
    whole = _joined(parts, encoder.dtype)
    flag = np.concatenate([np.zeros(0, np.bool_), *flags])
    return EncodedBlock(whole.select(~flag), whole.select(flag), digest.hexdigest(), dropped)


def _joined(parts: list[Documents], dtype: np.dtype) -> Documents:
    empty = np.zeros(0, np.int64)
    parts = [Documents(np.zeros(0, dtype), empty, empty, empty, np.zeros(0, np.uint16)), *parts]
    return Documents(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.sentence_lengths for part in parts]),
        np.concatenate([part.num_sentences for part in parts]),
        np.concatenate([part.num_tokens for part in parts]),
        np.concatenate([part.source for part in parts]),
    )


class _Lines:
    """Where the lines of some bytes begin and end [L], which are not blank, and where the newlines are."""

    def __init__(self, data: bytes) -> None:
        octets = np.frombuffer(data, np.uint8)
        self.newlines = np.flatnonzero(octets == NEWLINE)
        unfinished = not data.endswith(b"\n")
        self.starts = np.concatenate([[0], self.newlines + 1])[: len(self.newlines) + unfinished]
        self.ends = np.concatenate([self.newlines, [len(data)]])[: len(self.starts)]
        self.not_blank = np.logical_or.reduceat(NOT_BLANK[octets], self.starts)


def _encode_lines(
    file: InputFile,
    begin: int,
    data: bytes,
    lines: _Lines,
    encoder: WordPieceEncoder,
    progress: Callable[[int], None],
) -> tuple[IntArray, np.ndarray]:
    """Return the number of tokens up to each line's end [L], and the tokens."""
    ids, ends = [], []
    num_tokens = 0
    for start, stop in _pieces(data, lines.newlines):
        try:
            text = data[start:stop].decode()
        except UnicodeDecodeError as error:
            raise invalid_utf8(file.path, begin + start + error.start) from None
        encoded = encoder.encode_text(text)
        ends.append(num_tokens + encoded.tokens_before(np.flatnonzero(encoded.code_points == NEWLINE)))
        ids.append(encoded.ids)
        num_tokens += len(encoded.ids)
        progress(stop - start)
    if len(lines.starts) > len(lines.newlines):
        ends.append(np.array([num_tokens]))
    return np.concatenate(ends), np.concatenate(ids)


def _pieces(data: bytes, newlines: IntArray) -> Iterator[tuple[int, int]]:
    """Cut bytes into pieces of about PIECE_BYTES, behind a newline, or in very long lines behind a space."""
    start = 0
    while start < len(data):
        stop = min(start + PIECE_BYTES, len(data))
        if stop < len(data):
            after = int(np.searchsorted(newlines, stop))  # the first newline at or behind the limit
            line_end = int(newlines[after]) + 1 if after < len(newlines) else len(data)
            if after > 0 and newlines[after - 1] >= start:
                stop = int(newlines[after - 1]) + 1
            elif line_end - start <= LONG_LINE_BYTES or (stop := data.rfind(b" ", start, stop) + 1) <= start:
                stop = line_end
        yield start, stop
        start = stop


def _documents(
    file: InputFile,
    data: bytes,
    lines: _Lines,
    token_ends: IntArray,
    tokens: np.ndarray,
    heldout: float,
    dropped: Counter[str],
) -> tuple[Documents, npt.NDArray[np.bool_]]:
    """Group lines into documents; those without tokens are dropped, which leaves the tokens as they are."""
    line_tokens = np.diff(token_ends, prepend=0)[lines.not_blank]
    first = np.ones(len(line_tokens), np.bool_)  # the first line of a document, among the lines that are not blank
    if file.layout == SENTENCE_PER_LINE:
        where = np.flatnonzero(lines.not_blank)
        first[1:] = np.diff(where) > 1
    document = np.cumsum(first) - 1  # the document of each line
    num_documents = int(first.sum())
    num_tokens = np.bincount(document, line_tokens, num_documents).astype(np.int64)
    num_sentences = np.bincount(document, line_tokens > 0, num_documents).astype(np.int64)
    kept = num_tokens > 0
    dropped["documents_without_tokens"] += int((~kept).sum())
    dropped["sentences_without_tokens"] += int((line_tokens == 0).sum())
    begins = lines.starts[lines.not_blank][first][kept]
    last = np.roll(first, -1)
    ends = lines.ends[lines.not_blank][last][kept]
    documents = Documents(
        tokens,
        line_tokens[line_tokens > 0],
        num_sentences[kept],
        num_tokens[kept],
        np.full(int(kept.sum()), file.source, np.uint16),
    )
    return documents, _held_out(data, begins, ends, heldout)


def _held_out(data: bytes, begins: IntArray, ends: IntArray, share: float) -> npt.NDArray[np.bool_]:
    """Return which documents are held out: equal documents always are, or are not, wherever they lie."""
    if share == 0:
        return np.zeros(len(begins), np.bool_)
    limit = int(share * 2**64)
    hashes = (document_hash(data[begin:end]) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True))
    return np.fromiter((value < limit for value in hashes), np.bool_, len(begins))


def document_hash(document: bytes) -> int:
    """Return the 64-bit BLAKE2b of a document's bytes, without white space at its end and carriage returns."""
    stripped = document.rstrip().replace(b"\r\n", b"\n")
    return int.from_bytes(hashlib.blake2b(stripped, digest_size=8).digest(), "big")
