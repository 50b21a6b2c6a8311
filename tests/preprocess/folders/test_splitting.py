"""split: contiguous parts of nearly equal size, or one for each source; merge puts them together again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from preprocess.folders.merging import merge_folders
from preprocess.folders.splitting import split_folder
from preprocess.folders.verification import verify_folder
from preprocess.manifest import read_manifest, write_manifest
from preprocess.shards import OPTIONAL, ShardArrays, ShardReader, content_digest
from tests.preprocess.folders.shard_documents import make_arrays, random_docs, read_docs

Make = Callable[..., Path]
SOURCES = ["x", "y", "z"]


def quiet(line: str) -> None:
    """Say nothing."""


def whole_digest(folder: Path) -> str:
    """Digest of all shards of a folder as if they were one."""
    manifest = read_manifest(folder)
    options = ShardReader(folder / manifest.shards[0].file).optional
    names = [source.name for source in manifest.sources]
    arrays: ShardArrays = make_arrays(read_docs(folder), names, manifest.labels, options)
    return content_digest(arrays)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("options", [(), OPTIONAL], ids=["plain", "options"])
def test_split_and_merge_give_the_same(make_folder: Make, tmp_path: Path, num_parts: int, options: tuple) -> None:
    docs, held = random_docs(1, 61, SOURCES, options), random_docs(2, 10, SOURCES, options)
    labels = ["pos", "neg"] if options else []
    folder = make_folder("s", docs, held, options=options, labels=labels)
    manifests = split_folder(folder, tmp_path / "parts", into=num_parts, num_workers=1, say=quiet)
    names = [f"part-{number:02d}" for number in range(1, num_parts + 1)]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == names
    parts = [read_docs(tmp_path / "parts" / name) for name in names]
    assert list(chain.from_iterable(parts)) == docs and all(parts)
    held_parts = [read_docs(tmp_path / "parts" / name / "heldout") for name in names]
    assert list(chain.from_iterable(held_parts)) == held
    for name, manifest in zip(names, manifests, strict=True):
        assert verify_folder(tmp_path / "parts" / name) == []
        assert manifest.settings["split_from"] == read_manifest(folder).digest
        assert manifest.labels == labels and [source.name for source in manifest.sources] == SOURCES
    ideal = sum(len(doc.tokens) for doc in docs) / num_parts
    longest = max(len(doc.tokens) for doc in docs)
    if num_parts < 10:
        assert all(abs(manifest.counts["tokens"] - ideal) <= longest for manifest in manifests)
    if num_parts > 1:
        merge_folders([str(tmp_path / "parts" / name) for name in names], tmp_path / "again", 1, quiet)
        assert verify_folder(tmp_path / "again") == []
        assert read_docs(tmp_path / "again" / "heldout") == held
        assert whole_digest(tmp_path / "again") == whole_digest(folder)
        for before, after in zip(read_manifest(folder).sources, read_manifest(tmp_path / "again").sources, strict=True):
            assert before == after


def test_as_many_parts_as_documents(make_folder: Make, tmp_path: Path) -> None:
    docs = random_docs(5, 13, ["a"])
    folder = make_folder("s", docs, per_shard=3)
    split_folder(folder, tmp_path / "parts", into=13, say=quiet)
    for number, doc in enumerate(docs):
        assert read_docs(tmp_path / "parts" / f"part-{number + 1:02d}") == [doc]
    for wrong in (14, 0, -1):
        with pytest.raises(ValueError, match=f"--into {wrong}: .* has 13 documents, which can be split into 1 to 13"):
            split_folder(folder, tmp_path / "other", into=wrong, say=quiet)


def test_one_long_document_among_short_ones(make_folder: Make, tmp_path: Path) -> None:
    """No part is empty, even where every border falls into the same document."""
    docs = random_docs(5, 6, ["a"])
    long = type(docs[0])(((7,) * 5000,), "a")
    folder = make_folder("s", [*docs[:2], long, *docs[2:]], per_shard=2)
    split_folder(folder, tmp_path / "parts", into=5, say=quiet)
    parts = [read_docs(tmp_path / "parts" / f"part-{number:02d}") for number in range(1, 6)]
    assert all(parts) and list(chain.from_iterable(parts)) == [*docs[:2], long, *docs[2:]]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_by_source(make_folder: Make, tmp_path: Path, num_workers: int) -> None:
    names = ["../corpus/a.txt", "b c", "Ünï/码", "..", "B c"]
    docs = random_docs(3, 50, names, OPTIONAL)
    held = random_docs(4, 8, names[:2], OPTIONAL)
    folder = make_folder("s", docs, held, options=OPTIONAL, labels=["pos", "neg"])
    split_folder(folder, tmp_path / "parts", by="source", num_workers=num_workers, say=quiet)
    expected = {"corpus_a.txt": names[0], "b_c": names[1], "Ünï_码": names[2], "source": "..", "B_c-2": names[4]}
    assert {path.name for path in (tmp_path / "parts").iterdir()} == set(expected)
    for name, source in expected.items():
        part = tmp_path / "parts" / name
        assert read_docs(part) == [doc for doc in docs if doc.source == source]
        assert read_docs(part / "heldout") == [doc for doc in held if doc.source == source]
        assert verify_folder(part) == []
        manifest = read_manifest(part)
        assert [s.name for s in manifest.sources] == [source]
        assert manifest.settings["split_part"] == f"source {source}"


def test_a_source_without_documents_is_told(make_folder: Make, tmp_path: Path) -> None:
    folder = make_folder("s", random_docs(3, 9, ["a"]), random_docs(4, 2, ["b"]))
    said: list[str] = []
    split_folder(folder, tmp_path / "parts", by="source", say=said.append)
    assert "source 'b' has no documents, and some that are held out, which go nowhere: no folder" in said[0]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["a"]


def test_the_same_command_goes_on(make_folder: Make, tmp_path: Path) -> None:
    folder = make_folder("s", random_docs(3, 30, ["a"]))
    split_folder(folder, tmp_path / "parts", into=3, say=quiet)
    last = tmp_path / "parts" / "part-03"
    (last / "manifest.json").unlink()
    (last / "UNFINISHED").touch()
    before = (tmp_path / "parts" / "part-01" / "manifest.json").stat().st_mtime_ns
    said: list[str] = []
    split_folder(folder, tmp_path / "parts", into=3, say=said.append)
    assert "part-01 is complete" in said[0] and verify_folder(last) == []
    assert (tmp_path / "parts" / "part-01" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="part-01 holds finished shards; give another --output"):
        split_folder(folder, tmp_path / "parts", into=2, say=quiet)


def test_wrong_arguments(make_folder: Make, tmp_path: Path) -> None:
    folder = make_folder("s", random_docs(3, 30, ["a"]), [])
    for arguments in ({}, {"into": 2, "by": "source"}, {"by": "size"}):
        with pytest.raises(ValueError, match="split needs either --into N or --by source"):
            split_folder(folder, tmp_path / "parts", say=quiet, **arguments)
    with pytest.raises(ValueError, match=r"lies within .*, which is read"):
        split_folder(folder, folder / "parts", into=2, say=quiet)
    other = make_folder("t", random_docs(3, 30, ["a"]))
    with pytest.raises(ValueError, match="t holds shards itself; give a folder for the parts"):
        split_folder(folder, other, into=2, say=quiet)
    with pytest.raises(ValueError, match="has no tokenizer of its own"):
        split_folder(folder / "heldout", tmp_path / "parts", into=2, say=quiet)


def test_a_source_that_the_manifest_lacks(make_folder: Make, tmp_path: Path) -> None:
    folder = make_folder("s", random_docs(3, 30, ["a", "b"]))
    manifest = read_manifest(folder)
    numbers = {f"num_{name}": manifest.counts[name] for name in ("documents", "sentences", "tokens")}
    manifest.sources[:] = [replace(manifest.sources[0], **numbers)]
    write_manifest(manifest, folder)
    for arguments in ({"into": 2}, {"by": "source"}):
        with pytest.raises(ValueError, match="has a document of source 1, which the manifest lacks"):
            split_folder(folder, tmp_path / "parts", say=quiet, **arguments)
