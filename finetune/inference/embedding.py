"""From a model folder and a file of texts to a file of vectors; the texts are read in chunks."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config.cli import UsageError, collect
from finetune.config.embedding import SENTENCE, TABLE, EmbedConfig
from finetune.features.sequences import TokenSequence
from finetune.inference.encoder import Embedder, Encoder, layer_numbers, load_encoder
from finetune.inference.prediction import chunks
from finetune.inference.texts import Texts
from finetune.inference.vector_files import VectorWriter, vector_writer
from finetune.inference.whitening import Moments, Whitening
from finetune.inference.writing import output_problems
from preprocess.progress import progress_bar

Float32 = NDArray[np.float32]
CHUNK_TEXTS = 2048  # whose vectors are in memory at once
CHUNK_OF_TOKENS = 128  # texts the vectors of whose tokens are in memory at once


def embed_file(config: EmbedConfig) -> None:
    """Write the vectors of a file's texts, or the embedding table; the output appears whole or not at all.

    Raises:
        ValueError: all problems of the settings at once, or a line of the input that cannot be read.
    """
    problems = config.problems() + output_problems(config.output, config.input)
    encoder = collect(problems, lambda: load_encoder(config.model, config.max_length))
    texts = collect(problems, lambda: Texts(config)) if config.input is not None else None
    whitening = None
    if encoder is not None:
        collect(problems, lambda: layer_numbers(config.layers, len(encoder.model.encoder.layers)))
        whitening = collect(problems, lambda: _given_whitening(config, encoder))
    if problems or encoder is None:
        raise UsageError("\n".join(problems))
    if texts is None:
        table = encoder.table
        with vector_writer(config.output, table.shape[1], config.dtype, settings_of(config, encoder)) as writer:
            writer.write_table(encoder.builder.tokenizer.tokens, normalized(table) if config.normalize else table)
        print(f"{config.output}: {len(table):,} vectors of {table.shape[1]} numbers", file=sys.stderr)
        return
    run = EmbeddingRun(config, encoder, texts)
    if config.vectors != SENTENCE:
        size = run.write_tokens()
    elif config.whitening or whitening:
        size = run.write_whitened(whitening)
    else:
        size = run.write_sentences()
    cut = f" ({run.num_truncated:,} of them cut to {encoder.builder.max_length} tokens)" if run.num_truncated else ""
    print(f"{config.output}: {run.num_texts:,} texts{cut}, vectors of {size} numbers", file=sys.stderr)
    for note in texts.notes():
        print(f"note: {note}", file=sys.stderr)


def _given_whitening(config: EmbedConfig, encoder: Encoder) -> Whitening | None:
    if not config.whitening_from:
        return None
    return Whitening.load(config.whitening_from, encoder.table.shape[1], kind_of_vectors(config, encoder))


class EmbeddingRun:
    """One pass over a file.

    Attributes:
        num_texts: that were read.
        num_truncated: how many of them were cut.
    """

    def __init__(self, config: EmbedConfig, encoder: Encoder, texts: Texts) -> None:
        self.config, self.encoder, self.texts = config, encoder, texts
        # with whitening, vectors are divided by their length behind it
        own = encoder.settings.normalize if config.normalize is None else config.normalize
        whitened = bool(config.whitening or config.whitening_from)
        self.normalize_last = whitened and own
        normalize = False if whitened else config.normalize
        self.embedder = Embedder(encoder, config.pooling, config.layers, normalize, config.batch_size)
        self.hidden_size = encoder.table.shape[1]
        self.num_texts = self.num_truncated = 0

    def write_sentences(self) -> int:
        """Vectors of the texts; returns the numbers in each."""
        with self._writer(self.hidden_size) as writer:
            for vectors in self._sentence_vectors():
                writer.write(vectors)
        return self.hidden_size

    def write_tokens(self) -> int:
        """Vectors of the tokens."""
        with self._writer(self.hidden_size) as writer:
            for sequences in self._sequences(CHUNK_OF_TOKENS):
                vectors = self.embedder.token_vectors(sequences)
                writer.write_tokens([sequence.tokens for sequence in sequences], vectors)
        return self.hidden_size

    def write_whitened(self, whitening: Whitening | None) -> int:
        """Whitened vectors, by a map that was made before or of these texts, whose vectors wait in a temporary file."""
        if whitening is not None:
            with self._writer(whitening.matrix.shape[1]) as writer:
                for vectors in self._sentence_vectors():
                    writer.write(self._last(whitening(vectors)))
            return whitening.matrix.shape[1]
        moments = Moments(self.hidden_size)
        with tempfile.TemporaryFile(dir=Path(self.config.output).parent) as file:
            for vectors in self._sentence_vectors():
                moments.add(vectors)
                file.write(vectors.tobytes())
            if not moments.count:
                raise ValueError(f"{self.texts.path} is empty; whitening needs texts")
            whitening = Whitening.fit(moments, self.config.whitening)
            file.seek(0)
            with self._writer(self.config.whitening) as writer:
                while data := file.read(CHUNK_TEXTS * self.hidden_size * 4):
                    vectors = np.frombuffer(data, np.float32).reshape(-1, self.hidden_size)
                    writer.write(self._last(whitening(vectors)))
        whitening.save(Path(f"{self.config.output}.whitening.npz"), kind_of_vectors(self.config, self.encoder))
        return self.config.whitening

    def _last(self, vectors: Float32) -> Float32:
        return normalized(vectors) if self.normalize_last else vectors

    def _writer(self, size: int) -> VectorWriter:
        settings = settings_of(self.config, self.encoder)
        return vector_writer(self.config.output, size, self.config.dtype, settings)

    def _sentence_vectors(self) -> Iterator[Float32]:
        for sequences in self._sequences(CHUNK_TEXTS):
            yield self.embedder.sentence_vectors(sequences)

    def _sequences(self, size: int) -> Iterator[list[TokenSequence]]:
        with progress_bar("embed", os.path.getsize(self.texts.path)) as advance:
            for texts in chunks(self.texts.read(advance), size):
                sequences, truncated = self.encoder.builder.build(texts)
                self.num_texts += len(texts)
                self.num_truncated += sum(truncated)
                yield sequences


def normalized(vectors: Float32) -> Float32:
    """Vectors divided by their lengths, [n, D]; those of length 0 stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def kind_of_vectors(config: EmbedConfig, encoder: Encoder) -> dict[str, Any]:
    """What the vectors of a model's texts depend on, apart from the model itself, whose folder may move."""
    layers = layer_numbers(config.layers, len(encoder.model.encoder.layers))
    return {"pooling": config.pooling or encoder.settings.pooling, "layers": layers}


def settings_of(config: EmbedConfig, encoder: Encoder) -> dict[str, Any]:
    """How vectors are made, for the file that holds them."""
    settings: dict[str, Any] = {"model": config.model, "vectors": config.vectors}
    own = encoder.settings
    if config.vectors == TABLE:
        return settings | {"normalize": bool(config.normalize)}
    settings |= {"layers": config.layers, "max_length": encoder.builder.max_length}
    if config.vectors == SENTENCE:
        normalize = own.normalize if config.normalize is None else config.normalize
        whitening = config.whitening_from or config.whitening or None
        return settings | {"pooling": config.pooling or own.pooling, "normalize": normalize, "whitening": whitening}
    return settings | {"normalize": bool(config.normalize)}
