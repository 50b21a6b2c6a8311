"""Exact duplicates of whole runs, compared with sets."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.cleaning.settings import CleaningSettings
from tests.preprocess.building.command_line import digests
from tests.preprocess.building.test_sources import read_rows, run

WORDS = ["the", "token", "masking", "cat", "dog", "x"]


def make_documents(seed: int) -> list[list[str]]:
    """Return documents of few different sentences, so that most occur again."""
    generator = random.Random(seed)
    sentences = [" ".join(generator.choices(WORDS, k=generator.randint(1, 4))) for _ in range(200)]
    return [generator.choices(sentences, k=generator.choice([1, 1, 2, 3])) for _ in range(600)]


def without_repeated_documents(documents: list[list[str]]) -> list[list[str]]:
    return [list(document) for document in dict.fromkeys(map(tuple, documents))]


def without_repeated_sentences(documents: list[list[str]]) -> list[list[str]]:
    seen: set[str] = set()
    left = []
    for document in documents:
        kept = [sentence for sentence in document if not (sentence in seen or seen.add(sentence))]
        if kept:
            left.append(kept)
    return left


@pytest.mark.parametrize(
    ("mode", "expected"), [("documents", without_repeated_documents), ("sentences", without_repeated_sentences)]
)
def test_the_first_occurrence_stays(
    vocabulary_file: Path, tmp_path: Path, mode: str, expected: Callable[[list[list[str]]], list[list[str]]]
) -> None:
    """Over blocks, files and layouts; in input order, for any number of workers."""
    documents = make_documents(7)
    (tmp_path / "a.txt").write_text("\n\n".join("\n".join(document) for document in documents[:300]) + "\n")
    rest = ["\n".join(document) for document in documents[300:]]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rest))
    found = []
    for workers in (1, 3):
        output = tmp_path / str(workers)
        manifest, told = run(
            output,
            vocabulary_file,
            [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")],
            cleaning=CleaningSettings(deduplicate=mode, split_sentences=False),
            workers=workers,
            shard_bytes=700,
            dropped=str(tmp_path / f"{workers}.jsonl"),
        )
        texts = [row[2] for row in read_rows(output, vocabulary_file)]
        left = expected(documents)
        assert texts == [" ".join(document) for document in left]
        num_before, num_after = (
            (len(documents), len(left)) if mode == "documents" else (sum(map(len, documents)), sum(map(len, left)))
        )
        assert manifest.counts[f"dropped_{mode}_duplicate"] == num_before - num_after
        assert f"{num_before - num_after:,} {mode} are repetitions" in told
        found.append((digests(output), (tmp_path / f"{workers}.jsonl").read_bytes()))
    assert found[0] == found[1]
