"""Settings of embeddings and of neighbours. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.config.tasks import POOLINGS, FileConfig, choice_problem, output_name_problem

SENTENCE, TOKEN, TABLE = "sentence", "token", "table"
VECTORS = (SENTENCE, TOKEN, TABLE)
DTYPES = ("float32", "float16")
SUFFIXES = (".npy", ".h5", ".hdf5", ".parquet")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Write the vectors of texts, of their tokens, or of the vocabulary.

    Args:
        model: model folder, run folder, or folder of sentence-transformers.
        output: file to write: .npy, .h5 (HDF5) or .parquet.
        input: texts, one in each line; a table where --column is given. Not read for --vectors table.
        vectors: sentence: one for each text; token: one for each token of each text, special tokens included; table:
            the embedding table, one for each token of the vocabulary.
        column: the column of a table that holds the texts.
        columns: names of the table's columns, where its first line does not name them: label,text_a,text_b.
        format: of the table: tsv, csv or jsonl; by its name and first line where not given.
        bad_lines: what happens to malformed lines of the table: error, or skip, which reports their numbers.
        pooling: vector of a text: that of its first or last token, or the mean or the maximum of all; what the folder
            says where not given, and the mean where it says nothing.
        layers: whose output is taken, averaged where there are several: 0 the embeddings, 1 the first layer and so on,
            -1 the last.
        normalize: divide each vector by its length; what the folder says where not given.
        whitening: decorrelate the vectors of all texts and keep that many components (Su et al. 2021,
            arXiv:2103.15316); 0 does nothing. The map is written to OUTPUT.whitening.npz.
        whitening_from: apply the map of such a file instead.
        max_length: tokens of a text, special tokens included; what the folder says where not given.
        batch_size: texts per forward pass.
        dtype: of the numbers that are written: float32 or float16.
    """

    model: str
    output: str
    input: str | None = None
    vectors: str = SENTENCE
    column: str | None = None
    columns: str | None = None
    format: str | None = None
    bad_lines: str = "error"
    pooling: str | None = None
    layers: list[int] = field(default_factory=lambda: [-1])
    normalize: bool | None = None
    whitening: int = 0
    whitening_from: str | None = None
    max_length: int | None = None
    batch_size: int = 32
    dtype: str = "float32"

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        found = choice_problem("vectors", self.vectors, VECTORS) + choice_problem("pooling", self.pooling, POOLINGS)
        found += choice_problem("dtype", self.dtype, DTYPES) + self.files.problems()
        found += output_name_problem(self.output, SUFFIXES)
        if self.batch_size < 1:
            found.append(f"batch_size is {self.batch_size}; it must be at least 1")
        if (self.input is None) != (self.vectors == TABLE):
            found.append("--input is needed for --vectors sentence and token, and not read for table")
        if self.column is None and (self.columns or self.format):
            found.append("--columns and --format are for tables: give --column, the name of the column with the texts")
        if not self.layers:
            found.append("layers is empty; name at least one, such as -1, the last")
        if self.vectors != SENTENCE:
            given = [name for name in ("pooling", "whitening", "whitening_from") if getattr(self, name)]
            found += [f"--{name} is for --vectors sentence; leave it out" for name in given]
        if self.whitening < 0 or (self.whitening and self.whitening_from):
            found.append(f"whitening is {self.whitening}; it must be at least 0, and 0 with --whitening_from")
        return found

    @property
    def files(self) -> FileConfig:
        """How a table is read."""
        return FileConfig(self.columns, self.format, self.bad_lines)


@dataclass(frozen=True, kw_only=True)
class NeighborsConfig:
    """Find the words that are nearest to a word: by the embedding table, or in the place of the word in a sentence.

    Args:
        model: model folder, run folder, or folder of sentence-transformers.
        words: whose neighbours are sought, separated by commas.
        sentence: text that holds the word: each candidate is put in its place, and the vectors of that place compared.
        candidates: file of words, one in each line; the words of the vocabulary where not given.
        preselect: candidates to put into the sentence, those nearest by the embedding table; 0 for all.
        layers: in a sentence, whose output is taken, averaged where there are several: 0 the embeddings, -1 the last.
        top: neighbours of each word.
        output: file to write, tab-separated, or .csv or .jsonl by its name; on the screen where not given.
        batch_size: sentences per forward pass.
    """

    model: str
    words: str
    sentence: str | None = None
    candidates: str | None = None
    preselect: int = 1000
    layers: list[int] = field(default_factory=lambda: [-1])
    top: int = 10
    output: str | None = None
    batch_size: int = 64

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        smallest = {"preselect": 0, "top": 1, "batch_size": 1}
        found = [
            f"{name} is {getattr(self, name)}; it must be at least {least}"
            for name, least in smallest.items()
            if getattr(self, name) < least
        ]
        found += output_name_problem(self.output)
        if not self.word_list:
            found.append("words is empty; name at least one")
        if not self.layers:
            found.append("layers is empty; name at least one, such as -1, the last")
        return found

    @property
    def word_list(self) -> list[str]:
        """The words."""
        return [word.strip() for word in self.words.split(",") if word.strip()]
