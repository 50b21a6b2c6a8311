"""Text of another document in the place of a pair's B, which nothing but its meaning may tell from the right one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.data.rows import Sentences, TokenRange

CANDIDATES = 64  # places looked at for one text

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


class Wanted(NamedTuple):
    """The B that is replaced.

    Attributes:
        document: number of the document that the text may not be of.
        size: tokens.
        begins_sentence: whether a sentence begins with it.
        ends_sentence: whether a sentence ends with it.
    """

    document: int
    size: int
    begins_sentence: bool
    ends_sentence: bool


def find_other_text(text: TokenRange, wanted: Wanted, draws: NDArray[np.uint64], continuation: Bool) -> tuple[int, int]:
    """Find text of another document: as long as wanted, and with a beginning and an end of the same kind.

    The first of the drawn places that fits in all is taken, else the one that gives the longest text of at most the
    wanted length. A text that begins a document fits only as the latter: the B of a right pair never does.

    Args:
        text: holds at least one other document.
        wanted: what to find.
        draws: [K] raw 64-bit draws, one for each place to look at.
        continuation: [V] tokens that continue a word, for text that does not store where words start.

    Returns:
        First token and last token + 1, at most ``wanted.size`` apart.
    """
    sentences, size = text.sentences, len(text.tokens)
    assert sentences is not None
    own = _document_range(sentences, wanted.document, size)
    start = _places(sentences, wanted.begins_sentence, own, size, draws)
    number = sentences.documents.searchsorted(start, side="right")
    limit = np.append(sentences.documents, size)[number]  # the end of the document
    stop = start + wanted.size
    fits = (stop <= limit) & (_is_one_of(stop, sentences.starts) == wanted.ends_sentence)
    if wanted.begins_sentence:
        fits &= ~_is_one_of(start, sentences.documents)
    else:
        words = ~continuation[text.tokens[start]] if text.word_starts is None else text.word_starts[start]
        fits &= words & ~_is_one_of(start, sentences.starts)
    chosen = int(fits.argmax())
    if fits[chosen]:
        return int(start[chosen]), int(stop[chosen])
    stop = np.minimum(stop, limit)
    ends = np.append(sentences.starts, 0)  # -1 is the 0
    whole = ends[sentences.starts.searchsorted(stop, side="right") - 1]  # the last sentence end that fits
    if wanted.ends_sentence and (whole > start).any():
        stop = np.maximum(whole, start)
    chosen = int((stop - start).argmax())
    return int(start[chosen]), int(stop[chosen])


def _document_range(sentences: Sentences, document: int, size: int) -> tuple[int, int]:
    """Begin and end of a document within a text of ``size`` tokens; two equal places where none of it is there."""
    number = document - sentences.first_document  # documents of the text count from 1; 0 began before it
    if number < 0 or number > len(sentences.documents):
        return size, size
    begin = 0 if number == 0 else int(sentences.documents[number - 1])
    end = size if number == len(sentences.documents) else int(sentences.documents[number])
    return begin, end


def _places(
    sentences: Sentences, at_sentences: bool, own: tuple[int, int], size: int, draws: NDArray[np.uint64]
) -> Int64:
    """Drawn places [K] outside of a range: where sentences begin, if there are any, else anywhere."""
    starts = sentences.starts[: sentences.starts.searchsorted(size)]
    low, high = starts.searchsorted(own).tolist()
    if at_sentences and len(starts) > high - low:
        number = (draws % np.uint64(len(starts) - (high - low))).astype(np.int64)
        return starts[number + (number >= low) * (high - low)]
    place = (draws % np.uint64(size - (own[1] - own[0]))).astype(np.int64)
    return place + (place >= own[0]) * (own[1] - own[0])


def _is_one_of(places: Int64, ascending: Int64) -> Bool:
    """Whether each of some places [K] is one of an ascending list."""
    if not len(ascending):
        return np.zeros(len(places), np.bool_)
    found = np.minimum(ascending.searchsorted(places), len(ascending) - 1)
    return ascending[found] == places
