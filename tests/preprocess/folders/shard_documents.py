"""Documents as plain Python, and shard folders of them without the code that makes shards of text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest

from preprocess.files import sha256_of_file
from preprocess.manifest import FORMAT_VERSION, Manifest, ShardEntry, Source, read_manifest, write_manifest
from preprocess.shards import ShardArrays, ShardReader, write_shard
from preprocess.tokenizer import Tokenizer


@dataclass(frozen=True)
class Doc:
    """A document as plain Python: its sentences, and where its second text begins (tokens from its begin)."""

    sentences: tuple[tuple[int, ...], ...]
    source: str
    label: str | None = None
    second: int | None = None
    starts: tuple[bool, ...] | None = None

    @property
    def tokens(self) -> list[int]:
        """All ids."""
        return [token for sentence in self.sentences for token in sentence]


def random_docs(seed: int, num_docs: int, sources: Sequence[str], options: Sequence[str] = ()) -> list[Doc]:
    """Return documents of ordinary ids; sources come in the order given, as files of a corpus do."""
    generator = random.Random(seed)
    docs = []
    for number in range(num_docs):
        sentences = tuple(
            tuple(generator.randrange(5, 66) for _ in range(generator.choice([1, 2, 5, 17])))
            for _ in range(generator.choice([1, 1, 2, 6]))
        )
        borders = list(accumulate(map(len, sentences)))
        docs.append(
            Doc(
                sentences,
                sources[number * len(sources) // num_docs],
                generator.choice(["neg", "pos", None]) if "document_label" in options else None,
                generator.choice([*borders[:-1], None]) if "second_offsets" in options else None,
                tuple(generator.random() < 0.5 for _ in range(borders[-1])) if "word_starts" in options else None,
            )
        )
    return docs


def make_arrays(docs: Sequence[Doc], sources: list[str], labels: list[str], options: Sequence[str]) -> ShardArrays:
    tokens = [token for doc in docs for token in doc.tokens]
    sentences = [0, *accumulate(len(sentence) for doc in docs for sentence in doc.sentences)]
    documents = [0, *accumulate(len(doc.tokens) for doc in docs)]
    arrays = ShardArrays(
        np.array(tokens, np.uint16),
        np.array(sentences, np.int64),
        np.array(documents, np.int64),
        np.array([sources.index(doc.source) for doc in docs], np.uint16),
    )
    if "word_starts" in options:
        arrays = arrays._replace(word_starts=np.array([flag for doc in docs for flag in doc.starts or ()]))
    if "document_label" in options:
        numbers = [labels.index(doc.label) if doc.label else -1 for doc in docs]
        arrays = arrays._replace(document_label=np.array(numbers, np.int32))
    if "second_offsets" in options:
        places = [
            begin + (len(doc.tokens) if doc.second is None else doc.second)
            for begin, doc in zip(documents, docs, strict=False)
        ]
        arrays = arrays._replace(second_offsets=np.array(places, np.int64))
    return arrays


def _counts(entries: Sequence[ShardEntry]) -> dict[str, int]:
    return {name: sum(getattr(e, f"num_{name}") for e in entries) for name in ("documents", "sentences", "tokens")}


def read_docs(folder: Path) -> list[Doc]:
    """Read all documents of a folder (or of a heldout/ folder), one after the other."""
    manifest = read_manifest(folder)
    docs = []
    for entry in manifest.shards:
        reader = ShardReader(folder / entry.file, entry)
        a = reader.arrays()
        reader.close()
        for number in range(entry.num_documents):
            begin, end = a.document_offsets[number : number + 2].tolist()
            borders = [place for place in a.sentence_offsets.tolist() if begin <= place <= end]
            label = -1 if a.document_label is None else int(a.document_label[number])
            second = end if a.second_offsets is None else int(a.second_offsets[number])
            sentences = (a.tokens[x:y].tolist() for x, y in pairwise(borders))
            docs.append(
                Doc(
                    tuple(map(tuple, sentences)),
                    manifest.sources[a.document_source[number]].name,
                    None if label < 0 else manifest.labels[label],
                    None if second == end else second - begin,
                    None if a.word_starts is None else tuple(a.word_starts[begin:end].tolist()),
                )
            )
    return docs


def write_docs(
    folder: Path,
    tokenizer: Tokenizer,
    docs: Sequence[Doc],
    heldout: Sequence[Doc] | None = None,
    options: Sequence[str] = (),
    labels: Sequence[str] = (),
    per_shard: int = 7,
    **settings: object,
) -> Path:
    """Write a shard folder of documents, and of held-out ones, several to a shard."""
    tokenizer.save(folder / "tokenizer")
    sources = list(dict.fromkeys(doc.source for doc in [*docs, *(heldout or [])]))
    identity = {"type": tokenizer.type, "digest": tokenizer.digest, "vocab_size": tokenizer.vocab_size}
    files = {path.name: sha256_of_file(path) for path in sorted((folder / "tokenizer").iterdir())}
    heldout_counts = {f"heldout_{what}": 0 for what in ("documents", "sentences", "tokens")}
    parts = [(folder / "heldout", heldout), (folder, docs)] if heldout is not None else [(folder, docs)]
    for path, part in parts:
        assert part is not None
        path.mkdir(exist_ok=True)
        entries = []
        for number, begin in enumerate(range(0, len(part), per_shard)):
            arrays = make_arrays(part[begin : begin + per_shard], sources, list(labels), options)
            entries.append(write_shard(path / f"shard-{number:05d}.h5", arrays, f"{number:064d}", "gzip"))
        counts = _counts(entries)
        if path.name == "heldout":
            heldout_counts = {f"heldout_{what}": count for what, count in counts.items()}
        described = []
        for source in sources:
            own = [doc for doc in part if doc.source == source]
            numbers = (len(own), sum(len(doc.sentences) for doc in own), sum(len(doc.tokens) for doc in own))
            described.append(
                Source(
                    name=source,
                    layout="document_per_line",
                    files=[{"name": f"{source}.txt", "num_bytes": 9, "layout": "document_per_line"}],
                    num_documents=numbers[0],
                    num_sentences=numbers[1],
                    num_tokens=numbers[2],
                )
            )
        manifest = Manifest(
            folder=path,
            format_version=FORMAT_VERSION,
            tokenizer=identity | ({"files": files} if path == folder else {}),
            sources=described,
            shards=entries,
            settings={"compression": "gzip", "heldout": 0.1 if heldout is not None else 0.0, **settings},
            counts=counts | (heldout_counts | {"dropped_documents_too_short": 3} if path == folder else {}),
            labels=list(labels),
        )
        write_manifest(manifest, path)
    return folder


@pytest.fixture
def make_folder(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Path]:
    """Write a shard folder by name; see ``write_docs`` for the other arguments."""

    def make(name: str, docs: Sequence[Doc], *arguments: object, **settings: object) -> Path:
        return write_docs(tmp_path / name, tokenizer, docs, *arguments, **settings)  # type: ignore[arg-type]

    return make
