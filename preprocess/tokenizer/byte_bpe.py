"""Byte-level BPE ids as GPT-2 makes them, by ``tiktoken``: several times the speed of the ``tokenizers`` library.

``tiktoken`` merges any two neighbours whose bytes together are a token; the library merges listed pairs only. Both give
the same ids if every merged token, alone, is encoded as itself: merging goes on inside a stretch of text as if the
stretch stood alone until something beyond it is merged in, so the library would have met the unlisted pair while it
encoded the token alone. That is checked once, when the encoder is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken
import tokenizers
from tokenizers import models

from preprocess.code_points import is_visible, to_code_points
from preprocess.tokenizer.byte_level import CHARACTER_OF_BYTE, OTHER_BYTES, VISIBLE_BYTES, token_bytes
from preprocess.tokenizer.library import LibraryPipeline, offsets_of
from preprocess.tokenizer.pipeline import (
    Encoder,
    IntArray,
    batches,
    first_characters,
    flat_ids,
    text_begins,
)
from preprocess.tokenizer.roles import Vocabulary
from preprocess.tokenizer.span_cache import SpanCache

# The pattern of the library's ByteLevel; "++" changes nothing but the speed.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
SPACE_AT_WHITE_SPACE = re.compile(r" (?=[^\S\0]|\Z)")  # all other spaces begin a word and end what is before them
TEXT_MARK, SPACE_MARK = "\0", "\1"  # texts that hold them are encoded without the cache
MIN_SPACES = 1 / 12  # share of the characters; with fewer, the stretches between spaces do not come again
ALONE = re.compile(r"\s?\Z|\s\s")  # begins so that a line end before it would change the cut


def _joinable(texts: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Tell which texts may be joined by line ends."""
    flags = (not (ALONE.match(text) or text[-1:].isspace()) for text in texts)
    return np.fromiter(flags, np.bool_, len(texts))


@dataclass(frozen=True)
class _Chunk:
    """The tokens of a text.

    Attributes:
        ids: [T].
        starts, ends: [T] the bytes at which tokens begin and end.
        code_points: [C] the text.
        begins: [C + 1] the bytes at which code points begin; the last is the size of the text.
    """

    ids: np.ndarray
    starts: IntArray
    ends: IntArray
    code_points: npt.NDArray[np.uint32]
    begins: IntArray

    def positions(self) -> IntArray:
        """Return the first visible character that begins in each token, as a code point index; -1 if none [T]."""
        visible = np.flatnonzero(is_visible(self.code_points))
        found = first_characters(self.starts, self.ends, self.begins[visible])
        return np.where(found >= 0, np.searchsorted(self.begins, found), -1)


class ByteBPEEncoder(Encoder):
    """GPT-2's pipeline: words that came before are looked up, the others encoded in one call.

    For that they are joined by line ends that change nothing.
    """

    def __init__(self, backend: tokenizers.Tokenizer, merges: Sequence[tuple[str, str]], dtype: np.dtype) -> None:
        self.backend = backend
        self.dtype = dtype
        names = [*map(CHARACTER_OF_BYTE.__getitem__, (*VISIBLE_BYTES, *OTHER_BYTES)), *map("".join, merges)]
        octets = [token_bytes(name) or b"" for name in names]
        ranks = {data: rank for rank, data in enumerate(octets)}
        self.encoding = tiktoken.Encoding("bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        self.id_of_rank = np.array([backend.token_to_id(name) for name in names], dtype)
        self.num_bytes = np.array([len(data) for data in octets], np.int64)
        self.words = SpanCache(self._encode_words, dtype)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray]:
        """Return ids and counts."""
        found = [self._encode_cached(batch) for batch in batches(texts)]
        ids = np.concatenate([np.zeros(0, self.dtype), *(ids for ids, _ in found)])
        return ids, np.concatenate([np.zeros(0, np.int64), *(counts for _, counts in found)])

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids and offsets, by the library itself: a token within a character has that character's."""
        return offsets_of(self.backend, text, self.dtype)

    def encode_with_positions(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids, counts and positions; a token that begins within a character does not count it."""
        ids, counts, positions = [np.zeros(0, self.dtype)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        begin = 0
        for batch in batches(texts):
            found = self._encode_batch_with_positions(batch)
            ids.append(found[0])
            counts.append(found[1])
            positions.append(np.where(found[2] >= 0, found[2] + begin, -1))
            begin += sum(map(len, batch)) + len(batch)
        return np.concatenate(ids), np.concatenate(counts), np.concatenate(positions)

    def _encode_cached(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray]:
        """Return ids and counts by way of the words between spaces, where there are enough of them.

        A space before something else than white space begins a pre-token, whatever comes before it, and white space
        that ends a stretch is cut alike at the end of a text. Keys are words without their space; the first of each
        text, which has none, begins with TEXT_MARK.
        """
        joined = TEXT_MARK + f" {TEXT_MARK}".join(texts)
        if joined.count(TEXT_MARK) > len(texts) or SPACE_MARK in joined or joined.count(" ") < MIN_SPACES * len(joined):
            return self._encode_batch(texts)
        joined = SPACE_AT_WHITE_SPACE.sub(SPACE_MARK, joined)
        spaces = np.fromiter((text.count(" ") for text in joined.split(f" {TEXT_MARK}")), np.int64, len(texts))
        rows = self.words.rows(joined.split(" "))
        lengths = self.words.lengths[rows].astype(np.int64)
        ends = np.cumsum(lengths)
        ids = np.empty(int(ends[-1]), self.dtype)
        self.words.copy_to(ids, ends - lengths, rows)
        return ids, np.diff(ends[np.cumsum(spaces + 1) - 1], prepend=0)

    def _encode_words(self, words: list[str]) -> tuple[np.ndarray, IntArray]:
        texts = [word[1:] if word[:1] == TEXT_MARK else " " + word for word in words]
        return self._encode_batch([text.replace(SPACE_MARK, " ") for text in texts])

    def _encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray]:
        """Return ids [T] and counts."""
        joinable = _joinable(texts)
        joined = [text for text, flag in zip(texts, joinable.tolist(), strict=True) if flag]
        rest = [text for text, flag in zip(texts, joinable.tolist(), strict=True) if not flag]
        counts = np.zeros(len(texts), np.int64)
        ranks, counts[~joinable] = flat_ids([self.encoding.encode_ordinary(text) for text in rest], np.uint32)
        together = np.zeros(0, self.dtype)
        if joined:
            together, counts[joinable], _ = self._encode_joined(joined, False)
        ids = np.empty(int(counts.sum()), self.dtype)
        is_joined = np.repeat(joinable, counts)
        ids[is_joined] = together
        ids[~is_joined] = self.id_of_rank[ranks]
        return ids, counts

    def _encode_batch_with_positions(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids [T], counts, and positions [T] in "\\n".join(texts)."""
        joinable = _joinable(texts)
        begins = text_begins(texts)
        groups = [np.flatnonzero(joinable), *np.flatnonzero(~joinable)[:, None]]
        counts = np.zeros(len(texts), np.int64)
        found = []
        for group in groups:
            members = [texts[index] for index in group.tolist()]
            ids, counts[group], positions = self._encode_joined(members, True)
            moved = positions + np.repeat(begins[group] - text_begins(members), counts[group])
            found.append((ids, np.where(positions >= 0, moved, -1)))
        ids = np.empty(int(counts.sum()), self.dtype)
        positions = np.empty(len(ids), np.int64)
        is_joined = np.repeat(joinable, counts)
        for chosen, parts in ((is_joined, found[:1]), (~is_joined, found[1:])):
            if parts:
                ids[chosen] = np.concatenate([part[0] for part in parts])
                positions[chosen] = np.concatenate([part[1] for part in parts])
        return ids, counts, positions

    def _encode_joined(self, texts: Sequence[str], want_positions: bool) -> tuple[np.ndarray, IntArray, IntArray]:
        """Encode texts in one call; the line ends between them are tokens of their own, taken out again."""
        if not texts:
            return np.zeros(0, self.dtype), np.zeros(0, np.int64), np.zeros(0, np.int64)
        chunk = self._encode_chunk("\n".join(texts))
        ends_in_text = text_begins(texts)[1:] - 1  # the line ends, in code points
        separators = np.searchsorted(chunk.starts, chunk.begins[ends_in_text])
        bounds = np.concatenate([[-1], separators, [len(chunk.ids)]])
        positions = chunk.positions() if want_positions else np.zeros(0, np.int64)
        if len(separators):
            kept = np.ones(len(chunk.ids), np.bool_)
            kept[separators] = False
            return chunk.ids[kept], np.diff(bounds) - 1, positions[kept] if want_positions else positions
        return chunk.ids, np.diff(bounds) - 1, positions

    def _encode_chunk(self, text: str) -> _Chunk:
        ranks = self.encoding.encode_ordinary(text)
        ranked = np.fromiter(ranks, np.uint32, len(ranks))
        ends = np.cumsum(self.num_bytes[ranked])
        code_points = to_code_points(text)
        begins = np.zeros(len(code_points) + 1, np.int64)
        if len(code_points) and code_points.max() >= 0x80:
            widths = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)
            np.cumsum(widths, out=begins[1:])
        else:
            begins = np.arange(len(code_points) + 1)
        return _Chunk(self.id_of_rank[ranked], ends - self.num_bytes[ranked], ends, code_points, begins)


class ByteBPE(LibraryPipeline):
    """GPT-2's pipeline: see ``is_gpt2``. White space before a word belongs to its token."""

    type = "bpe"
    files = (*LibraryPipeline.files, "vocab.json", "merges.txt")

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs, in order."""
        return [tuple(merge) for merge in self.data["model"]["merges"]]

    def with_special(self, tokens: Sequence[str]) -> ByteBPE:
        """Return the pipeline with special tokens appended to the vocabulary."""
        vocab = dict(self.data["model"]["vocab"])
        for token in tokens:
            vocab.setdefault(token, len(vocab))
        return ByteBPE(byte_bpe_data(vocab, self.merges, [*self.special_tokens(), *tokens]), "the tokenizer")

    def encoder(self, vocabulary: Vocabulary, dtype: np.dtype) -> Encoder:
        """Return tiktoken's encoder where it is proven equal, else the library's."""
        backend = self.backend(vocabulary, hidden=True)
        if _is_closed(self.data["model"]["vocab"], self.merges):
            return ByteBPEEncoder(backend, self.merges, dtype)
        return super().encoder(vocabulary, dtype)

    def classic_files(self, vocabulary: Vocabulary) -> dict[str, bytes]:
        """Return vocab.json and merges.txt."""
        ids = {token: index for index, token in enumerate(vocabulary.tokens)}
        merges = "".join(f"{first} {second}\n" for first, second in self.merges)
        return {
            "vocab.json": (json.dumps(ids, ensure_ascii=False) + "\n").encode(),
            "merges.txt": ("#version: 0.2\n" + merges).encode(),
        }


def is_gpt2(data: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is plainly GPT-2's: bytes, its pattern, merges, and nothing else."""
    model, cutter = data.get("model") or {}, data.get("pre_tokenizer") or {}
    return (
        model.get("type") == "BPE"
        and not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and not any(model.get(name) for name in ("byte_fallback", "ignore_merges"))
        and data.get("normalizer") is None
        and cutter.get("type") == "ByteLevel"
        and not cutter.get("add_prefix_space", True)
        and cutter.get("use_regex", True)
        and all(added["special"] for added in data.get("added_tokens") or ())
        and set(CHARACTER_OF_BYTE.values()) <= set(model.get("vocab") or ())
    )


def _is_closed(vocab: dict[str, int], merges: list[tuple[str, str]]) -> bool:
    """Whether each merged token, alone, is encoded as itself, and by one merge only."""
    names = list(map("".join, merges))
    if len(set(names)) < len(names) or any(token_bytes(name) is None for name in names):
        return False
    model = tokenizers.Tokenizer(models.BPE(vocab, merges))
    return all(
        encoding.ids == [vocab[name]] for name, encoding in zip(names, model.encode_batch_fast(names), strict=True)
    )


def byte_bpe_data(vocab: dict[str, int], merges: Sequence[tuple[str, str]], special: Sequence[str]) -> dict[str, Any]:
    """Return the tokenizer.json of GPT-2's pipeline."""
    added = [
        {"id": vocab[token], "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token in sorted(special, key=lambda token: vocab[token])
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [list(merge) for merge in merges]},
    }


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Read merges.txt: two tokens a line, best first.

    Raises:
        ValueError: naming the line that is not two tokens.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no list of merges: byte {error.start} is not UTF-8") from None
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"{path} is no list of merges: line {number} is {line[:60]!r}, not two tokens")
        merges.append((pair[0], pair[1]))
    return merges
