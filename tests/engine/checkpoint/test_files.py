"""Files of a checkpoint: any range comes back, and what is damaged, foreign or missing is named."""

from __future__ import annotations

import errno
import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from engine.checkpoint.files import (
    FORMAT,
    CheckpointManifest,
    FragmentReader,
    as_os_error,
    label,
    rank_file,
    read_manifest,
    sha256_of_file,
    verify_files,
    write_manifest,
    write_tensors,
)

SHAPES = {"a.weight": [7, 11], "a.bias": [11], "scalar": [1]}


def whole_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def write_cut(folder: Path, cuts: dict[str, list[int]], num_files: int = 3) -> list[Path]:
    """Write the tensors cut at these places, the pieces dealt to several files in turn."""
    contents: list[dict[str, torch.Tensor]] = [{} for _ in range(num_files)]
    turn = 0
    for name, tensor in whole_tensors().items():
        flat = tensor.view(-1)
        places = [0, *cuts.get(name, []), flat.numel()]
        for first, last in itertools.pairwise(places):
            contents[turn % num_files][label("weights", name, first)] = flat[first:last].clone()
            contents[turn % num_files][label("exp_avg", name, first)] = -flat[first:last].clone()
            turn += 1
    files = [folder / rank_file(rank) for rank in range(num_files)]
    for file, content in zip(files, contents, strict=True):
        write_tensors(file, content)
    return files


def test_names():
    assert label("exp_avg", "encoder.layers.0.mlp.up.weight", 17) == "exp_avg|encoder.layers.0.mlp.up.weight|17"
    assert [rank_file(rank) for rank in (0, 12345)] == ["rank-00000.safetensors", "rank-12345.safetensors"]


@given(
    cuts=st.sets(st.integers(1, 76), max_size=9),
    offset=st.integers(0, 76),
    size=st.integers(1, 77),
    files=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_any_range_of_any_cut(cuts, offset, size, files, tmp_path_factory):
    size = min(size, 77 - offset)
    reader = FragmentReader(write_cut(tmp_path_factory.mktemp("cut"), {"a.weight": sorted(cuts)}, files))
    expected = whole_tensors()["a.weight"].view(-1)[offset : offset + size]
    assert torch.equal(reader.read("weights", "a.weight", offset, size), expected)
    assert torch.equal(reader.read("exp_avg", "a.weight", offset, size), -expected)
    assert reader.kinds() == {"weights", "exp_avg"}


def test_whole_parameters(tmp_path):
    reader = FragmentReader(write_cut(tmp_path, {"a.weight": [1, 30, 31, 76], "a.bias": [5]}))
    full = reader.full("weights", SHAPES)
    assert full.keys() == SHAPES.keys()
    for name, tensor in whole_tensors().items():
        assert full[name].dtype == torch.float32 and torch.equal(full[name], tensor)


def test_range_that_is_not_there(tmp_path):
    files = write_cut(tmp_path, {"a.weight": [30, 60]})
    reader = FragmentReader([file for file in files if file != files[1]])  # elements 30 to 60 were there
    assert torch.equal(reader.read("weights", "a.weight", 0, 30), whole_tensors()["a.weight"].view(-1)[:30])
    with pytest.raises(ValueError, match=r"the checkpoint holds 47 of 77 elements of weights of a\.weight"):
        reader.full("weights", {"a.weight": SHAPES["a.weight"]})
    with pytest.raises(ValueError, match=r"holds 5 of 10 elements of weights of a\.weight"):
        reader.read("weights", "a.weight", 25, 10)
    with pytest.raises(ValueError, match="holds 0 of 3 elements of exp_avg_sq of scalar"):
        reader.read("exp_avg_sq", "scalar", 0, 3)
    with pytest.raises(ValueError, match="holds 1 of 2 elements of weights of scalar"):
        FragmentReader(files).read("weights", "scalar", 0, 2)


def test_foreign_files(tmp_path):
    foreign = tmp_path / "model.safetensors"
    save_file({"bert.embeddings.weight": torch.zeros(2)}, foreign)
    with pytest.raises(ValueError, match=r"model\.safetensors is no file of a checkpoint"):
        FragmentReader([foreign])
    foreign.write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match=r"model\.safetensors is no file of a checkpoint"):
        FragmentReader([foreign])
    with pytest.raises(ValueError, match=r"none\.safetensors is no file of a checkpoint"):
        FragmentReader([tmp_path / "none.safetensors"])


def test_file_that_cannot_be_written(tmp_path):
    with pytest.raises(SafetensorError) as caught:
        write_tensors(tmp_path / "none" / "x.safetensors", {"a": torch.zeros(2)})
    error = as_os_error(caught.value)
    assert (error.errno, error.strerror) == (errno.ENOENT, "No such file or directory")
    assert as_os_error(error) is error
    with pytest.raises(SafetensorError, match="a mistake of ours"):
        as_os_error(SafetensorError("a mistake of ours"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    (file,) = write_cut(tmp_path, {}, 1)
    entry = {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
    write_manifest(
        tmp_path, CheckpointManifest(4, SHAPES, {"name": "AdamW", "step": 4}, {"step": 4}, {file.name: entry})
    )
    return tmp_path


def test_manifest_round_trip(folder):
    manifest = read_manifest(folder)
    assert (manifest.step, manifest.shapes, manifest.format) == (4, SHAPES, FORMAT)
    assert manifest.trainer == {"step": 4} and manifest.optimizer == {"name": "AdamW", "step": 4}
    verify_files(folder, manifest)


def change_manifest(folder: Path, **changes: object) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_manifest_of_another_format(folder):
    change_manifest(folder, format=99)
    with pytest.raises(ValueError, match=f"checkpoint {folder} has format 99, this version reads format 1"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"format": 1}', b"\xff\xfe"])
def test_unreadable_manifest(content, folder):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"has no readable manifest\.json"):
        read_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has no readable manifest\.json"):
        read_manifest(folder)


def test_manifest_with_unknown_keys(folder):
    change_manifest(folder, colour="red")
    with pytest.raises(ValueError, match=r"has no readable manifest\.json"):
        read_manifest(folder)


def test_file_that_was_cut_or_is_gone(folder):
    file = folder / rank_file(0)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match=rf"rank-00000\.safetensors has {size - 3} bytes instead of {size}"):
        read_manifest(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"rank-00000\.safetensors is missing"):
        read_manifest(folder)


def test_every_flipped_bit_is_found(folder):
    manifest = read_manifest(folder)
    file = folder / rank_file(0)
    content = file.read_bytes()
    for place in (0, 9, len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        file.write_bytes(flipped)
        read_manifest(folder)  # the size is right
        with pytest.raises(ValueError, match=r"rank-00000\.safetensors is damaged \(its sha256 differs"):
            verify_files(folder, manifest)
