"""The benchmark of whole models: its text, its sides, and small runs of it."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import models
from benchmarks.model_cases import ON_CPU, Case, filled_to, make_objective, make_rows, on_all_tokens, padded
from benchmarks.model_process import Process, SideFailedError
from benchmarks.model_sides import Side, compiled_loss, transformers_model
from benchmarks.model_worker import Worker, largest
from engine.models.model import build_model
from kernels import dispatch
from tests import commands

SCRIPT = commands.REPOSITORY / "benchmarks" / "models.py"
TINY = {name: Case(name, 32, 4, 3001) for name in ("bert-tiny", "gpt2-tiny")}


def batch_of(case: Case, text: str = "half") -> Any:
    objective, arch = make_objective(case)
    rows = make_rows(case, text, 1, objective.sequence_layout.per_sequence, together=True)[0]
    return objective, arch, objective.collate(rows)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("text", ["full", "half"])
def test_text_fills_rows_or_half_of_them(text: str, together: bool) -> None:
    case = Case("bert-tiny", 64, 6, 3001)
    objective, _ = make_objective(case)
    for rows in make_rows(case, text, 5, 2, together):
        lengths = objective.collate(rows).layout.lengths
        assert len(rows) == 6 and min(lengths) >= 3
        assert sum(lengths) == (6 * 64 if together or text == "full" else 3 * 64)
        assert len(lengths) == (12 if together and text == "half" else 6)


@pytest.mark.parametrize("name", TINY)
def test_a_target_at_each_token_is_the_same_loss(name: str) -> None:
    objective, arch, batch = batch_of(TINY[name])
    model = build_model(arch, objective.make_heads(arch), 1).eval()
    everywhere = on_all_tokens(batch)
    (expected,), (found,) = (objective.losses(model, each).values() for each in (batch, everywhere))
    assert len(everywhere.targets[objective.name].index) == batch.num_tokens > expected.num_targets
    assert found.loss_sum.item() == pytest.approx(expected.loss_sum.item(), rel=1e-5)


def test_padding_behind_causal_sequences_is_the_same_loss() -> None:
    objective, arch, batch = batch_of(TINY["gpt2-tiny"])
    model = build_model(arch, objective.make_heads(arch), 1).eval()
    whole = filled_to(batch, 32)
    assert len(whole.tokens) == 32 * len(batch.layout.lengths) > batch.num_tokens
    (expected,), (found,) = (objective.losses(model, each).values() for each in (batch, whole))
    assert found.loss_sum.item() == pytest.approx(expected.loss_sum.item(), rel=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_transformers_gets_the_same_text(name: str) -> None:
    objective, _, batch = batch_of(TINY[name])
    found = padded(batch, objective.name, 32, torch.device("cpu"))
    start, targets = 0, 0
    wanted = dict(zip(batch.targets[objective.name].index.tolist(), batch.targets[objective.name].labels, strict=True))
    for row, length in enumerate(batch.layout.lengths):
        assert found["input_ids"][row, :length].equal(batch.tokens[start : start + length])
        assert found["attention_mask"][row].tolist() == [1] * length + [0] * (32 - length)
        for place in range(32):
            shifted = place + (objective.name == "lm")  # there the model itself shifts
            label = int(found["labels"][row, shifted]) if shifted < 32 else -100
            inside = place < length and start + place in wanted
            assert label == (int(wanted[start + place]) if inside else -100)
            targets += inside
        start += length
    assert targets == len(wanted)


@pytest.mark.parametrize("name", TINY)
def test_the_loss_in_three_parts_is_that_of_transformers(name: str) -> None:
    objective, arch, batch = batch_of(TINY[name])
    model = transformers_model(TINY[name], replace(arch, num_layers=12)).eval()
    inputs = padded(batch, objective.name, 32, torch.device("cpu"))
    expected = model(**inputs).loss.item()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    loss = compiled_loss(model, backend="aot_eager")(**inputs)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3  # for all layers one
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    started: list[Process] = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def start(**side: Any) -> Process:
        started.append(Process(Side(name="side", **side), Case("bert-tiny", 32, 4, 3001), "cpu", together=True))
        started[-1].answer(300)
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_without_deepspeed_a_plain_loop_trains_alike(process: Any) -> None:
    engine, loop = process(deepspeed=True), process(deepspeed=False)
    ours, plain = (each.ask("prepare", 300) for each in (engine, loop))
    assert (ours["deepspeed"], plain["deepspeed"]) == (True, False)
    assert plain["loss"] == pytest.approx(ours["loss"], rel=5e-4)
    first, second = (each.ask("time", 60, text="half", steps=2) for each in (engine, loop))
    assert first["tokens"] == second["tokens"] == 2 * 4 * 32 and first["sequences"] == 2 * 8
    assert second["loss"] == pytest.approx(first["loss"], rel=5e-4) and second["loss"] < plain["loss"]


def test_what_a_process_cannot_do_is_told(process: Any) -> None:
    worker = process()
    with pytest.raises(SideFailedError, match="time: KeyError: 'half'"):
        worker.ask("time", 60, text="half", steps=1)
    with pytest.raises(SideFailedError, match="prepare: no answer after 0 s"):
        worker.ask("prepare", 0.01)
    worker._process.kill()
    with pytest.raises(SideFailedError, match="the process ended with exit code -9"):
        worker.answer(60)


def prefetching() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_between_turns_no_batches_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "measured", dict)  # a side deletes from it
    side = Side(name="ours", fixed_shapes=True, ahead=True, deepspeed=False)
    worker = Worker(side, Case("bert-tiny", 32, 4, 3001), torch.device("cpu"), together=True)
    in_turn: list[list[str]] = []
    train = worker._train

    def watched(text: str, steps: int) -> list[torch.Tensor]:
        losses = train(text, steps)
        in_turn.append(prefetching())
        return losses

    monkeypatch.setattr(worker, "_train", watched)
    worker.prepare()
    assert in_turn == [["prefetch"], ["prefetch"] * 2] and prefetching() == []
    seen: list[int] = []
    batch = worker._texts["half"].batch
    monkeypatch.setattr(worker._texts["half"], "batch", lambda at, step: seen.append(step.step) or batch(at, step))
    assert worker.time("half", 2)["tokens"] == 2 * 4 * 32
    assert in_turn[2:] == [["prefetch"]] and prefetching() == []
    assert seen[:2] == [3, 4]  # goes on where the last turn ended
    first = len(seen)
    worker.time("half", 1)
    assert seen[first] == 5


def run(tmp_path: Path, *options: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    output = tmp_path / "results.json"
    few = ["--device", "cpu", "--steps", "1", "--rounds", "2", "--side_limit", "280"]
    done = commands.run(SCRIPT, [*few, *options, "--output", output])
    assert done.returncode == 0, done.stdout
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], json.loads(
        output.read_text()
    )


def test_a_small_run(tmp_path: Path) -> None:
    lines, saved = run(tmp_path, "--cases", "bert-tiny", "--rows", "4", "--texts", "half")
    *_, speed, profile = lines
    assert [list(line["sides"]) for line in lines[:2]] == [["ours"], ["ours", "transformers"]]
    assert [result["what"] for result in saved["results"]] == ["speed", "profile"]
    assert saved["machine"]["threads"] == 1 and saved["machine"]["kernels_built_in"] >= 0
    assert speed["machine"] == saved["machine"]
    for name, side in speed["sides"].items():
        assert side["rounds"] == 2 and side["memory_bytes"] > 1e8 and 9 < side["loss"] < math.log(30522) + 0.5
        assert side["seconds_a_step"] > 0 and 0 < side["share_of_matmul"] < 1 and side["mfu"] is None
        sequences = 4 if name == "transformers" else 8  # of two that share a row
        assert side["tokens_per_second"] / side["samples_per_second"] == pytest.approx(64), sequences
    assert set(speed["sides"]["ours, torch's operators"]["kernels"].values()) == {"torch"}
    assert speed["ratios"].keys() == {
        "ours / transformers",
        "ours / ours, torch's operators",
        "ours, torch's operators / transformers",
    }
    assert speed["not_run"] == {} and speed["matmul_tflops"] > 0
    assert len(profile["largest"]) == 10
    assert "aten::mm" in [each["name"] for each in profile["largest"]]
    times = [each["ms"] for each in profile["largest"]]
    assert times == sorted(times, reverse=True) and sum(times) < profile["total_ms"]
    assert sum(each["share"] for each in profile["largest"]) == pytest.approx(sum(times) / profile["total_ms"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_small_run_on_a_gpu(tmp_path: Path) -> None:
    """With and without torch.compile, and the largest kernels of a step."""
    output = tmp_path / "results.json"
    few = ["--device", "cuda", "--cases", "gpt2-tiny", "--texts", "half", "--steps", "2", "--rounds", "2"]
    few += ["--sides", "ours", "ours, comp", "trans", "--output", str(output)]
    done = commands.run(SCRIPT, few, env={"DS_ACCELERATOR": "cuda"}, timeout=400)
    assert done.returncode == 0, done.stdout
    speed, profile = json.loads(output.read_text())["results"]
    assert list(speed["sides"]) == ["ours", "transformers", "ours, compiled"]
    for side in speed["sides"].values():
        assert side["rounds"] == 2 and 9 < side["loss"] < math.log(50257) + 0.5
        assert 2**20 < side["memory_bytes"] < torch.cuda.get_device_properties(0).total_memory
        assert 0 < side["mfu"] < side["share_of_matmul"] < 1
    assert len(profile["largest"]) == 10 and not any(each["name"].startswith("aten::") for each in profile["largest"])
    assert not {"forward", "backward", "optimizer"} & {each["name"] for each in profile["largest"]}


def test_techniques_one_by_one(tmp_path: Path) -> None:
    chosen = [models.TECHNIQUES[number] for number in (2, 3, 6)]
    options = ["--cases", "gpt2-tiny", "--texts", "half", "--techniques", "--sides", *chosen]
    _, saved = run(tmp_path, *options, "--rows", "4")
    (result,) = saved["results"]
    assert result["what"] == "techniques" and list(result["sides"]) == chosen
    assert list(result["ratios"]) == [
        f"{chosen[1]} / {chosen[0]}",
        f"{chosen[2]} / {chosen[1]}",
        f"{chosen[2]} / {chosen[0]}",
    ]
    for side in result["sides"].values():  # the same text on all
        assert side["tokens_per_second"] / side["samples_per_second"] == pytest.approx(64)
    assert set(result["sides"][chosen[1]]["kernels"].values()) == {"torch"}


def test_each_technique_is_one_change() -> None:
    for device, number in (("cpu", 7), ("cuda", 9)):
        sides = models.ladder(device)
        assert len(sides) == number and [side.name for side in sides if side.name not in models.TECHNIQUES] == []
        for before, side in zip(sides[-5:], sides[-4:], strict=False):
            changed = [key for key, value in vars(side).items() if vars(before)[key] != value and key != "name"]
            assert len(changed) == 1, side.name


def test_figures_and_ratios_are_medians() -> None:
    def turns(*tokens: int) -> list[dict[str, Any]]:
        facts = {"sequences": 3, "flops": 4e12, "steps": 2, "loss": 1.0, "memory_bytes": 7}
        return [{"seconds": 2.0, "tokens": each, **facts} for each in tokens]

    facts = {"seconds": 5, "kernels": {}, "deepspeed": True}
    assert models.figures(turns(10), facts, 4.0, None)["mfu"] is None
    found = models.figures(turns(10, 30, 20), facts, 4.0, peak=40e12)
    assert (found["tokens_per_second"], found["samples_per_second"], found["rounds"]) == (10, 1.5, 3)
    assert (found["mfu"], found["share_of_matmul"], found["seconds_a_step"]) == (0.05, 0.5, 1.0)
    sides = {"ours": turns(10, 30, 20), "transformers": turns(10, 10, 10), "other": turns(5, 5)}
    assert models.ratios(sides, of_neighbours=False) == {
        "ours / transformers": 2,
        "ours / other": 4,
        "other / transformers": 0.5,
    }
    assert models.ratios(sides, of_neighbours=True) == {"transformers / ours": 0.5, "other / transformers": 0.5,
                                                        "other / ours": (0.5 + 1 / 6) / 2}  # fmt: skip


def test_kernels_of_a_gpu_are_told_from_ranges_that_hold_them() -> None:
    def event(key: str, where: DeviceType, time: float, named: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, count=2, device_type=where, self_device_time_total=time, self_cpu_time_total=9e3,
            is_user_annotation=named,
        )  # fmt: skip

    kernels = [event(f"kernel {number}", DeviceType.CUDA, 1e3 * number) for number in range(1, 13)]
    others = [event("forward", DeviceType.CUDA, 1e6, named=True), event("aten::mm", DeviceType.CPU, 5e5)]
    found = largest([*kernels, *others], on_gpu=True)
    assert found["total_ms"] == 78 and [e["name"] for e in found["largest"]][::9] == ["kernel 12", "kernel 3"]
    assert found["largest"][0] == {"name": "kernel 12", "calls": 2, "ms": 12, "share": 12 / 78}


class Stand:
    """A side whose memory runs out while others hold theirs: what a CPU does not show."""

    def __init__(self, name: str, fits_beside: int, running: list[Any]) -> None:
        self.side, self.fits_beside, self.running, self.closed = Side(name=name), fits_beside, running, False

    def ask(self, do: str, limit: float, **more: Any) -> dict[str, Any]:
        if do == "matmul":
            return {"tflops": 1.0}
        if len(self.running) - 1 > self.fits_beside:
            raise SideFailedError("time: out of memory: tried to allocate")
        facts = {"sequences": 1, "tokens": 1, "flops": 1, "steps": 1, "loss": 1.0, "memory_bytes": 1}
        return {"seconds": 1.0, **facts}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("fits_beside", "left"), [(3, ["a", "b", "c"]), (1, ["a", "b"]), (0, ["a"]), (-1, [])])
def test_where_memory_is_short_the_least_side_goes(
    fits_beside: int, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = models.parse(["--cases", "bert-tiny", "--rounds", "3"])
    monkeypatch.setattr(models, "sides_of", lambda name, options: [])
    measurement = models.Measurement("case", ON_CPU["bert-tiny"], options, end=math.inf)
    running: list[Any] = measurement._running
    running += [stands := Stand("a", fits_beside, running), *(Stand(name, 3, running) for name in "bc")]
    measurement._facts = {name: {"seconds": 1, "kernels": {}, "deepspeed": True} for name in "abc"}
    results = [result for result in measurement.rounds() if result["what"] == "speed"]
    assert [process.side.name for process in running] == left
    if left:
        assert list(results[-1]["sides"]) == left and results[-1]["not_run"].keys() == set("abc") - set(left)
    assert stands.closed == (not left)


def test_sides_go_by_their_beginnings() -> None:
    options = models.parse(["--techniques", "--sides", "the attention", "fused", "a plain"])
    assert [side.name for side in models.sides_of("gpt2", options)] == [
        models.TECHNIQUES[number] for number in (0, 5, 6)
    ]
    options = models.parse(["--sides", "ours", "trans"])
    assert [side.name for side in models.sides_of("gpt2", options)] == ["ours", "transformers"]


def test_an_unknown_side_is_refused() -> None:
    options = models.parse(["--sides", "theirs"])
    with pytest.raises(SystemExit, match="there is no side 'theirs'; there are: ours; transformers;"):
        models.sides_of("bert-tiny", options)


def test_a_case_with_dropout_in_attention() -> None:
    assert models.ON_GPU["bert-large-128-dropout"].attention_dropout == 0.1
    options = models.parse(["--attention_dropout", "0.3"])
    assert models.case_of("bert-large-128-dropout", options).attention_dropout == 0.3
    assert make_objective(models.case_of("bert-tiny", options))[1].attention_dropout == 0.3


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="sees no CUDA device"):
        models.main(["--device", "cuda"])


def test_what_there_is_no_time_for_is_told() -> None:
    options = models.parse(["--cases", "bert-tiny", "gpt2-tiny", "--limit", "1", "--rows", "2", "--texts", "full"])
    *_, late = models.run_cases(options)
    assert late == {"what": "not run", "names": "gpt2-tiny", "reason": "the 1 s were over"}
