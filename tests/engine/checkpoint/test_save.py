"""Saving on several ranks: what comes back is what was written, and a failure on one is an error on all."""

from __future__ import annotations

import errno
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from engine.checkpoint import save
from engine.checkpoint.files import (
    CheckpointManifest,
    FragmentReader,
    label,
    read_manifest,
    verify_files,
    write_tensors,
)
from engine.checkpoint.reports import Report, publish_report
from engine.checkpoint.run_folder import RunFolder
from engine.checkpoint.save import CheckpointWriter
from engine.checkpoint.state import rank_share, refuse_other_model
from engine.config.cli import SharedError
from engine.train.distributed import COLLECTIVE_TIMEOUT, barrier, gather_objects, global_rank, raise_together
from tests.engine.ranks import run_ranks

LATE = 4.0  # seconds; longer than a rank may take in these tests
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


def mistake(*ignored: Any) -> Any:
    raise KeyError("a mistake of ours")


def begin(writer: CheckpointWriter, step: int) -> None:
    """Save as an engine would be saved, up to the thread that writes."""
    token = writer._prepare(step)
    assert token is not None
    manifest = CheckpointManifest(step, SHAPES, {"step": step}, {"step": step}, {})
    writer._begin(token, tensors(global_rank()), manifest)


def outcome(work: Callable[[], object]) -> str:
    """What an error says, on a rank that then goes on with the others."""
    text = "saved"
    try:
        work()
    except (SharedError, KeyError) as error:
        text = f"{type(error).__name__}: {error}"
    barrier()
    return text


def save_on_ranks(folder: Path) -> dict[str, Any]:
    """Save once well, then with a failure of one rank in each part of the work."""
    run, rank = RunFolder(str(folder / "run")), global_rank()
    results = {}

    def attempt(name: str, step: int, exporter: save.ModelExporter = export, **replaced: Any) -> None:
        writer = CheckpointWriter(run, exporter)
        with pytest.MonkeyPatch.context() as patch:
            for attribute, value in replaced.items():
                patch.setattr(save, attribute, value)
            results[name] = outcome(lambda: (begin(writer, step), writer.wait()))
            barrier()

    attempt("well", 1)
    attempt("tensors of rank 1", 2, **({"write_tensors": no_space} if rank == 1 else {}))
    attempt("mistake of rank 1", 2, **({"write_tensors": mistake} if rank == 1 else {}))
    attempt("export", 3, no_space)
    attempt("weights of the export", 3, no_space_for_tensors)
    attempt("mistake in the export", 3, mistake)
    attempt("folder", 4, _make_folder=no_space)
    silent = {"publish_report": lambda *ignored: None} if rank == 1 else {"REPORT_TIMEOUT": 2}
    attempt("silence of rank 1", 4, **silent)
    for hung in (0, 1):
        write = write_much_later if rank == hung else save.write_tensors
        attempt(f"disk of rank {hung}", 4, write_tensors=write, REPORT_TIMEOUT=2, SECONDS_TO_CANCEL=0.1)
    seen, run = run, RunFolder(str(folder / f"run of {rank}"))
    attempt("folders of their own", 4)
    run = seen
    if rank == 0:
        leave_half_a_save(run.temporary_folder(2, "killed"))
        run.step_folder(2).mkdir()
        (run.step_folder(2) / "rank-00000.safetensors").write_bytes(b"copied in part")
    barrier()
    attempt("again", 2)
    time.sleep(LATE)  # what a disk did much later changes nothing
    return results


def write_much_later(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    time.sleep(LATE)
    return write_tensors(path, tensors)


def leave_half_a_save(folder: Path) -> None:
    """What a run that was killed leaves: a whole report of files that are not those of the next save."""
    folder.mkdir(parents=True)
    (folder / "rank-00001.safetensors").write_bytes(b"torn")
    publish_report(folder, 1, Report("token of the killed run", {"rank-00001.safetensors": {"bytes": 4}}))


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
    files = ["rank-00000.safetensors", "rank-00001.safetensors"]
    assert sorted(manifest.files) == files
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model", *files]
    assert (manifest.step, manifest.shapes, manifest.trainer) == (1, SHAPES, {"step": 1})
    full = FragmentReader([folder / name for name in manifest.files]).full("weights", SHAPES)
    assert torch.equal(full["w"], torch.arange(15.0).view(5, 3)) and torch.equal(full["b"], torch.arange(3.0))
    assert (folder / "model" / "sums.txt").read_text() == "w 105 b 3"


@pytest.mark.parametrize("part", ["tensors of rank 1", "export", "weights of the export", "folder"])
def test_failure_on_one_rank_is_an_error_on_all(part, saved):
    _, results = saved
    first, second = (result[part] for result in results)
    assert first == second
    assert first.startswith("SharedError: rank 1: ") == (part == "tensors of rank 1")
    assert "could not be written: No space left on device (" in first and "MiB free); make room" in first
    assert first.count("could not be written") == 1
    assert first.endswith("Earlier checkpoints are whole; the same command goes on from the newest")


def test_mistake_of_ours_keeps_its_own_error(saved):
    """On the rank that made it, so that its traceback is seen; the others are told."""
    _, results = saved
    for part, maker in (("mistake of rank 1", 1), ("mistake in the export", 0)):
        assert results[maker][part] == "KeyError: 'a mistake of ours'"
        told = results[1 - maker][part]
        assert told.startswith("SharedError: ") and "could not be written: KeyError('a mistake of ours')." in told


def test_rank_that_says_nothing_is_named(saved):
    _, results = saved
    for result in results:
        assert "could not be written: no word of rank 1 in 2 s. Earlier" in result["silence of rank 1"]


@pytest.mark.parametrize("hung", [0, 1])
def test_rank_whose_disk_hangs_is_named_and_holds_nobody_for_good(hung, saved):
    _, results = saved
    for result in results:
        text = result[f"disk of rank {hung}"]
        assert text.startswith("SharedError: rank 1: the checkpoint " if hung else "SharedError: the checkpoint ")
        assert "could not be written: its disk took more than 2 s. Earlier" in text


def test_rank_that_does_not_see_the_folder_says_so(saved):
    _, results = saved
    for result in results:
        text = result["folders of their own"]
        assert text.startswith("SharedError: rank 1: the checkpoint ")
        assert f"its folder is not on {platform.node()} (all hosts must share the run folder)" in text


def test_nothing_is_left_of_a_failure_and_the_next_save_works(saved):
    run, results = saved
    assert [result["again"] for result in results] == ["saved", "saved"]
    names = ["damaged-step-2", "step-1", "step-2"]  # the copy that was no checkpoint is nobody's to delete
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names
    assert os.readlink(run / "model") == "checkpoints/step-2/model"


class PlainEngine:
    """DeepSpeed's engine at stage 0 in fp32, as far as a snapshot looks at it."""

    def __init__(self, model: nn.Module) -> None:
        self.optimizer = self.basic_optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        self.model = model

    def step(self) -> None:
        """Any step that changes everything."""
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()


def save_beside_training(folder: Path) -> dict[str, Any]:
    """Hold the threads back, train on, and look when a checkpoint appears and what is in it."""
    torch.manual_seed(1)
    model = nn.Linear(5, 3)
    engine, writer = PlainEngine(model), CheckpointWriter(RunFolder(str(folder / "run")), export)
    writer.save_initial(model, {})
    released, write = threading.Event(), save.write_tensors

    def write_later(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        released.wait()
        return write(path, tensors)

    save.write_tensors = write_later
    expected: dict[str, Any] = {}
    for step in (1, 2):
        engine.step()
        expected[str(step)] = [
            model.weight.flatten().tolist(),
            engine.optimizer.state[model.weight]["exp_avg"].tolist(),
        ]
        if step == 1:
            writer.save(engine, model, 1, {})
            addresses = sorted(tensor.data_ptr() for tensor in writer._buffers.values())
            engine.step()
            raise_together(writer.problem())
            expected["early"] = writer.run.steps()
            barrier()
            engine.step()
            released.set()
    writer.save(engine, model, 2, {})  # waits for the first
    writer.wait()
    writer.wait()
    writer.save(engine, model, 2, {})  # there already
    assert writer._save is None
    assert addresses == sorted(tensor.data_ptr() for tensor in writer._buffers.values())
    return expected


def test_training_goes_on_while_a_thread_writes(tmp_path):
    expected, _ = run_ranks("tests.engine.checkpoint.test_save", "save_beside_training", tmp_path)
    run = RunFolder(str(tmp_path / "run"))
    assert expected["early"] == [0] and run.steps() == [0, 1, 2]
    for step in (1, 2):
        folder = run.step_folder(step)
        reader = FragmentReader(sorted(folder.glob("*.safetensors")))
        weights, average = expected[str(step)]
        assert reader.read("weights", "weight", 0, 15).tolist() == weights
        assert reader.read("exp_avg", "weight", 0, 15).view(3, 5).tolist() == average


def fail_beside_training(folder: Path) -> list[str]:
    """A failure of rank 1's thread is known long before the ranks wait for it."""
    writer = CheckpointWriter(RunFolder(str(folder / "run")), export)
    if global_rank() == 1:
        save.write_tensors = no_space
    begin(writer, 1)
    deadline = time.monotonic() + 60
    while not any(gather_objects(writer.problem())):
        assert time.monotonic() < deadline
    known = outcome(lambda: raise_together(writer.problem()))
    return [known, outcome(writer.wait), outcome(writer.wait), str(writer.problem())]


def save_with_what_fails_beside_it(folder: Path) -> list[object]:
    """A model card and what follows a checkpoint go wrong; the checkpoint counts."""
    writer = CheckpointWriter(RunFolder(str(folder / "run")), export, describe=mistake)
    writer.published = mistake
    found = outcome(lambda: (begin(writer, 1), writer.wait()))
    return [found, writer.run.steps()]


def test_a_model_card_or_what_follows_that_fails_is_a_note(tmp_path):
    found = run_ranks("tests.engine.checkpoint.test_save", "save_with_what_fails_beside_it", tmp_path)
    assert found == [["saved", [1]]] * 2


def test_the_notes_of_what_fails_beside_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    writer = CheckpointWriter(RunFolder(str(tmp_path)), export, describe=mistake)
    writer.published = mistake
    shapes = {"w": [5, 3]}
    folder = tmp_path / "checkpoints" / ".partial"
    folder.mkdir(parents=True)
    manifest = CheckpointManifest(1, shapes, {}, {}, {})
    one = save.Save(folder, "token", {label("weights", "w", 0): torch.zeros(15)}, manifest)
    writer._write(one)
    assert one.problem is None and writer.run.steps() == [1]
    said = capsys.readouterr().err
    assert "note: the model card of step 1 could not be made: KeyError('a mistake of ours')" in said
    assert "note: what follows the checkpoint of step 1 failed: KeyError('a mistake of ours')" in said


def export_beyond_the_limit_of_collectives(folder: Path) -> str:
    """Rank 0 exports for longer than a collective may take."""
    limit = 3.0
    barrier()
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=limit))

    def export_slowly(target: Path, weights: dict[str, Tensor]) -> None:
        time.sleep(1.5 * limit)
        export(target, weights)

    writer = CheckpointWriter(RunFolder(str(folder / "run")), export_slowly)
    return outcome(lambda: (begin(writer, 1), writer.wait()))


def test_export_may_outlast_a_collective(tmp_path):
    module = "tests.engine.checkpoint.test_save"
    assert run_ranks(module, "export_beyond_the_limit_of_collectives", tmp_path) == ["saved", "saved"]


def test_a_hung_disk_is_named_before_the_others_give_up():
    assert 0.75 * COLLECTIVE_TIMEOUT.total_seconds() > save.REPORT_TIMEOUT


def test_failure_is_known_before_the_wait(tmp_path):
    for known, first, then, problem in run_ranks("tests.engine.checkpoint.test_save", "fail_beside_training", tmp_path):
        assert known == first and "SharedError: rank 1: the checkpoint" in known and "No space left" in known
        assert then == "saved" and problem == "None"  # told once
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


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
