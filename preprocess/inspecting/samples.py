"""Random documents of a shard folder as readable text, with the borders of words and of their pieces."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocess.manifest import Manifest
from preprocess.shards import ShardReader
from preprocess.tokenizer import Tokenizer

SAMPLE_TOKENS = 60
PIECE, SENTENCE, SECOND = "·", "|", "=>"
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """One document: where it is, how long, and the text of its beginning."""

    file: str
    document: int
    source: str
    label: str | None
    num_tokens: int
    text: str
    text_is_cut: bool


def draw_documents(manifest: Manifest, num_samples: int, seed: int) -> list[int]:
    """Return numbers of different documents in rising order: a pure function of the seed and the manifest."""
    num_documents = sum(entry.num_documents for entry in manifest.shards)
    if num_samples >= num_documents:
        return list(range(num_documents))
    key = hashlib.sha256(f"{seed} {manifest.digest}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(key[:16], "little"))
    chosen: set[int] = set()
    while len(chosen) < num_samples:
        chosen.add(int(generator.random_raw()) % num_documents)
    return sorted(chosen)


def read_samples(manifest: Manifest, tokenizer: Tokenizer, documents: list[int]) -> list[Sample]:
    """Read documents by number, counted over all shards."""
    ends = np.cumsum([entry.num_documents for entry in manifest.shards])
    samples = []
    for number in documents:
        index = int(np.searchsorted(ends, number, side="right"))
        entry = manifest.shards[index]
        reader = ShardReader(manifest.folder / entry.file, entry)
        try:
            samples.append(
                _read_sample(reader, number - int(ends[index]) + entry.num_documents, entry.file, manifest, tokenizer)
            )
        finally:
            reader.close()
    return samples


def _read_sample(reader: ShardReader, number: int, file: str, manifest: Manifest, tokenizer: Tokenizer) -> Sample:
    begin, end = reader.document_offsets[number : number + 2].tolist()
    stop = min(end, begin + SAMPLE_TOKENS)
    ids = reader.tokens(begin, stop)
    starts = reader.word_starts(begin, stop)
    if starts is None:
        starts = ~tokenizer.continuation[ids]
    marks = {int(place) - begin: SENTENCE for place in reader.sentence_offsets if begin < place < stop}
    if reader.second_offsets is not None and begin <= reader.second_offsets[number] < stop:
        marks[int(reader.second_offsets[number]) - begin] = SECOND
    label = -1 if reader.document_label is None else int(reader.document_label[number])
    return Sample(
        file=file,
        document=number,
        source=manifest.sources[int(reader.document_source[number])].name,
        label=manifest.labels[label] if label >= 0 else None,
        num_tokens=end - begin,
        text=show_words(ids.tolist(), starts, tokenizer, marks),
        text_is_cut=stop < end,
    )


def show_words(ids: list[int], starts: npt.NDArray[np.bool_], tokenizer: Tokenizer, marks: dict[int, str]) -> str:
    """Return ids as text: a space between words, a middle dot between the pieces of one.

    Args:
        ids: n token ids, at least one.
        starts: [n] whether a word starts at each; one always does at the first, and at a mark.
        marks: what to write before the token at a place.
    """
    begins = sorted({0, *np.flatnonzero(starts).tolist(), *marks})
    words = []
    for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
        if begin in marks:
            words.append(marks[begin])
        words.append(PIECE.join(_pieces(ids[begin:end], tokenizer)))
    return " ".join(word for word in words if word)


def _pieces(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """Return the texts of a word's tokens; tokens that hold parts of one character are not taken apart."""
    whole = tokenizer.decode(ids)
    pieces, done = [], 0
    for count in range(1, len(ids) + 1):
        text = whole if count == len(ids) else tokenizer.decode(ids[:count])
        if whole.startswith(text) and len(text) >= done and (count == len(ids) or not text.endswith("\ufffd")):
            pieces.append(printable(whole[done : len(text)].strip()))
            done = len(text)
    return [piece for piece in pieces if piece]


def printable(text: str) -> str:
    """Return text with everything that a terminal would obey, or not show, written as an escape."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
