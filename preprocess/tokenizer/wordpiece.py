"""WordPiece ids at many times the speed of a tokenizer call, and exactly equal to them.

BERT's pipeline (BertNormalizer, BertPreTokenizer, WordPiece) never looks across a separator (white space) or an
isolated character (CJK ideographs, punctuation), and an isolated character is one token. So a text is an array of code
points; a table gives each code point's class; isolated characters get their ids from a second table; and the maximal
runs of the remaining characters ("spans") are looked up in a dictionary that the real tokenizer fills, one batch of
unseen spans at a time. Both tables are probed from the tokenizer itself, and only for code points that occur, so they
hold no Unicode data of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tokenizers

from preprocess.code_points import to_code_points
from preprocess.tokenizer.library import offsets_of
from preprocess.tokenizer.pipeline import (
    NUM_CODE_POINTS,
    Encoder,
    batches,
    flat_ids,
    text_begins,
)
from preprocess.tokenizer.span_cache import SpanCache

SEPARATOR, ISOLATED, WORD, UNKNOWN = 0, 2, 3, 255
BATCH_CHARACTERS = 1 << 18

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EncodedText:
    """The ids of one text and where they come from.

    Attributes:
        ids: [T] token ids.
        code_points: [C] uint32, the text.
        positions: [E] code point at which each isolated character or span begins, ascending.
        ends: [E + 1] number of ids before event e; the last is T.
        removed: [NUM_CODE_POINTS] whether normalisation removes a code point.
    """

    ids: np.ndarray
    code_points: npt.NDArray[np.uint32]
    positions: IntArray
    ends: IntArray
    removed: npt.NDArray[np.bool_]

    def tokens_before(self, boundaries: IntArray) -> IntArray:
        """Return how many ids come from code points before each boundary; a boundary must not cut a span."""
        return self.ends[np.searchsorted(self.positions, boundaries)]

    def first_tokens(self, begin: int = 0) -> IntArray:
        """Return ``begin`` + the first code point of each isolated character or span at its first token [T].

        It is -1 at the other tokens. What normalisation removes does not count.
        """
        found = np.full(len(self.ids), -1, np.int64)
        has_tokens = np.diff(self.ends) > 0
        positions = self.positions[has_tokens]
        hidden = self.removed[self.code_points[positions]]
        if hidden.any():
            visible = np.flatnonzero(~self.removed[self.code_points])
            positions[hidden] = visible[np.searchsorted(visible, positions[hidden])]
        found[self.ends[:-1][has_tokens]] = positions + begin
        return found


class WordPieceEncoder(Encoder):
    """Encode text exactly as ``backend`` does: a pipeline in which only the characters of a span see each other.

    That is Bert normalizer + Bert pre-tokenizer + WordPiece, and also white-space words or single characters looked up
    in a list.
    """

    def __init__(self, backend: tokenizers.Tokenizer, dtype: npt.DTypeLike) -> None:
        self.backend = backend
        self.dtype = np.dtype(dtype)
        self.classes = np.full(NUM_CODE_POINTS, UNKNOWN, np.uint8)
        self.removed = np.zeros(NUM_CODE_POINTS, np.bool_)
        self.isolated_ids = np.zeros(NUM_CODE_POINTS, self.dtype)
        self.spans = SpanCache(self._encode_spans, dtype)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray]:
        """Return the concatenated ids [T] and the number of ids of each text [len(texts)] int64."""
        ids: list[np.ndarray] = [np.zeros(0, self.dtype)]
        counts: list[IntArray] = [np.zeros(0, np.int64)]
        for batch in batches(texts, BATCH_CHARACTERS):
            encoded = self.encode_text("\n".join(batch))
            lengths = np.fromiter(map(len, batch), np.int64, len(batch))
            ids.append(encoded.ids)
            counts.append(np.diff(encoded.tokens_before(np.cumsum(lengths + 1)), prepend=0))
        return np.concatenate(ids), np.concatenate(counts)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids and offsets, by the library itself."""
        return offsets_of(self.backend, text, self.dtype)

    def encode_with_positions(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids, counts and positions: a span's first token has the span's, the others continue the word."""
        ids: list[np.ndarray] = [np.zeros(0, self.dtype)]
        counts: list[IntArray] = [np.zeros(0, np.int64)]
        positions: list[IntArray] = [np.zeros(0, np.int64)]
        begin = 0
        for batch in batches(texts, BATCH_CHARACTERS):
            encoded = self.encode_text("\n".join(batch))
            boundaries = np.append(text_begins(batch)[1:], len(encoded.code_points))
            ids.append(encoded.ids)
            counts.append(np.diff(encoded.tokens_before(boundaries), prepend=0))
            positions.append(encoded.first_tokens(begin))
            begin += len(encoded.code_points) + 1
        return np.concatenate(ids), np.concatenate(counts), np.concatenate(positions)

    def _encode_spans(self, spans: list[str]) -> tuple[np.ndarray, IntArray]:
        encodings = self.backend.encode_batch_fast(spans, add_special_tokens=False)
        return flat_ids([encoding.ids for encoding in encodings], self.dtype)

    def encode_text(self, text: str) -> EncodedText:
        """Encode one text of any length; about 256k characters a call are fastest."""
        code_points, classes = self.classify(text)
        words = classes == WORD
        begins = words.copy()  # the first character of each span
        begins[1:] &= ~words[:-1]
        positions = np.flatnonzero(begins | (classes == ISOLATED))
        is_span = words[positions]
        rows = self.spans.rows(_spans_of(code_points, words))
        lengths = np.ones(len(positions), np.int64)
        lengths[is_span] = self.spans.lengths[rows]
        ends = np.zeros(len(positions) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        ids = np.empty(int(ends[-1]), self.dtype)
        isolated = np.flatnonzero(~is_span)
        ids[ends[isolated]] = self.isolated_ids[code_points[positions[isolated]]]
        self.spans.copy_to(ids, ends[:-1][is_span], rows)
        return EncodedText(ids, code_points, positions, ends, self.removed)

    def classify(self, text: str) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """Return the code points [C] of a text and their classes [C]: SEPARATOR, ISOLATED or WORD."""
        code_points = to_code_points(text)
        classes = self.classes[code_points]
        if len(classes) and classes.max() == UNKNOWN:
            self._probe(np.unique(code_points[classes == UNKNOWN]))
            classes = self.classes[code_points]
        return code_points, classes

    def _probe(self, code_points: npt.NDArray[np.uint32]) -> None:
        """Ask the tokenizer what it does with each code point between two letters."""
        unsure = []
        for point in code_points.tolist():
            normalized = self.backend.normalizer.normalize_str(f"a{chr(point)}a")
            pieces = [piece for piece, _ in self.backend.pre_tokenizer.pre_tokenize_str(normalized)]
            self.classes[point] = kind = _class_of(pieces)
            self.removed[point] = normalized == "aa"
            if kind == ISOLATED:
                known = self.backend.token_to_id(pieces[1]) if len(pieces[1]) == 1 else None
                if known is None:
                    unsure.append(point)
                else:
                    self.isolated_ids[point] = known
        encodings = self.backend.encode_batch_fast(list(map(chr, unsure)), add_special_tokens=False)
        for point, encoding in zip(unsure, encodings, strict=True):
            if len(encoding.ids) == 1:
                self.isolated_ids[point] = encoding.ids[0]
            else:  # normalised to more than one character: the tokenizer itself encodes it, as part of a span
                self.classes[point] = WORD


def _class_of(pieces: list[str]) -> int:
    """Return the class of a code point between two letters a, by the words that these become."""
    if pieces == ["a", "a"]:
        return SEPARATOR
    return ISOLATED if len(pieces) == 3 and pieces[0] == pieces[2] == "a" else WORD


def _spans_of(code_points: npt.NDArray[np.uint32], words: npt.NDArray[np.bool_]) -> list[str]:
    """Return the maximal runs of word characters: every other character becomes a space, runs of them one."""
    kept = words.copy()
    kept[1:] |= words[:-1]  # a span and the one character behind it
    text = np.where(words, code_points, np.uint32(0x20))[kept].tobytes().decode("utf-32-le")
    spans = text.split(" ")
    if not spans[-1]:
        spans.pop()
    return spans
