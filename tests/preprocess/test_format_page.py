"""docs/shards.md says enough, and the truth: a reader written from it alone."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers zstd)
import numpy as np

from preprocess.building.build import build_shards
from preprocess.building.encoding import document_hash
from preprocess.building.settings import ShardSettings
from preprocess.corpus.corpus import CorpusSettings
from preprocess.corpus.document import Document
from preprocess.shards import ShardArrays, write_shard

ORDER = ("tokens", "sentence_offsets", "document_offsets", "document_source")
OPTIONAL = ("word_starts", "document_label", "second_offsets")
TYPES = {"uint8": "|u1", "uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8"}


def test_the_example_runs(shard_folder: Path, repository: Path) -> None:
    page = (repository / "docs" / "shards.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    script = code[1] + "\nprint(first_document.tolist())\n"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=shard_folder.parent, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)


def content_digest_of(path: Path) -> str:
    """Return the digest of a shard's datasets as the page tells it."""
    content = hashlib.sha256()
    with h5py.File(path, "r", locking=False) as shard:
        for name in ORDER + OPTIONAL:
            if name in shard or name in ORDER:
                array = shard[name][:]
                content.update(f"{name} {TYPES[str(array.dtype)]} {len(array)}\n".encode() + array.tobytes())
    return content.hexdigest()


def test_the_table_lists_the_datasets_in_the_order_of_the_digest(repository: Path) -> None:
    page = (repository / "docs" / "shards.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| u?int", page, re.MULTILINE)
    assert rows == [*ORDER, *OPTIONAL]


def test_digest_of_a_shard_with_all_datasets(tmp_path: Path) -> None:
    offsets = np.array([0, 4, 9])
    arrays = ShardArrays(
        np.arange(9, dtype=np.uint16),
        offsets,
        offsets,
        np.zeros(2, np.uint16),
        np.arange(9) % 2 == 0,
        np.array([1, -1], np.int32),
        np.array([4, 4]),
    )
    entry = write_shard(tmp_path / "x.h5", arrays, "0" * 64)
    assert content_digest_of(tmp_path / "x.h5") == entry.content_sha256


def test_digests_are_as_described(shard_folder: Path) -> None:
    for folder in (shard_folder, shard_folder / "heldout"):
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for entry in manifest["shards"]:
            data = (folder / entry["file"]).read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry["sha256"], entry["num_bytes"])
            assert content_digest_of(folder / entry["file"]) == entry["content_sha256"]
        digest = manifest.pop("digest")
        canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(canonical.encode()).hexdigest() == digest


def test_hash_of_a_document() -> None:
    expected = int.from_bytes(hashlib.blake2b(b"one\ntwo", digest_size=8).digest(), "big")
    assert document_hash(Document("one\ntwo", 0)) == document_hash(Document("one\ntwo", 3, True, label="x")) == expected
    expected = int.from_bytes(hashlib.blake2b("a\té".encode(), digest_size=8).digest(), "big")
    assert document_hash(Document("a", 0, second="é")) == expected


def test_every_count_and_key_is_on_the_page(tmp_path: Path, vocabulary_file: Path, repository: Path) -> None:
    page = (repository / "docs" / "shards.md").read_text(encoding="utf-8")
    (tmp_path / "a.txt").write_bytes(b"the cat\xff\n\nthe token\n")
    settings = ShardSettings(
        corpus=CorpusSettings(arguments=[str(tmp_path / "a.txt")], invalid_utf8="replace"),
        tokenizer=str(vocabulary_file),
        output=str(tmp_path / "shards"),
        heldout=0,
    )
    build_shards(settings, say=lambda line: None)
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_bytes())
    assert manifest["counts"]["documents_with_replaced_bytes"] == 1
    names = {*manifest, *manifest["counts"], *manifest["sources"][0], *manifest["shards"][0], *manifest["tokenizer"]}
    assert {name for name in names if f"`{name.removeprefix('heldout_')}`" not in page} == set()
