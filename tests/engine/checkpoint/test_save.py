"""Saving on several ranks: what comes back is what was written, and a failure on one is an error on all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from engine.checkpoint import save
from engine.checkpoint.files import FragmentReader, label, read_manifest, verify_files
from engine.checkpoint.run_folder import RunFolder
from engine.checkpoint.state import rank_share, refuse_other_model
from engine.config.cli import SharedError
from engine.train.distributed import barrier, global_rank
from tests.engine.ranks import run_ranks

SHAPES = {"w": [5, 3], "b": [3]}


def export(folder: Path, weights: dict[str, Tensor]) -> None:
    """A model folder of one file."""
    folder.mkdir()
    (folder / "sums.txt").write_text(" ".join(f"{name} {tensor.sum():g}" for name, tensor in weights.items()))


def tensors(rank: int, ranks: int = 2) -> dict[str, Tensor]:
    """This rank's share of two parameters that count up from 0."""
    shares = {name: rank_share(int(torch.Size(shape).numel()), rank, ranks) for name, shape in SHAPES.items()}
    return {label("weights", name, a): torch.arange(a, b, dtype=torch.float32) for name, (a, b) in shares.items()}


def no_space(*ignored: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_for_tensors(folder: Path, weights: dict[str, Tensor]) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def save_on_ranks(folder: Path) -> dict[str, Any]:
    """Save once well, then with a failure of one rank in each part of the work."""
    run, rank = RunFolder(str(folder / "run")), global_rank()
    writer = save.CheckpointWriter(run, export)

    def attempt(step: int, writer: save.CheckpointWriter = writer) -> str:
        try:
            writer._save(tensors(rank), SHAPES, step, {"step": step}, {"step": step})
            text = "saved"
        except SharedError as error:
            text = str(error)
        barrier()
        return text

    results = {"well": attempt(1)}
    write = save.write_tensors
    if rank == 1:
        save.write_tensors = no_space
    results["tensors of rank 1"] = attempt(2)
    save.write_tensors = write
    results["export"] = attempt(3, save.CheckpointWriter(run, no_space))
    results["weights of the export"] = attempt(3, save.CheckpointWriter(run, no_space_for_tensors))
    save._fresh_folder, fresh = no_space, save._fresh_folder
    results["folder"] = attempt(4)
    save._fresh_folder = fresh
    results["again"] = attempt(2)
    return results


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("saved")
    return folder / "run", run_ranks("tests.engine.checkpoint.test_save", "save_on_ranks", folder)


def test_two_ranks_write_one_checkpoint(saved):
    run, results = saved
    assert [result["well"] for result in results] == ["saved", "saved"]
    folder = run / "checkpoints" / "step-1"
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    assert manifest.files.keys() == {"rank-00000.safetensors", "rank-00001.safetensors"}
    assert (manifest.step, manifest.shapes, manifest.trainer) == (1, SHAPES, {"step": 1})
    full = FragmentReader([folder / name for name in manifest.files]).full("weights", SHAPES)
    assert torch.equal(full["w"], torch.arange(15.0).view(5, 3)) and torch.equal(full["b"], torch.arange(3.0))
    assert (folder / "model" / "sums.txt").read_text() == "w 105 b 3"


@pytest.mark.parametrize("part", ["tensors of rank 1", "export", "weights of the export", "folder"])
def test_failure_on_one_rank_is_an_error_on_all(part, saved):
    _, results = saved
    first, second = (result[part] for result in results)
    assert first == second
    assert first.startswith("rank 1: ") == (part == "tensors of rank 1")
    assert "could not be written: No space left on device (" in first and "MiB free); make room" in first
    assert first.count("could not be written") == 1
    assert first.endswith("Earlier checkpoints are whole; the same command goes on from the newest")


def test_nothing_is_left_of_a_failure_and_the_next_save_works(saved):
    run, results = saved
    assert [result["again"] for result in results] == ["saved", "saved"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-1", "step-2"]
    assert os.readlink(run / "model") == "checkpoints/step-2/model"


def test_explanation_without_a_full_disk(tmp_path):
    text = save.explain_write_error(PermissionError(errno.EACCES, "Permission denied"), tmp_path / "a" / "b")
    assert text.startswith(f"the checkpoint {tmp_path / 'a' / 'b'} could not be written: Permission denied. Earlier")


@pytest.mark.parametrize("size", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_shares_cover_everything_once(size, ranks):
    shares = [rank_share(size, rank, ranks) for rank in range(ranks)]
    assert [element for first, last in shares for element in range(first, last)] == list(range(size))
    assert max(b - a for a, b in shares) - min(b - a for a, b in shares) <= 1


def test_checkpoint_of_another_model():
    refuse_other_model(SHAPES, dict(SHAPES), "x")
    with pytest.raises(ValueError) as caught:
        refuse_other_model({"a": [1], "b": [2]}, {"b": [3], "c": [4]}, "checkpoint x")
    assert str(caught.value).startswith(
        "checkpoint x is of another model: a: absent there, [1] in this model; b: [3] there, [2] in this model; "
        "c: [4] there, absent in this model. Give the --model it was made with"
    )
    many = {f"p{number}": [1] for number in range(9)}
    with pytest.raises(ValueError, match=r"\(and 5 more\)"):
        refuse_other_model(many, {}, "x")
