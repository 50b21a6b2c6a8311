"""The manifest guards itself and its shards."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from preprocess.folders.verification import verify_folder
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


DELETED = object()
BAD_FIELDS = [
    ("tokenizer", [], r"tokenizer is \[\], and an object"),
    ("tokenizer.vocab_size", 10**12, r"tokenizer.vocab_size is 1000000000000, and a whole number from 1 to 2\^32"),
    ("tokenizer.vocab_size", 0, "tokenizer.vocab_size is 0"),
    ("tokenizer.vocab_size", "x", "tokenizer.vocab_size is 'x'"),
    ("tokenizer.digest", DELETED, "tokenizer has no field 'digest'"),
    ("tokenizer.digest", "A" * 64, "tokenizer.digest is 'AAA.*64 hexadecimal digits"),
    ("tokenizer.type", None, "tokenizer.type is None, and a text"),
    ("tokenizer.files", 3, "tokenizer.files is 3, and an object"),
    ("tokenizer.files", {"../x": "0" * 64}, "tokenizer.files is '../x', and it is not a file of its folder"),
    ("tokenizer.files", {"x\n": "0" * 64}, "not a file of its folder"),
    ("tokenizer.files", {"x": None}, r"tokenizer.files\['x'\] is None, and 64 hexadecimal"),
    ("settings", [], r"settings is \[\], and an object"),
    ("settings.compression", [1], r"settings.compression is \[1\], and a text"),
    ("settings.heldout", "x", "settings.heldout is 'x', and a share from 0 to below 1"),
    ("settings.heldout", float("nan"), "settings.heldout is nan"),
    ("settings.heldout", [0.1, 1], r"settings.heldout\[1\] is 1"),
    ("settings.versions", [], r"settings.versions is \[\], and an object"),
    ("settings.versions", {"h5py": 3}, "settings.versions.h5py is 3, and a text"),
    ("settings.input_sha256", "0", "settings.input_sha256 is '0'"),
    ("counts", 5, "counts is 5, and an object"),
    ("counts.tokens", -1, r"counts.tokens is -1, and a whole number from 0 to 2\^48"),
    ("counts.tokens", "1", "counts.tokens is '1'"),
    ("counts.tokens", 1.0, "counts.tokens is 1.0"),
    ("labels", 5, "labels is 5, and a list"),
    ("labels", [5], r"labels\[0\] is 5, and a text"),
    ("labels", ["a", "a"], "no name twice"),
    ("labels", [], "at least one name"),
    ("sources", {}, "sources is {}, and a list"),
    ("sources", [3], r"sources\[0\] is 3, and an object"),
    ("sources.0.name", 3, r"sources\[0\].name is 3, and a text"),
    ("sources.0.layout", {}, r"sources\[0\].layout is {}, and a text"),
    ("sources.0.num_tokens", True, r"sources\[0\].num_tokens is True"),
    ("sources.0.files", None, r"sources\[0\].files is None, and a list"),
    ("sources.0.files", [{}], r"sources\[0\].files\[0\] has no field 'name'"),
    ("sources.0.files.0.num_bytes", -1, r"sources\[0\].files\[0\].num_bytes is -1"),
    ("sources.0.files.0.more", 1, r"sources\[0\].files\[0\] has the unknown field 'more'"),
    ("shards", None, "shards is None, and a list"),
    ("shards.0", [], r"shards\[0\] is \[\], and an object"),
    ("shards.0.file", 3, r"shards\[0\].file is 3, and a text"),
    ("shards.0.file", "shard-00001.h5", "shards: file is 'shard-00001.h5', and another has the same"),
    ("shards.0.num_tokens", "x", r"shards\[0\].num_tokens is 'x'"),
    ("shards.0.num_tokens", 10**30, r"shards\[0\].num_tokens is 1000"),
    ("shards.0.num_documents", 0, r"shards\[0\].num_documents is 0, and a whole number from 1"),
    ("shards.0.sha256", 3, r"shards\[0\].sha256 is 3, and 64 hexadecimal digits"),
    ("shards.0.num_bytes", DELETED, r"shards\[0\] has no field 'num_bytes'"),
    ("counts", DELETED, "the manifest has no field 'counts'"),
    ("more", 1, "the manifest has the unknown field 'more'"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_FIELDS)
def test_every_field_is_checked(shard_folder: Path, field: str, value: object, message: str) -> None:
    payload = json.loads((shard_folder / MANIFEST_NAME).read_bytes())
    del payload["digest"]
    *parents, last = field.split(".")
    place = payload
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    if value is DELETED:
        del place[last]
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    (shard_folder / MANIFEST_NAME).write_bytes(_render(payload))
    with pytest.raises(ValueError, match=f"manifest.json is no manifest of this format: .*{message}"):
        read_manifest(shard_folder)
    (problem,) = [text for text in verify_folder(shard_folder) if "no manifest of this format" in text]
    assert re.search(message, problem)


@pytest.mark.parametrize("version", ["1", True, 1.0, None, [1]])
def test_a_format_version_that_is_no_number(shard_folder: Path, version: object) -> None:
    payload = json.loads((shard_folder / MANIFEST_NAME).read_bytes())
    del payload["digest"]
    (shard_folder / MANIFEST_NAME).write_bytes(_render(payload | {"format_version": version}))
    with pytest.raises(ValueError, match=r"manifest.json has format version .*, and this program reads 1"):
        read_manifest(shard_folder)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"3", b'{"digest": 1}', b'{"format_version": 1}', b"[" * 100_000, b"\xff"]
)
def test_no_json_object(shard_folder: Path, data: bytes) -> None:
    (shard_folder / MANIFEST_NAME).write_bytes(data)
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        read_manifest(shard_folder)


def test_texts_that_are_not_unicode(shard_folder: Path) -> None:
    text = (shard_folder / MANIFEST_NAME).read_text().replace('"wordpiece"', '"\\ud800"')
    (shard_folder / MANIFEST_NAME).write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        read_manifest(shard_folder)


def test_settings_of_other_commands_are_allowed(shard_folder: Path) -> None:
    manifest = read_manifest(shard_folder)
    more = {"merged_from": ["0" * 64], "split_from": "x", "split_part": "1/2", "imported": "nvidia_hdf5"}
    write_manifest(
        dataclasses.replace(manifest, settings=manifest.settings | more | {"heldout": [0.1, [0, 0.2]]}), shard_folder
    )
    assert read_manifest(shard_folder).settings["heldout"] == [0.1, [0, 0.2]]
