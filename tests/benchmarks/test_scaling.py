"""The benchmark of scaling: theory by hand, bytes of real steps against it, and the quick run's results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling, scaling_network
from benchmarks.scaling_runs import Bench, Job, Measured, make_shards, run_ranks
from benchmarks.scaling_runs import Rank as Process
from benchmarks.scaling_theory import (
    Setting,
    gloo_sent,
    hidden_of_blocked,
    hidden_share,
    least_sent,
    payloads,
    ring_sent,
)
from tests import commands

SIZES = (1000, 300, 20, 7)  # of a made-up model: 1,327 elements; 1,020 are above 10 and so on below


def setting(**changes: Any) -> Setting:
    return Setting(**{"sizes": SIZES, "stage": 0, "ranks": 4, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 2 * 0.75 * 5308),  # an all-reduce of 1,327 numbers in fp32
        ({"stage": 1}, 0.75 * (5308 + 5308)),
        ({"stage": 1, "weight_bytes": 2, "accumulation": 3}, 0.75 * (5308 + 2654)),  # reduced once a step
        ({"stage": 2, "accumulation": 3}, 0.75 * (3 * 5308 + 5308)),  # reduced in every micro-batch
        # 1,300 elements are gathered in each of two micro-batches, twice; 27 stay whole and are gathered once
        ({"stage": 3, "accumulation": 2, "persistent": 100, "kept": False}, 0.75 * (2 * 5308 + 4 * 5200 + 108)),
        ({"stage": 3, "accumulation": 2, "persistent": 100}, 0.75 * (2 * 5308 + 2 * 5200 + 108)),
    ],
)
def test_least_bytes_by_hand(changes: Mapping[str, Any], expected: float) -> None:
    assert least_sent(setting(**changes)) == expected


def test_payloads_by_hand() -> None:
    stage2 = payloads(setting(stage=2, accumulation=2, weight_bytes=2, terms=2))
    assert stage2.keys() == {"all_reduce", "all_gather"}
    assert stage2["all_reduce"].low == 2 * 5308 + 3 * 8  # gradients, and the counts of two terms and of stops
    assert stage2["all_gather"].low == 2654
    assert payloads(setting(stage=2, owners=True))["reduce"].holds(5308)
    stage3 = payloads(setting(stage=3, persistent=100))
    assert stage3["reduce_scatter"].holds(4 * (1000 + 300 + 20 + 8))  # 7 is filled up to 8 for four ranks
    assert not stage3["reduce_scatter"].holds(2 * 4 * 1327)
    assert not stage3["all_gather"].holds(2 * 4 * 1327)


def test_ring_and_hidden_share_by_hand() -> None:
    assert ring_sent({"all_reduce": 800, "all_gather": 400, "reduce_scatter": 400, "broadcast": 40}, 4) == 1830
    assert gloo_sent({"all_reduce": 800, "all_gather": 400, "reduce_scatter": 400}, 4) == 1200 + 300 + 600
    assert hidden_share(compute=2.0, transfer=1.0, step=3.0) == 0
    assert hidden_share(compute=2.0, transfer=1.0, step=2.0) == 1
    assert hidden_share(compute=1.0, transfer=2.0, step=2.5) == 0.5
    assert hidden_of_blocked(free=0.5, blocked=2.5, transfer=2.0) == 0
    assert hidden_of_blocked(free=0.5, blocked=1.0, transfer=2.0) == 0.75


# accumulation 2: what is sent once a step is told from what is sent in every micro-batch
CALLS = {
    0: {"all_reduce": 2},  # gradients, counts
    1: {"all_reduce": 3, "all_gather": 2},  # and the norm, and weights of two groups
    2: {"all_reduce": 4, "all_gather": 2},  # gradients of each micro-batch
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("scaling")
    return Bench("bert-tiny", make_shards(folder), 64, folder)


def test_steps_hand_over_as_many_bytes_as_theory_says(bench: Bench) -> None:
    jobs = [Job(stage=stage, ranks=2, accumulation=2) for stage in range(4)]
    jobs += [Job(stage=1, precision="bf16", ranks=2), Job(stage=3, ranks=2, changes=scaling.RELEASED)]
    for job, measured in zip(jobs, bench.run(jobs), strict=True):
        ops = measured.last_ops()
        expected = payloads(scaling.theory_of(job, measured.sizes))
        found = {name: int(entry["bytes"]) for name, entry in ops.items()}
        assert found.keys() == expected.keys(), job
        for name, payload in expected.items():
            assert payload.holds(found[name]), (job, name, found[name], payload)
            assert payload.high <= payload.low * 1.001 or payload.high <= 100, (job, name, payload)
        if job.stage in CALLS and job.precision == "fp32":
            assert {name: entry["calls"] for name, entry in ops.items()} == CALLS[job.stage], job


def namespaces() -> set[str]:
    """Hosts that a run of the benchmark made and did not take down, or is using."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {name for line in listed.splitlines() if (name := line.split()[0]).startswith(scaling_network.PREFIX)}


def run_quick(folder: Path, *parts: str) -> dict[str, Any]:
    """Results of the parts, each of which must say what it was measured with; no host is left."""
    if reason := scaling_network.missing():
        pytest.skip(reason)
    output, before = folder / "results.json", namespaces()
    options = [*parts, "--quick", "--model", "bert-tiny", "--seq_length", "64", "--output", output]
    done = commands.run(commands.REPOSITORY / "benchmarks" / "scaling.py", options, timeout=900)
    assert done.returncode == 0, done.stdout
    assert namespaces() <= before
    found: dict[str, Any] = json.loads(output.read_text())
    assert found.keys() == set(parts)
    for part in found.values():
        assert part["about"]["model"] == "bert-tiny" and part["about"]["versions"].keys() >= {"torch", "deepspeed"}
    return {name: part["results"] for name, part in found.items()}


def test_quick_bytes(tmp_path: Path) -> None:
    runs = run_quick(tmp_path, "bytes")["bytes"]["runs"]
    assert [(run["hosts"], run["stage"]) for run in runs] == [(hosts, stage) for hosts in (1, 2) for stage in range(4)]
    for run in runs:  # bert-tiny's steps are small: acknowledgements and heartbeats weigh more than in a real model
        assert run["as_theory"] and run["sent_to_gloo"] == pytest.approx(1, abs=0.15), run


@pytest.mark.slow
def test_quick_ranks_and_link(tmp_path: Path) -> None:
    parts = run_quick(tmp_path, "ranks", "link")
    cases = {entry["case"]: entry for entry in parts["ranks"]}
    assert cases.keys() == {"1 rank", "2 ranks, strong", "2 ranks, weak", "2 alone"}
    assert cases["1 rank"]["speedup"] == 1
    assert all(0 <= case["data_wait"] < 1 and 0 < case["communication_share"] < 1 for case in cases.values())
    link = parts["link"]
    assert [(run["stage"], run["overlap_comm"], run["megabits"]) for run in link["runs"]] == [
        (2, overlap, rate) for rate in (None, 200) for overlap in (False, True)
    ]
    assert all(run["to_no_overlap"] == 1 for run in link["runs"] if not run["overlap_comm"])
    assert all(run["async_share"] == 0 for run in link["runs"])
    assert link["gloo"][0].keys() >= {"compute", "transfer", "both", "hidden_share"}


def test_parts_that_are_not_run_again_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "results.json"
    output.write_text(json.dumps({"bytes": {"results": "from before"}}))
    monkeypatch.setattr(scaling, "make_shards", lambda folder: folder)
    monkeypatch.setattr(scaling, "measure_ranks", lambda bench, sizes, stage, save: save([sizes.rounds, stage]))
    scaling.main(["ranks", "--rounds", "7", "--stage", "2", "--output", str(output)])
    found = json.loads(output.read_text())
    assert found["bytes"] == {"results": "from before"} and found["ranks"]["results"] == [7, 2]


def test_ratios_are_medians_over_the_rounds() -> None:
    def rounds(*speeds: float) -> list[dict[str, float]]:
        return [{"tokens_per_second": speed} for speed in speeds]

    found = scaling.summarize_ranks({"1 rank": rounds(10, 20, 10), "2 ranks, weak": rounds(15, 20, 20)})
    assert [entry["speedup"] for entry in found] == [1, 1.5]
    assert found[1]["tokens_per_second"] == 20


def test_blocked_shares_leave_out_the_first_steps() -> None:
    def step(blocked: float) -> dict[str, Any]:
        return {"seconds": 2.0, "ops": {"all_reduce": {"blocked": blocked}, "all_gather": {"blocked": 0.5}}}

    assert Measured([[step(9.0), step(0.5), step(0.1)]], [], [], 0).blocked_shares(skip=1) == [pytest.approx(0.4)]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scaling_network.os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit):
        scaling.main(["ranks", "link", "bytes"])
    assert "bytes and link: network namespaces need root on Linux" in capsys.readouterr().err
    monkeypatch.setattr(scaling_network.os, "geteuid", lambda: 0)
    monkeypatch.setattr(scaling_network.shutil, "which", lambda tool, path: None if tool == "tc" else "/bin")
    assert scaling_network.missing() == "tc not found: apt-get install iproute2"
    with pytest.raises(SystemExit):
        scaling.main(["ranks", "--rounds", "0"])
    assert "--rounds is 0; it must be at least 1" in capsys.readouterr().err


def test_a_failing_rank_is_told_with_what_it_printed() -> None:
    fails = Process([sys.executable, "-c", "import sys; sys.exit('no such shards')"], {})
    with pytest.raises(RuntimeError, match=r"ended with \[1\].*\n.*no such shards"):
        run_ranks([fails])
