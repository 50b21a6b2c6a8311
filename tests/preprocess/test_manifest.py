"""The manifest guards itself and its shards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from preprocess.manifest import MANIFEST_NAME, _render, check_shard, read_manifest, write_manifest


def test_round_trip(shard_folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(shard_folder)
    assert manifest.folder == shard_folder
    (tmp_path / "copy").mkdir()
    write_manifest(manifest, tmp_path / "copy")
    copy = read_manifest(tmp_path / "copy")
    assert copy.digest == manifest.digest
    assert (tmp_path / "copy" / MANIFEST_NAME).read_bytes() == (shard_folder / MANIFEST_NAME).read_bytes()
    assert json.loads((shard_folder / MANIFEST_NAME).read_bytes())["digest"] == manifest.digest


def test_labels(shard_folder: Path) -> None:
    manifest = read_manifest(shard_folder)
    assert manifest.labels == [] and "labels" not in json.loads((shard_folder / MANIFEST_NAME).read_bytes())
    write_manifest(dataclasses.replace(manifest, labels=["neg", "pos"]), shard_folder)
    labelled = read_manifest(shard_folder)
    assert labelled.labels == ["neg", "pos"] and labelled.digest != manifest.digest


def test_holds_nothing_of_the_machine(shard_folder: Path) -> None:
    text = (shard_folder / MANIFEST_NAME).read_text()
    assert str(shard_folder.parent) not in text
    assert "workers" not in text


def test_counts_add_up(shard_folder: Path) -> None:
    main, heldout = read_manifest(shard_folder), read_manifest(shard_folder / "heldout")
    for name in ("documents", "sentences", "tokens"):
        for manifest in (main, heldout):
            assert manifest.counts[name] == sum(getattr(shard, f"num_{name}") for shard in manifest.shards)
            assert manifest.counts[name] == sum(getattr(source, f"num_{name}") for source in manifest.sources)
        assert main.counts[f"heldout_{name}"] == heldout.counts[name] > 0
    assert main.counts["documents"] + heldout.counts["documents"] == 120 + 150


def test_every_flipped_bit_is_found(shard_folder: Path) -> None:
    path = shard_folder / MANIFEST_NAME
    data = path.read_bytes()
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"manifest.json (is damaged|has format version)"):
            read_manifest(shard_folder)


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest.json in .*python -m preprocess shards --corpus"):
        read_manifest(tmp_path)


def test_other_format_version(shard_folder: Path) -> None:
    payload = json.loads((shard_folder / MANIFEST_NAME).read_bytes())
    del payload["digest"]
    payload["format_version"] = 2
    (shard_folder / MANIFEST_NAME).write_bytes(_render(payload))
    with pytest.raises(ValueError, match="has format version 2, and this program reads 1"):
        read_manifest(shard_folder)


@pytest.mark.parametrize("name", ["../x.h5", "/etc/passwd", "", ".."])
def test_shards_outside_the_folder_are_refused(shard_folder: Path, name: str) -> None:
    payload = json.loads((shard_folder / MANIFEST_NAME).read_bytes())
    del payload["digest"]
    payload["shards"][0]["file"] = name
    (shard_folder / MANIFEST_NAME).write_bytes(_render(payload))
    with pytest.raises(ValueError, match="not a file of its folder"):
        read_manifest(shard_folder)


def test_unknown_fields_are_refused(shard_folder: Path) -> None:
    payload = json.loads((shard_folder / MANIFEST_NAME).read_bytes())
    del payload["digest"]
    payload["shards"][0]["more"] = 1
    (shard_folder / MANIFEST_NAME).write_bytes(_render(payload))
    with pytest.raises(ValueError, match="no manifest of this format"):
        read_manifest(shard_folder)


def test_check_shard(shard_folder: Path) -> None:
    manifest = read_manifest(shard_folder)
    entry = manifest.shards[0]
    check_shard(shard_folder, entry)
    path = shard_folder / entry.file
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=rf"{entry.file} has {entry.num_bytes - 1:,} bytes, and the manifest says"):
        check_shard(shard_folder, entry)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{entry.file} is damaged: its sha256 differs"):
        check_shard(shard_folder, entry)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{entry.file} is missing, and the manifest lists it"):
        check_shard(shard_folder, entry)
