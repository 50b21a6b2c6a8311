"""What training on several ranks costs: speed-up, bytes sent against theory, and whether transfer overlaps with work.

    python benchmarks/scaling.py ranks bytes link --output results.json

Every run is the training command (engine/pretrain.py) over ``--data``, or over shards of the sample text, each rank
pinned to one core and given one thread; scaling_rank.py counts and times its collectives.
- ranks: real tokens/s on 1, 2 and 4 ranks, at the same batch (strong) and the same batch a rank (weak), beside as many
  runs of one rank each that do not talk (alone): what the machine itself loses; loader stall; share in communication.
- bytes: bytes sent per step by the kernel's count for the interface of ranks inside network namespaces, the difference
  of a run and one of twice its steps; bytes handed to the collectives; both against theory (scaling_theory.py).
- link: two hosts over a link slowed by a token bucket (tc ... tbf): step time with and without overlap_comm.
The sides take turns, round by round; a ratio is the median of the ratios of the rounds. The last two parts need root
and iproute2. Results are saved as they come; parts that are not run again stay in the file. docs/scaling.md tells more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import scaling_network as network
from benchmarks.scaling_runs import CORES, Bench, Job, Measured, make_shards, rank_processes, run_ranks
from benchmarks.scaling_theory import (
    Setting,
    gloo_sent,
    hidden_of_blocked,
    hidden_share,
    least_sent,
    payloads,
    ring_sent,
)

MEGABYTE = 10**6
GLOO_BYTES, GLOO_CALLS = 1 << 23, 4
RELEASED = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
OWNERS = {"use_multi_rank_bucket_allreduce": False}
BIG = ("all_reduce", "all_gather", "reduce_scatter")  # collectives of weights and gradients
WARM_STEPS = 2  # recorded steps that are left out of times

Save = Callable[[Any], None]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured.

    Args:
        rounds: repetitions of every timed side.
        steps: of a timed run.
        rows: of a step on each rank; of all ranks together in strong scaling.
        accumulation: micro-batches of these rows.
        ranks: numbers of ranks.
        byte_steps: steps of the shorter of two runs whose bytes are subtracted.
        precisions: whose bytes are counted.
        accumulations: micro-batches of the steps whose bytes are counted.
        variants: whether the bytes of other DeepSpeed settings are counted too.
        link_stages: of ZeRO, over the slowed link.
        rates: of the slowed link in Mbit/s.
    """

    rounds: int = 5
    steps: int = 12
    rows: int = 16
    accumulation: int = 4
    ranks: tuple[int, ...] = (1, 2, 4)
    byte_steps: int = 6
    precisions: tuple[str, ...] = ("fp32", "bf16")
    accumulations: tuple[int, ...] = (1, 2)
    variants: bool = True
    link_stages: tuple[int, ...] = (2, 3)
    rates: tuple[int, ...] = (500, 200)


QUICK = Sizes(
    rounds=1, steps=5, rows=4, accumulation=2, ranks=(1, 2), byte_steps=2, precisions=("fp32",), accumulations=(2,),
    variants=False, link_stages=(2,), rates=(200,),
)  # fmt: skip


def measure_ranks(bench: Bench, sizes: Sizes, stage: int, save: Save) -> None:
    """Speed on 1 and more ranks; one entry a case, with medians over the rounds."""
    together: dict[tuple[str, ...], list[list[Job]]] = {}  # names of cases -> runs at the same time, of each all cases
    for ranks in sizes.ranks:
        common: dict[str, Any] = {"stage": stage, "steps": sizes.steps, "log_every": max(1, sizes.steps // 4)}
        weak = Job(**common, ranks=ranks, rows=sizes.rows, accumulation=sizes.accumulation)
        if ranks == 1:
            together[("1 rank",)] = [[weak]]
            continue
        accumulation = max(1, sizes.accumulation // ranks)
        strong = Job(**common, ranks=ranks, rows=sizes.rows // ranks, accumulation=accumulation)
        together[f"{ranks} ranks, strong", f"{ranks} ranks, weak"] = [[strong, weak]]
        one = Job(**common, rows=sizes.rows, accumulation=sizes.accumulation)
        together[(f"{ranks} alone",)] = [[replace(one, first_core=number)] for number in range(ranks)]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for names in together for name in names}
    for number in range(sizes.rounds):
        for names, groups in together.items():
            for name, *measured in zip(names, *bench.run_together(groups), strict=True):
                figures = speed_figures(measured, skip=max(1, sizes.steps // 4))
                rounds[name].append(figures)
                say(f"ranks, round {number + 1} of {sizes.rounds}: {name}: {figures['tokens_per_second']:,.0f}/s")
        save(summarize_ranks(rounds))


def speed_figures(measured: Sequence[Measured], skip: int) -> dict[str, float]:
    """Figures of runs that ran together, without their first window: speeds add up, shares are means over the ranks."""
    shares = [share for one in measured for share in one.blocked_shares(skip)]
    windows = [one.metrics[1:] for one in measured]
    return {
        "tokens_per_second": sum(statistics.median(line["tokens_per_second"] for line in lines) for lines in windows),
        "data_wait": statistics.mean(statistics.median(line["data_wait"] for line in lines) for lines in windows),
        "communication_share": statistics.mean(shares),
        "communication_share_least": min(shares),
    }


def summarize_ranks(rounds: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians of each case, and medians of its ratios to the cases of the same round."""
    found = []
    for name, figures in rounds.items():
        ranks = int(name.split()[0])
        entry: dict[str, Any] = {"case": name, "ranks": ranks, "cores": min(ranks, len(CORES))}
        entry |= {key: statistics.median(one[key] for one in figures) for key in figures[0]}
        entry["speedup"] = speed_ratio(figures, rounds["1 rank"])
        entry["per_core"] = entry["speedup"] / entry["cores"]
        if f"{ranks} alone" in rounds:
            entry["of_alone"] = speed_ratio(figures, rounds[f"{ranks} alone"])
        found.append({**entry, "rounds": figures})
    return found


def speed_ratio(ours: Sequence[dict[str, float]], others: Sequence[dict[str, float]]) -> float:
    """Median over the rounds of the ratio of speeds."""
    pairs = zip(ours, others, strict=True)
    return statistics.median(one["tokens_per_second"] / other["tokens_per_second"] for one, other in pairs)


def byte_jobs(sizes: Sizes, ranks: int, hosts: network.Hosts) -> list[Job]:
    """The runs whose bytes are counted: stages and precisions, then what changes them."""
    common: dict[str, Any] = {"ranks": ranks, "hosts": hosts, "steps": sizes.byte_steps}
    jobs = [
        Job(**common, stage=stage, precision=precision, accumulation=accumulation)
        for precision in sizes.precisions
        for accumulation in sizes.accumulations
        for stage in range(4)
    ]
    if sizes.variants:
        jobs += [Job(**common, stage=2, changes=OWNERS), Job(**common, stage=3, changes=RELEASED)]
    return jobs


def theory_of(job: Job, sizes: Sequence[int]) -> Setting:
    """What theory has to know of a run; gradients travel in fp32 whatever the precision (communication_data_type)."""
    return Setting(
        sizes=sizes, stage=job.stage, ranks=job.ranks, accumulation=job.accumulation,
        weight_bytes=2 if job.precision == "bf16" else 4,
        kept=job.changes.get("stage3_max_reuse_distance") != 0,
        owners=not job.changes.get("use_multi_rank_bucket_allreduce", True),
    )  # fmt: skip


def measure_bytes(bench: Bench, sizes: Sizes, save: Save) -> None:
    """Bytes of every kind of run, inside one host and between two."""
    rows: list[dict[str, Any]] = []
    gloo: list[dict[str, Any]] = []
    places = [(1, ranks) for ranks in sizes.ranks if ranks > 1] + [(2, 2)]
    for number, ranks in places:
        with network.make_hosts(number) as hosts:
            factors = gloo_factors(hosts, ranks)
            gloo.append({"hosts": number, "ranks": ranks, "sent_per_byte": factors})
            jobs = byte_jobs(sizes, ranks, hosts)
            longer = [replace(job, steps=2 * job.steps) for job in jobs]
            measured = bench.run([*jobs, *longer])
            for job, short, long in zip(jobs, measured[: len(jobs)], measured[len(jobs) :], strict=True):
                rows.append({"hosts": number, **byte_figures(job, short, long, factors)})
        save({"gloo": gloo, "runs": rows})
        say(f"bytes: {number} host(s), {ranks} ranks")


def byte_figures(job: Job, short: Measured, long: Measured, factors: dict[str, float]) -> dict[str, Any]:
    """Bytes of a step and rank: counted by the kernel, handed to collectives, and by theory.

    Args:
        job: the shorter run.
        short: what it left.
        long: what the same run with twice its steps left.
        factors: bytes that gloo sends for each byte handed over, by collective.
    """
    measured = (long.sent - short.sent) / job.steps / job.ranks
    ops = long.last_ops()
    handed = {name: int(entry["bytes"]) for name, entry in ops.items()}
    setting = theory_of(job, long.sizes)
    expected = payloads(setting)
    least, ring = least_sent(setting), ring_sent(handed, job.ranks)
    by_gloo = sum(factors[name] * size for name, size in handed.items())
    return {
        "ranks": job.ranks, "stage": job.stage, "precision": job.precision, "accumulation": job.accumulation,
        "changes": dict(job.changes), "parameters": sum(long.sizes),
        "calls": {name: int(entry["calls"]) for name, entry in ops.items()}, "handed": handed,
        "theory": {name: [payload.low, payload.high] for name, payload in expected.items()},
        "as_theory": handed.keys() == expected.keys() and all(p.holds(handed[n]) for n, p in expected.items()),
        "sent": measured, "least": least, "ring": ring, "by_gloo": by_gloo,
        "sent_to_least": measured / least, "sent_to_ring": measured / ring, "sent_to_gloo": measured / by_gloo,
    }  # fmt: skip


def gloo_factors(hosts: network.Hosts, ranks: int) -> dict[str, float]:
    """Bytes that a rank sends, on average, for each byte of the whole tensor, by collective."""
    script = ["benchmarks/scaling_gloo.py", "--bytes", str(GLOO_BYTES), "--calls", str(GLOO_CALLS)]
    printed = run_ranks(rank_processes([*script, "--interface", hosts.interface], ranks, hosts))
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    return found


def measure_link(bench: Bench, sizes: Sizes, save: Save) -> None:
    """Step times between two hosts, at each rate and without a limit, with overlap_comm and without."""
    rates = (None, *sizes.rates)
    cases = [(stage, overlap) for stage in sizes.link_stages for overlap in (False, True)]
    times: dict[tuple[int, bool, int | None], list[dict[str, Any]]] = {}
    with network.make_hosts(2) as hosts:
        jobs = [
            Job(
                stage=stage, ranks=2, rows=sizes.rows, steps=sizes.steps, hosts=hosts, changes={"overlap_comm": overlap}
            )
            for stage, overlap in cases
        ]
        for number in range(sizes.rounds):
            for rate in rates:
                hosts.limit(rate)
                for (stage, overlap), measured in zip(cases, bench.run(jobs), strict=True):
                    times.setdefault((stage, overlap, rate), []).append(link_figures(measured))
                say(f"link, round {number + 1} of {sizes.rounds}: {rate or 'no'} limit (Mbit/s)")
            save({"runs": summarize_link(times)})
        gloo = []
        for rate in sizes.rates:
            hosts.limit(rate)
            gloo.append(gloo_beside(hosts, rate, max(3, sizes.rounds)))
            save({"runs": summarize_link(times), "gloo": gloo})


def link_figures(measured: Measured) -> dict[str, Any]:
    """Step time of a run, the time that its main thread stood in collectives, and what was begun ahead."""
    steps = measured.records[0][WARM_STEPS:]
    ops = [entry for step in steps for entry in step["ops"].values()]
    blocked = {name: [step["ops"].get(name, {"blocked": 0.0})["blocked"] for step in steps] for name in BIG}
    return {
        "step_seconds": measured.step_seconds(WARM_STEPS),
        "blocked_seconds": statistics.median(sum(e["blocked"] for e in step["ops"].values()) for step in steps),
        **{f"blocked_in_{name}": statistics.median(seconds) for name, seconds in blocked.items()},
        "sent": gloo_sent({name: int(entry["bytes"]) for name, entry in measured.last_ops().items()}, 2),
        "async_share": sum(entry["async_calls"] for entry in ops) / sum(entry["calls"] for entry in ops),
    }


def summarize_link(times: dict[tuple[int, bool, int | None], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians over the rounds; ratios to the run of the same round without overlap_comm, and without a limit."""
    found = []
    for (stage, overlap, rate), figures in times.items():
        entry: dict[str, Any] = {"stage": stage, "overlap_comm": overlap, "megabits": rate}
        entry |= {key: statistics.median(one[key] for one in figures) for key in figures[0]}
        entry["to_no_overlap"] = step_ratio(figures, times.get((stage, False, rate)))
        free = times.get((stage, overlap, None), [])
        entry["to_no_limit"] = step_ratio(figures, free)
        if rate is not None and free:
            entry["transfer_seconds"] = entry["sent"] * 8 / rate / MEGABYTE
            entry["hidden_share"] = statistics.median(
                hidden_of_blocked(one["blocked_seconds"], slow["blocked_seconds"], entry["transfer_seconds"])
                for one, slow in zip(free, figures, strict=False)
            )
        found.append({**entry, "rounds": figures})
    return found


def step_ratio(ours: Sequence[dict[str, float]], others: Sequence[dict[str, float]] | None) -> float | None:
    """Median over the rounds of the ratio of step times."""
    if not others:
        return None
    pairs = zip(ours, others, strict=False)
    return statistics.median(one["step_seconds"] / other["step_seconds"] for one, other in pairs)


def gloo_beside(hosts: network.Hosts, rate: int, calls: int) -> dict[str, float]:
    """Whether gloo itself transfers while the main thread computes: an all-reduce begun first, waited for last."""
    size = rate * MEGABYTE // 8 // 5  # a fifth of a second on the link
    script = ["benchmarks/scaling_gloo.py", "--bytes", str(size), "--calls", str(calls)]
    found = json.loads(run_ranks(rank_processes([*script, "--beside", "0.2"], 2, hosts)).splitlines()[-1])
    share = hidden_share(found["compute"], found["transfer"], found["both"])
    return {"megabits": rate, "bytes": size, **found, "hidden_share": share}


def describe_machine(command: str) -> dict[str, Any]:
    """Hardware and versions, for the results, and what was run."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "deepspeed", "numpy")
    return {
        "device": names[0] if names else platform.machine(),
        "cores": len(CORES),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "command": command,
    }


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("ranks", "bytes", "link"))
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--data", type=Path, help="a folder of shards instead of the sample text's")
    parser.add_argument("--model", default="bert-mini")
    parser.add_argument("--seq_length", type=int, default=128)
    parser.add_argument("--stage", type=int, default=1, choices=range(4), help="of the runs on 1 and more ranks")
    parser.add_argument("--rounds", type=int, help="repetitions of every timed side")
    parser.add_argument("--quick", action="store_true", help="once, few steps, 2 ranks: to see that it runs")
    arguments = parser.parse_args(argv)
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}; it must be at least 1")
    if set(arguments.parts) - {"ranks"} and (reason := network.missing()):
        parser.error(f"{' and '.join(sorted(set(arguments.parts) - {'ranks'}))}: {reason}")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the parts asked for and save what was found."""
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that hosts are taken down
    sizes = QUICK if arguments.quick else Sizes()
    if arguments.rounds is not None:
        sizes = Sizes(**{**vars(sizes), "rounds": arguments.rounds})
    output: Path | None = arguments.output
    results: dict[str, Any] = json.loads(output.read_text()) if output and output.exists() else {}

    def saver(part: str) -> Save:
        given = {name: getattr(arguments, name) for name in ("model", "seq_length", "stage")}
        given["data"] = "given" if arguments.data else "sample text"
        about = {**describe_machine(f"benchmarks/scaling.py {part}"), **given, **vars(sizes)}

        def save(found: Any) -> None:
            results[part] = {"about": about, "results": found}
            if output:
                output.write_text(json.dumps(results, indent=1) + "\n")

        return save

    with tempfile.TemporaryDirectory() as name:
        shards = arguments.data.absolute() if arguments.data else make_shards(Path(name))
        bench = Bench(arguments.model, shards, arguments.seq_length, Path(name))
        if "ranks" in arguments.parts:
            measure_ranks(bench, sizes, arguments.stage, saver("ranks"))
        if "bytes" in arguments.parts:
            measure_bytes(bench, sizes, saver("bytes"))
        if "link" in arguments.parts:
            measure_link(bench, sizes, saver("link"))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
