"""The words nearest to a word, by the cosine of their vectors in the embedding table or in a sentence.

In a sentence each candidate is put in the place of the word, and the vectors that the model gives that place are
compared with the word's own: words that would do the same there are near.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.config.cli import UsageError, collect
from finetune.config.embedding import NeighborsConfig
from finetune.features.sequences import TokenSequence
from finetune.inference.embedding import normalized
from finetune.inference.encoder import Embedder, Encoder, layer_numbers, load_encoder
from finetune.inference.writing import output_problems, replaced_file, writer_of
from finetune.readers.table_lines import read_lines
from preprocess.corpus.text_errors import invalid_utf8

Float32 = NDArray[np.float32]
COLUMNS = ("word", "rank", "neighbor", "cosine")


class Neighbor(NamedTuple):
    """A word, and the cosine of its vector and that of the word sought."""

    word: str
    cosine: float


@dataclass(frozen=True)
class Vocabulary:
    """Candidates and their vectors in the embedding table.

    Attributes:
        words: as they are shown, and put into sentences.
        vectors: [number of words, D], divided by their lengths.
    """

    words: tuple[str, ...]
    vectors: Float32

    def nearest(self, vector: Float32, without: str, top: int) -> list[Neighbor]:
        """The words nearest to a vector [D], the nearest first; ``without`` one word, in any case of its letters."""
        cosines = self.vectors @ normalized(vector)
        found = []
        for number in np.argsort(-cosines, kind="stable").tolist():
            if self.words[number].casefold() != without.casefold():
                found.append(Neighbor(self.words[number], float(cosines[number])))
            if len(found) == top:
                break
        return found


def write_neighbors(config: NeighborsConfig) -> None:
    """Find the neighbours of each word and write them to a file or the screen.

    Raises:
        ValueError: all problems of the settings at once, or a word that cannot be looked up.
    """
    problems = config.problems() + output_problems(config.output, config.candidates)
    encoder = collect(problems, lambda: load_encoder(config.model))
    path = config.candidates
    words = collect(problems, lambda: read_words(path)) if path is not None else None
    if encoder is not None:
        collect(problems, lambda: layer_numbers(config.layers, len(encoder.model.encoder.layers)))
    if problems or encoder is None:
        raise UsageError("\n".join(problems))
    vocabulary = given_words(encoder, words) if words is not None else whole_vocabulary(encoder, config.sentence)
    found = {word: neighbors_of(encoder, vocabulary, word, config) for word in config.word_list}
    rows = [
        dict(zip(COLUMNS, (word, rank, *neighbor), strict=True))
        for word, neighbors in found.items()
        for rank, neighbor in enumerate(neighbors, 1)
    ]
    if config.output is None:
        writer = writer_of("", COLUMNS, sys.stdout)
        for row in rows:
            writer.write(row)
        return
    with replaced_file(Path(config.output)) as file:
        writer = writer_of(config.output, COLUMNS, file)
        for row in rows:
            writer.write(row)


def neighbors_of(encoder: Encoder, vocabulary: Vocabulary, word: str, config: NeighborsConfig) -> list[Neighbor]:
    """The nearest of the candidates, by the table or in the sentence."""
    vector = table_vectors(encoder, [word])[0]
    if config.sentence is None:
        return vocabulary.nearest(vector, word, config.top)
    count = config.preselect or len(vocabulary.words)
    candidates = [neighbor.word for neighbor in vocabulary.nearest(vector, word, count)]
    embedder = Embedder(encoder, layers=config.layers, batch_size=config.batch_size)
    return nearest_in_sentence(embedder, word, config.sentence, candidates, config.top)


def nearest_in_sentence(
    embedder: Embedder, word: str, sentence: str, candidates: Sequence[str], top: int
) -> list[Neighbor]:
    """Candidates by the cosine of their vectors in the place of a word and its own there, the nearest first.

    Raises:
        ValueError: if the sentence does not hold the word, or is longer than the model takes.
    """
    begin, end = place_of(word, sentence)
    places: list[tuple[TokenSequence, range]] = []
    kept: list[str] = []
    for candidate in (word, *candidates):
        made = sequence_around(embedder.encoder, sentence[:begin], candidate, sentence[end:])
        if made is None and not places:
            raise ValueError(
                f"the sentence has more than {embedder.encoder.builder.max_length} tokens; give a shorter part of it"
            )
        if made is not None:
            places.append(made)
            kept.append(candidate)
    if left_out := 1 + len(candidates) - len(kept):
        print(f"note: {left_out:,} candidates left out: with them the sentence is too long", file=sys.stderr)
    vectors = normalized(vectors_of_places(embedder, places))
    cosines = vectors[1:] @ vectors[0]
    order = np.argsort(-cosines, kind="stable")[:top].tolist()
    return [Neighbor(kept[1 + number], float(cosines[number])) for number in order]


def vectors_of_places(embedder: Embedder, places: Sequence[tuple[TokenSequence, range]]) -> Float32:
    """Mean of the vectors of some neighbouring tokens of each sequence: [number of sequences, D]."""
    result = np.empty((len(places), embedder.encoder.table.shape[1]), np.float32)
    for indices, hidden, batch in embedder.batches([sequence for sequence, _ in places]):
        for index, part in zip(indices, hidden.cpu().split(batch.layout.lengths), strict=True):
            place = places[index][1]
            result[index] = part[place.start : place.stop].mean(0).numpy()
    return result


def place_of(word: str, sentence: str) -> tuple[int, int]:
    """Where a sentence first holds a word: as a word of its own, or anywhere in scripts without upper and lower case.

    Those that put no spaces between words are such scripts.

    Raises:
        ValueError: if it does not.
    """
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", sentence)
    if found is None and word.lower() == word.upper():
        found = re.search(re.escape(word), sentence)
    if found is None:
        raise ValueError(
            f"the sentence {sentence!r} does not hold the word {word!r}; it must be there as it is written"
        )
    return found.span()


def sequence_around(encoder: Encoder, before: str, word: str, behind: str) -> tuple[TokenSequence, range] | None:
    """The tokens of a sentence and the places of a word's; None where they are too many, or the word has none."""
    ids, starts, ends = encoder.builder.tokenizer.encode_with_offsets(before + word + behind)
    inside = np.flatnonzero((starts < len(before) + len(word)) & (ends > len(before)))
    (sequence,), (cut,) = encoder.builder.build([before + word + behind])
    if cut or not len(inside):
        return None
    begin = int(len(sequence.tokens) - len(ids) == 2)  # [CLS]
    assert (sequence.tokens[begin : begin + len(ids)] == ids).all()
    return sequence, range(begin + int(inside[0]), begin + int(inside[-1]) + 1)


def table_vectors(encoder: Encoder, words: Sequence[str]) -> Float32:
    """Mean of the vectors of each word's tokens in the embedding table, [number of words, D].

    Raises:
        ValueError: if a word has no token.
    """
    ids, counts = encoder.builder.tokenizer.encode(words)
    if not counts.all():
        raise ValueError(f"the word {words[int(np.argmin(counts))]!r} has no token in the model's vocabulary")
    table, ends = encoder.table, np.cumsum(counts)
    return np.stack([table[ids[end - count : end]].mean(0) for end, count in zip(ends, counts, strict=True)])


def given_words(encoder: Encoder, words: Sequence[str]) -> Vocabulary:
    """Candidates that a user gave, of one or several tokens each."""
    return Vocabulary(tuple(words), normalized(table_vectors(encoder, words)))


def whole_vocabulary(encoder: Encoder, sentence: str | None) -> Vocabulary:
    """The tokens without the special ones; of those that are to stand in a sentence only whole words."""
    tokenizer = encoder.builder.tokenizer
    usable = ~tokenizer.all_special
    if sentence is not None:
        usable &= ~tokenizer.continuation
    shown = {
        number: tokenizer.tokens[number] if tokenizer.continuation[number] else tokenizer.decode([number]).strip()
        for number in np.flatnonzero(usable).tolist()
    }
    chosen = [number for number, word in shown.items() if word and (sentence is None or word[0].isalnum())]
    distinct = list({shown[number]: number for number in reversed(chosen)}.values())[::-1]  # the first of equals
    return Vocabulary(tuple(shown[number] for number in distinct), normalized(encoder.table[distinct]))


def read_words(path: str) -> list[str]:
    """The distinct lines of a file that are not empty, in order.

    Raises:
        ValueError: if there is none, or the file cannot be read.
    """
    if not Path(path).is_file():
        raise ValueError(f"--candidates {path}: {'a folder, not a file' if Path(path).is_dir() else 'no such file'}")
    words: dict[str, None] = {}
    for line in read_lines(path, "tsv"):
        if line.bad_byte >= 0:
            raise invalid_utf8(path, line.bad_byte)
        if word := line.text.strip():
            words[word] = None
    if not words:
        raise ValueError(f"--candidates {path} holds no words")
    return list(words)
