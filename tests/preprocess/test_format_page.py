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

from preprocess.building.encoding import document_hash

ORDER = ("tokens", "sentence_offsets", "document_offsets", "document_source")
TYPES = {"uint16": "<u2", "uint32": "<u4", "int64": "<i8"}


def test_the_example_runs(shard_folder: Path, repository: Path) -> None:
    page = (repository / "docs" / "shards.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    script = code[1] + "\nprint(first_document.tolist())\n"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=shard_folder.parent, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)


def test_digests_are_as_described(shard_folder: Path) -> None:
    for folder in (shard_folder, shard_folder / "heldout"):
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for entry in manifest["shards"]:
            data = (folder / entry["file"]).read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry["sha256"], entry["num_bytes"])
            content = hashlib.sha256()
            with h5py.File(folder / entry["file"], "r", locking=False) as shard:
                for name in ORDER:
                    array = shard[name][:]
                    content.update(f"{name} {TYPES[str(array.dtype)]} {len(array)}\n".encode() + array.tobytes())
            assert content.hexdigest() == entry["content_sha256"]
        digest = manifest.pop("digest")
        canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(canonical.encode()).hexdigest() == digest


def test_hash_of_a_document() -> None:
    expected = int.from_bytes(hashlib.blake2b(b"one\ntwo", digest_size=8).digest(), "big")
    assert document_hash(b"one\ntwo") == document_hash(b"one\r\ntwo\r\n \n") == expected
