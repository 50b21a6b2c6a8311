"""merge: the documents of several folders in their order, with the right sources and labels."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from preprocess.folders.merging import merge_folders
from preprocess.folders.verification import verify_folder
from preprocess.inspecting.inspection import inspect_folder
from preprocess.manifest import read_manifest, write_manifest
from preprocess.shards import OPTIONAL, ShardReader
from preprocess.tokenizer import Tokenizer, load_tokenizer
from tests.preprocess.folders.shard_documents import Doc, random_docs, read_docs

Make = Callable[..., Path]


def quiet(line: str) -> None:
    """Say nothing."""


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_documents_in_order_with_their_sources(make_folder: Make, tmp_path: Path) -> None:
    a = random_docs(1, 23, ["x", "y"])
    b = random_docs(2, 11, ["z"])
    c = random_docs(3, 5, ["v", "w"])
    held = [random_docs(seed, 3, [name]) for seed, name in ((4, "y"), (5, "z"), (6, "v"))]
    folders = [str(make_folder(name, docs, h)) for name, docs, h in zip("abc", (a, b, c), held, strict=True)]
    said: list[str] = []
    manifest = merge_folders(folders, tmp_path / "out", 1, said.append)
    assert read_docs(tmp_path / "out") == a + b + c
    assert read_docs(tmp_path / "out" / "heldout") == list(chain.from_iterable(held))
    assert verify_folder(tmp_path / "out") == []
    assert [source.name for source in manifest.sources] == ["x", "y", "z", "v", "w"]
    for source in manifest.sources:
        own = [doc for doc in a + b + c if doc.source == source.name]
        assert source.num_documents == len(own) and source.num_tokens == sum(len(doc.tokens) for doc in own)
        assert source.num_sentences == sum(len(doc.sentences) for doc in own)
    assert manifest.counts["documents"] == 39 and manifest.counts["heldout_documents"] == 9
    assert manifest.counts["dropped_documents_too_short"] == 9
    assert [entry.file for entry in manifest.shards] == [f"shard-{number:05d}.h5" for number in range(7)]
    assert manifest.settings["merged_from"] == [read_manifest(folder).digest for folder in folders]
    assert manifest.settings["compression"] == "gzip" and manifest.settings["heldout"] == 0.1
    assert manifest.shards[0].input_sha256 == read_manifest(folders[0]).shards[0].input_sha256
    assert "7 shards, 39 documents" in said[-1] and "held out 9 documents" in said[-1]
    assert not (tmp_path / "out" / "UNFINISHED").exists()


def test_same_bytes_for_any_number_of_workers(make_folder: Make, tmp_path: Path) -> None:
    folders = [str(make_folder(name, random_docs(seed, 20, [name]), [])) for seed, name in enumerate("ab")]
    merge_folders(folders, tmp_path / "one", 1, quiet)
    merge_folders(folders, tmp_path / "two", 2, quiet)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_labels_are_united(make_folder: Make, tmp_path: Path) -> None:
    a = random_docs(1, 20, ["a"], OPTIONAL)
    b = [
        replace(doc, label={"pos": "good", "neg": "neg", None: None}[doc.label])
        for doc in random_docs(2, 20, ["b"], OPTIONAL)
    ]
    one = make_folder("a", a, options=OPTIONAL, labels=["pos", "neg"])
    two = make_folder("b", b, options=OPTIONAL, labels=["neg", "good"])
    manifest = merge_folders([str(one), str(two)], tmp_path / "out", 1, quiet)
    assert manifest.labels == ["pos", "neg", "good"]
    assert read_docs(tmp_path / "out") == a + b
    assert verify_folder(tmp_path / "out") == []


def test_what_one_folder_lacks_is_filled_in(make_folder: Make, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Without stored word starts a word starts at each token that does not continue one."""
    a = random_docs(1, 20, ["a"], OPTIONAL)
    b = random_docs(2, 20, ["b"])
    one, two = make_folder("a", a, options=OPTIONAL, labels=["pos", "neg"]), make_folder("b", b)
    for order in ((one, two), (two, one)):
        out = tmp_path / f"out-{order[0].name}"
        merge_folders([str(folder) for folder in order], out, 1, quiet)
        by_source = {name: [doc for doc in read_docs(out) if doc.source == name] for name in "ab"}
        assert by_source["a"] == a
        for doc, expected in zip(by_source["b"], b, strict=True):
            assert replace(doc, starts=None) == expected
            tokens = [tokenizer.tokens[index] for index in doc.tokens]
            assert doc.starts == tuple(not number or not t.startswith("##") for number, t in enumerate(tokens))
        assert verify_folder(out) == []


def test_prefixes_for_equal_names(make_folder: Make, tmp_path: Path) -> None:
    one, two = (make_folder(name, random_docs(seed, 9, ["books"])) for seed, name in enumerate("ab"))
    with pytest.raises(
        ValueError, match=r"a and .*b both have a source named 'books'; give NAME=FOLDER, such as first="
    ):
        merge_folders([str(one), str(two)], tmp_path / "out", 1, quiet)
    assert not (tmp_path / "out").exists()
    manifest = merge_folders([str(one), f"more={two}"], tmp_path / "out", 1, quiet)
    assert [source.name for source in manifest.sources] == ["books", "more/books"]
    with pytest.raises(ValueError, match="both have a source named 'books'"):
        merge_folders([str(one), str(one)], tmp_path / "twice", 1, quiet)


def test_a_folder_with_an_equals_sign(make_folder: Make, tmp_path: Path) -> None:
    one, two = make_folder("lr=1", random_docs(1, 9, ["a"])), make_folder("b", random_docs(2, 9, ["b"]))
    manifest = merge_folders([str(one), str(two)], tmp_path / "out", 1, quiet)
    assert [source.name for source in manifest.sources] == ["a", "b"]
    with pytest.raises(ValueError, match="'=x' is neither FOLDER nor NAME=FOLDER"):
        merge_folders(["=x", str(two)], tmp_path / "other", 1, quiet)


def test_folders_that_do_not_fit(make_folder: Make, tmp_path: Path, vocabulary_file: Path) -> None:
    one = make_folder("a", random_docs(1, 9, ["a"]), [])
    without = make_folder("b", random_docs(2, 9, ["b"]))
    with pytest.raises(ValueError, match=r"a has held-out documents and .*b has none: .* with the same --heldout"):
        merge_folders([str(without), str(one)], tmp_path / "out", 1, quiet)
    with pytest.raises(ValueError, match="merge needs at least two shard folders, and 1 was given"):
        merge_folders([str(one)], tmp_path / "out", 1, quiet)
    with pytest.raises(ValueError, match=r"a/heldout has no tokenizer of its own: .*give that folder"):
        merge_folders([str(one), f"{one}/heldout"], tmp_path / "out", 1, quiet)
    with pytest.raises(ValueError, match=r"no manifest.json in"):
        merge_folders([str(one), str(tmp_path)], tmp_path / "out", 1, quiet)
    with pytest.raises(ValueError, match=r"out lies within .*a, which is read"):
        merge_folders([str(one), str(without)], one / "out", 1, quiet)
    (tmp_path / "v.txt").write_text(vocabulary_file.read_text() + "more\n")
    other = make_folder("c", random_docs(3, 9, ["c"]), [])
    identity = {"digest": load_tokenizer(tmp_path / "v.txt").digest, "type": "wordpiece", "vocab_size": 79}
    for path in (other / "heldout", other):
        manifest = read_manifest(path)
        write_manifest(replace(manifest, tokenizer=manifest.tokenizer | identity), path)
    with pytest.raises(ValueError, match=r"a and .*c were made with different tokenizers .*their ids mean different"):
        merge_folders([str(one), str(other)], tmp_path / "out", 1, quiet)


def test_different_shares_are_told(make_folder: Make, tmp_path: Path) -> None:
    one = make_folder("a", random_docs(1, 9, ["a"]), random_docs(3, 2, ["a"]))
    two = make_folder("b", random_docs(2, 9, ["b"]), [])
    for path in (two / "heldout", two):
        manifest = read_manifest(path)
        manifest.settings["heldout"] = 0.3
        write_manifest(manifest, path)
    said: list[str] = []
    manifest = merge_folders([str(one), str(two)], tmp_path / "out", 1, said.append)
    assert "hold out different shares (0.1, 0.3)" in said[0]
    assert manifest.settings["heldout"] == [0.1, 0.3]
    assert verify_folder(tmp_path / "out") == []
    assert len(read_docs(tmp_path / "out" / "heldout")) == 2


def test_an_output_that_is_taken(make_folder: Make, tmp_path: Path) -> None:
    folders = [str(make_folder(name, random_docs(seed, 9, [name]))) for seed, name in enumerate("ab")]
    merge_folders(folders, tmp_path / "out", 1, quiet)
    with pytest.raises(ValueError, match="out holds finished shards; give another --output, or delete"):
        merge_folders(folders, tmp_path / "out", 1, quiet)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        merge_folders(folders, tmp_path / "mine", 1, quiet)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_damage_is_found_and_nothing_is_left(make_folder: Make, tmp_path: Path, num_workers: int) -> None:
    folders = [make_folder(name, random_docs(seed, 30, [name])) for seed, name in enumerate("ab")]
    path = folders[1] / "shard-00002.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-00002.h5 is damaged"):
        merge_folders([str(folder) for folder in folders], tmp_path / "out", num_workers, quiet)
    assert not (tmp_path / "out").exists()


def test_a_damaged_tokenizer_is_found(make_folder: Make, tmp_path: Path) -> None:
    folders = [make_folder(name, random_docs(seed, 30, [name])) for seed, name in enumerate("ab")]
    (folders[0] / "tokenizer" / "vocab.txt").write_text("other")
    with pytest.raises(ValueError, match=r"vocab.txt is damaged"):
        merge_folders([str(folder) for folder in folders], tmp_path / "out", 1, quiet)
    (folders[0] / "tokenizer" / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"vocab.txt is missing"):
        merge_folders([str(folder) for folder in folders], tmp_path / "out", 1, quiet)


def test_what_a_stopped_run_left_is_replaced(make_folder: Make, tmp_path: Path) -> None:
    folders = [str(make_folder(name, random_docs(seed, 30, [name]))) for seed, name in enumerate("ab")]
    merge_folders(folders, tmp_path / "out", 1, quiet)
    expected = contents(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "UNFINISHED").touch()
    shutil.copy(tmp_path / "out" / "shard-00000.h5", tmp_path / "out" / "shard-00099.h5")
    merge_folders(folders, tmp_path / "out", 1, quiet)
    assert contents(tmp_path / "out") == expected


def test_shards_with_more_datasets_than_the_first(make_folder: Make, tmp_path: Path) -> None:
    docs = random_docs(1, 14, ["a"], OPTIONAL)
    one, two = make_folder("a", docs, labels=["neg", "pos"]), make_folder("b", random_docs(2, 9, ["b"]))
    other = make_folder("c", docs, options=OPTIONAL, labels=["neg", "pos"])
    manifest, more = read_manifest(one), read_manifest(other)
    shutil.copy(other / more.shards[1].file, one / manifest.shards[1].file)
    manifest.shards[1] = dataclasses.replace(more.shards[1])
    write_manifest(manifest, one)
    assert ShardReader(one / manifest.shards[1].file).optional == OPTIONAL
    with pytest.raises(ValueError, match=r"shard-00001.h5 has the optional datasets .* preprocess verify"):
        merge_folders([str(one), str(two)], tmp_path / "out", 1, quiet)


def test_a_folder_within_that_lacks_a_source(make_folder: Make, tmp_path: Path) -> None:
    one = make_folder("a", random_docs(1, 9, ["a"]), random_docs(3, 2, ["a"]))
    two = make_folder("b", random_docs(2, 9, ["b"]), [])
    heldout = read_manifest(one / "heldout")
    heldout.sources[0] = replace(heldout.sources[0], name="other")
    write_manifest(heldout, one / "heldout")
    with pytest.raises(ValueError, match="heldout has the source 'other', which the folder around it lacks"):
        merge_folders([str(one), str(two)], tmp_path / "out", 1, quiet)
    write_manifest(replace(heldout, labels=["x"]), one / "heldout")
    with pytest.raises(ValueError, match="belongs to other shards than"):
        merge_folders([str(one), str(two)], tmp_path / "out", 1, quiet)


def test_documents_are_plain(make_folder: Make) -> None:
    """The helpers of these tests give back what they wrote."""
    docs: list[Doc] = random_docs(1, 40, ["a", "b"], OPTIONAL)
    assert read_docs(make_folder("a", docs, options=OPTIONAL, labels=["neg", "pos"])) == docs


def test_counts_of_changed_and_dropped_texts_are_added(make_folder: Make, tmp_path: Path) -> None:
    folders = []
    for name, more in (
        ("a", {"documents_with_replaced_bytes": 2, "dropped_documents_too_long": 5}),
        ("b", {"documents_with_replaced_bytes": 5}),
        ("c", {}),
    ):
        folders.append(make_folder(name, random_docs(ord(name), 9, [name])))
        manifest = read_manifest(folders[-1])
        write_manifest(replace(manifest, counts=manifest.counts | more), folders[-1])
    manifest = merge_folders([str(folder) for folder in folders], tmp_path / "out", 1, quiet)
    assert manifest.counts["documents_with_replaced_bytes"] == 7
    assert manifest.counts["dropped_documents_too_long"] == 5
    assert manifest.counts["dropped_documents_too_short"] == 9  # 3 of each
    assert manifest.counts["documents"] == 27 and manifest.counts["heldout_documents"] == 0
    assert verify_folder(tmp_path / "out") == []
    assert "documents with replaced bytes: 7" in list(inspect_folder(tmp_path / "out"))
