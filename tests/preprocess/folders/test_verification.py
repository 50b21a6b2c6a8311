"""verify finds and names whatever differs from what was written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import preprocess.manifest as manifest_module
from preprocess.folders.merging import merge_folders
from preprocess.folders.splitting import split_folder
from preprocess.folders.verification import verify_folder
from preprocess.inspecting.inspection import inspect_folder
from preprocess.manifest import read_manifest, write_manifest
from preprocess.shards import OPTIONAL, ShardReader, write_shard
from tests.preprocess.folders.shard_documents import random_docs


def test_a_whole_folder(shard_folder: Path) -> None:
    assert verify_folder(shard_folder) == []
    assert verify_folder(shard_folder / "heldout") == []


def test_every_flipped_bit_is_found_and_named(shard_folder: Path) -> None:
    shard = sorted((shard_folder / "heldout").glob("*.h5"))[0]
    files = [
        (shard_folder / "shard-00000.h5", 40),
        (shard, 20),
        (shard_folder / "manifest.json", 20),
        (shard_folder / "heldout" / "manifest.json", 20),
        (shard_folder / "tokenizer" / "vocab.txt", 10),
        (shard_folder / "tokenizer" / "tokenizer.json", 10),
        (shard_folder / "tokenizer" / "tokenizer_config.json", 10),
    ]
    for path, num_flips in files:
        data = path.read_bytes()
        for position in np.linspace(0, len(data) - 1, num_flips).astype(int).tolist():
            damaged = bytearray(data)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            problems = verify_folder(shard_folder)
            assert problems, (path, position)
            assert str(path) in problems[0], (problems, path, position)
        path.write_bytes(data)
    assert verify_folder(shard_folder) == []


def test_missing_and_unknown_files(shard_folder: Path) -> None:
    (shard_folder / "shard-00001.h5").unlink()
    (shard_folder / "tokenizer" / "vocab.txt").unlink()
    (shard_folder / "heldout" / "manifest.json").unlink()
    (shard_folder / "notes.txt").write_text("mine")
    (shard_folder / "tokenizer" / "more.json").write_text("{}")
    (shard_folder / "link.h5").symlink_to("shard-00000.h5")
    problems = "\n".join(verify_folder(shard_folder))
    for text in (
        "shard-00001.h5 is missing",
        "vocab.txt is missing",
        "no manifest.json in",
        "notes.txt is not in the manifest",
        "more.json is not in the manifest",
        "link.h5 is not in the manifest",
    ):
        assert text in problems
    shutil.rmtree(shard_folder / "heldout")
    assert any("heldout" in problem for problem in verify_folder(shard_folder))


def test_all_bad_files_are_named(shard_folder: Path) -> None:
    shards = sorted(shard_folder.glob("shard-*.h5"))
    for path in shards[:3]:
        path.write_bytes(path.read_bytes()[:-5])
    problems = verify_folder(shard_folder)
    assert [any(path.name in problem for problem in problems) for path in shards[:3]] == [True] * 3
    assert len(problems) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.tokens.__setitem__(3, 9999), "token id 9999, and the vocabulary has"),
        (lambda arrays: arrays.document_source.__setitem__(0, 50), "a document of source 50"),
        (lambda arrays: arrays.document_offsets.__setitem__(1, 1), "a document that begins within a sentence"),
    ],
)
def test_contents_that_contradict_the_manifest(shard_folder: Path, change, message: str) -> None:
    """A file whose digests are right and whose content cannot be."""
    manifest = read_manifest(shard_folder)
    path = shard_folder / manifest.shards[0].file
    arrays = ShardReader(path).arrays()
    change(arrays)
    manifest.shards[0] = write_shard(path, arrays, "0" * 64)
    write_manifest(manifest, shard_folder)
    problems = verify_folder(shard_folder)
    assert len(problems) == 1
    assert message in problems[0] and str(path) in problems[0]


def test_a_foreign_heldout_folder(shard_folder: Path) -> None:
    heldout = read_manifest(shard_folder / "heldout")
    heldout.settings["input_sha256"] = "0" * 64
    write_manifest(heldout, heldout.folder)
    assert "belongs to other shards" in verify_folder(shard_folder)[0]


def test_a_heldout_folder_of_other_sources(shard_folder: Path) -> None:
    heldout = read_manifest(shard_folder / "heldout")
    heldout.sources[0] = replace(heldout.sources[0], name="other")
    write_manifest(heldout, heldout.folder)
    (problem,) = verify_folder(shard_folder)
    assert "heldout/manifest.json belongs to other shards" in problem


def test_no_shard_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        verify_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"no {manifest_module.MANIFEST_NAME} in"):
        verify_folder(tmp_path)


def test_same_texts_for_any_number_of_workers(shard_folder: Path) -> None:
    for name in ("shard-00002.h5", "heldout/shard-00001.h5", "shard-00000.h5"):
        path = shard_folder / name
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-3])
    (shard_folder / "tokenizer" / "vocab.txt").unlink()
    problems = verify_folder(shard_folder)
    assert len(problems) >= 3
    assert verify_folder(shard_folder, num_workers=2) == problems == sorted(problems, key=problems.index)
    assert [problem.split()[0] for problem in problems][:2] == [
        str(shard_folder / "shard-00000.h5"),
        str(shard_folder / "shard-00002.h5"),
    ]


def test_options_that_contradict_the_rest(make_folder: Callable[..., Path]) -> None:
    docs = random_docs(1, 21, ["a"], OPTIONAL)
    folder = make_folder("s", docs, [], options=OPTIONAL, labels=["neg", "pos"])
    assert verify_folder(folder) == []
    manifest = read_manifest(folder)
    path = folder / manifest.shards[1].file
    arrays = ShardReader(path).arrays()
    inside = next(place for place in range(arrays.tokens.size) if place not in arrays.sentence_offsets)
    document = int(np.searchsorted(arrays.document_offsets, inside)) - 1
    second = arrays.second_offsets.copy()
    second[document] = inside
    for changed, message in (
        (arrays._replace(second_offsets=second), "a second text that begins within a sentence"),
        (arrays._replace(document_label=arrays.document_label + np.int32(9)), "which the manifest lacks"),
        (
            arrays._replace(word_starts=None),
            r"has the optional datasets \['document_label', 'second_offsets'\], and other",
        ),
    ):
        manifest.shards[1] = write_shard(path, changed, "0" * 64)
        write_manifest(manifest, folder)
        (problem,) = verify_folder(folder)
        assert re.search(message, problem) and str(path) in problem
    manifest.shards[1] = write_shard(path, arrays, "0" * 64)
    write_manifest(replace(manifest, labels=["neg", "pos", "more"]), folder)
    (problem,) = verify_folder(folder)
    assert "belongs to other shards" in problem


FORGED_COUNTS = [
    (
        lambda m: m.counts.clear(),
        "counts.documents is missing, and the shards have 21; .*counts.heldout_tokens is miss",
    ),
    (lambda m: m.counts.update(documents=22), "counts.documents is 22, and the shards have 21$"),
    (lambda m: m.counts.update(sentences=0), r"counts.sentences is 0, and the shards have \d+$"),
    (lambda m: m.counts.update(tokens=1), r"counts.tokens is 1, and the shards have \d+$"),
    (lambda m: m.counts.update(heldout_documents=9), "counts.heldout_documents is 9, and the shards have 5$"),
    (lambda m: m.counts.update(heldout_tokens=9), r"counts.heldout_tokens is 9, and the shards have \d+$"),
    (lambda m: m.sources.pop(), r"the sources have 11 documents together, and the shards have 21; .*tokens together"),
]


@pytest.mark.parametrize(("forge", "message"), FORGED_COUNTS)
def test_counts_that_contradict_the_shards(make_folder: Callable[..., Path], forge: Callable, message: str) -> None:
    folder = make_folder("s", random_docs(1, 21, ["a", "b"]), random_docs(2, 5, ["a"]))
    assert verify_folder(folder) == []
    manifest = read_manifest(folder)
    forge(manifest)
    write_manifest(manifest, folder)
    problems = "\n".join(verify_folder(folder))
    assert re.search(f"manifest.json contradicts itself: .*{message}", problems)
    for refuse in (
        lambda: list(inspect_folder(folder)),
        lambda: split_folder(folder, folder.parent / "parts", into=2),
        lambda: merge_folders([str(folder), f"x={folder}"], folder.parent / "merged"),
    ):
        with pytest.raises(ValueError, match=f"manifest.json contradicts itself: .*{message}"):
            refuse()


def test_held_out_counts_without_a_folder_and_within_it(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("s", random_docs(1, 21, ["a"]))
    manifest = read_manifest(folder)
    write_manifest(replace(manifest, counts=manifest.counts | {"heldout_documents": 1}), folder)
    (problem,) = verify_folder(folder)
    assert "counts.heldout_documents is 1, and the shards have 0" in problem
    folder = make_folder("t", random_docs(1, 21, ["a"]), random_docs(2, 5, ["a"]))
    manifest = read_manifest(folder / "heldout")
    write_manifest(replace(manifest, counts={"documents": 5}), manifest.folder)
    (problem,) = verify_folder(folder)
    assert "heldout/manifest.json contradicts itself: counts.sentences is missing" in problem
    for refuse in (lambda: list(inspect_folder(folder)), lambda: split_folder(folder, folder.parent / "parts", into=2)):
        with pytest.raises(ValueError, match=r"heldout/manifest.json contradicts itself: counts.sentences is missing"):
            refuse()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_numbers_of_sources_that_the_shards_contradict(make_folder: Callable[..., Path], num_workers: int) -> None:
    folder = make_folder("s", random_docs(1, 21, ["a", "b"]))
    manifest = read_manifest(folder)
    a, b = manifest.sources
    manifest.sources[:] = [replace(a, num_tokens=a.num_tokens + 2), replace(b, num_tokens=b.num_tokens - 2)]
    write_manifest(manifest, folder)
    (problem,) = verify_folder(folder, num_workers)
    told = [f"source 'a' has {a.num_tokens + 2} tokens, and {a.num_tokens} in the shards"]
    told.append(f"source 'b' has {b.num_tokens - 2} tokens, and {b.num_tokens} in the shards")
    assert problem == f"{folder / 'manifest.json'} is wrong: {'; '.join(told)}"
    manifest.sources[:] = [replace(a, num_documents=a.num_documents - 1), replace(b, num_documents=b.num_documents + 1)]
    write_manifest(manifest, folder)
    (problem,) = verify_folder(folder, num_workers)
    assert f"source 'b' has {b.num_documents + 1} documents, and {b.num_documents} in the shards" in problem


@pytest.mark.parametrize("num_workers", [0, -3])
def test_at_least_one_worker(make_folder: Callable[..., Path], num_workers: int) -> None:
    folder = make_folder("s", random_docs(1, 9, ["a"]))
    message = f"workers is {num_workers}: at least 1 is needed"
    for refuse in (
        lambda: verify_folder(folder, num_workers),
        lambda: list(inspect_folder(folder, num_workers=num_workers)),
        lambda: split_folder(folder, folder.parent / "parts", into=2, num_workers=num_workers),
        lambda: merge_folders([str(folder), f"x={folder}"], folder.parent / "merged", num_workers),
    ):
        with pytest.raises(ValueError, match=message):
            refuse()
