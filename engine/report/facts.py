"""What a report says in tables: figures, settings, data, what it ran on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.run_folder import flatten
from engine.config.mixture import source_names
from engine.config.pretrain import PretrainConfig
from engine.report.curves import DOWNSTREAM, in_unit, title_of
from engine.report.runs import HELD_OUT, Run
from preprocess.manifest import read_manifest

ABSENT = "-"
ABOUT_COUNTS = "Documents and tokens are told where the folders still hold what the run read."
OF_THE_PLACE = ("train.output", "local_rank")  # never the same, and they say nothing
COMPUTED = ("deepspeed", "versions", "world_size", "torch_threads", "precision", "gradient_clipping", "arch")


@dataclass(frozen=True)
class Table:
    """Facts of some runs.

    Attributes:
        title: heading.
        header: names of the columns.
        rows: plain text.
        about: a line under the heading.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    about: str = ""


def show_time(seconds: float | None) -> str:
    """``1 d 02:03:04``."""
    if seconds is None:
        return ABSENT
    days, rest = divmod(round(seconds), 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days} d {clock}" if days else clock


def show_figure(key: str, value: float | None) -> str:
    """A figure in the unit of its title."""
    if value is None:
        return ABSENT
    if key == "eta":
        return show_time(value)
    number = in_unit(key, value)
    if number == int(number) or abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.4f}" if abs(number) >= 0.01 else f"{number:.3g}"


def summary(runs: Sequence[Run]) -> Table:
    """One row a run."""
    header = ("run", "status", "loss", "held-out loss", "tokens", "tokens/s, median", "training time", "skipped steps")
    rows = [
        (
            run.name,
            run.status(),
            show_figure("loss", run.last("loss")),
            show_figure("loss", run.last("heldout_loss")),
            show_figure("tokens", run.last("tokens")),
            show_figure("tokens", run.median_speed()),
            show_time(run.training_seconds()),
            show_figure("skipped_steps", run.last("skipped_steps") or 0),
        )
        for run in runs
    ]
    return Table("Runs", header, tuple(rows))


def final_figures(runs: Sequence[Run]) -> Table:
    """The newest value of every figure, and the best of those that were measured on the way."""
    keys = dict.fromkeys(key for run in runs for key in run.keys())  # noqa: SIM118
    rows = []
    for key in keys:
        name = ("Held out: " if key.startswith(HELD_OUT) else "") + title_of(key)
        rows.append((name, key, *(show_figure(key, run.last(key)) for run in runs)))
        if key.startswith((HELD_OUT, DOWNSTREAM)):
            rows.append((f"{name}, best (at step)", key, *(_best(run, key) for run in runs)))
    header = ("figure", "key", *(run.name for run in runs))
    return Table("Final figures", header, tuple(rows), "The newest value of each; docs/looking.md says what they mean.")


def _best(run: Run, key: str) -> str:
    points = run.points(key)
    if not points:
        return ABSENT
    choose = min if "loss" in key or "perplexity" in key else max
    best = choose(points, key=lambda point: point.value)
    return f"{show_figure(key, best.value)} ({best.step:,.0f})"


def settings(runs: Sequence[Run]) -> Table:
    """Settings that differ between runs; of one run those that are not the default."""
    flat = [_flat(run.config) for run in runs]
    names = sorted(set().union(*flat) - set(OF_THE_PLACE))
    if len(runs) > 1:
        chosen = [name for name in names if len({settings.get(name, ABSENT) for settings in flat}) > 1]
        rows = [(name, *(settings.get(name, ABSENT) for settings in flat)) for name in chosen]
        about = "Only what differs." if rows else "All settings are the same."
        return Table("Settings", ("setting", *(run.name for run in runs)), tuple(rows), about)
    if "task" in runs[0].config:  # a fine-tuning, whose defaults are not known here
        return Table("Settings", ("setting", "value"), tuple((name, flat[0][name]) for name in names))
    defaults = _flat(asdict(PretrainConfig(ds_config="").completed()))
    own = {name: defaults.get(name, ABSENT) for name in names if not name.startswith(COMPUTED)}
    changed = [(name, flat[0][name], default) for name, default in own.items() if flat[0][name] != default]
    return Table("Settings", ("setting", "value", "default"), tuple(changed), "Only what is not the default.")


def all_settings(run: Run) -> Table:
    """Every setting of a run."""
    return Table(f"All settings of {run.name}", ("setting", "value"), tuple(sorted(_flat(run.config).items())))


def _flat(tree: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in flatten(tree)
    }


def data(runs: Sequence[Run]) -> Table:
    """What identifies the text of each run, and how much of it there is where the shards are at hand."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        found = run.config.get("data")
        facts = found if isinstance(found, dict) else {}
        if "train_digest" in facts:
            files = [run.config.get(name) for name in ("train_file", "dev_file", "test_file")]
            shown = ", ".join(str(file) for file in files if file)
            rows.append((run.name, shown, ABSENT, _digest(facts.get("train_digest")), ABSENT, ABSENT))
        else:
            rows += [(run.name, *source) for source in _sources(run, facts)]
        rows.append((run.name, "tokenizer", ABSENT, _digest(facts.get("tokenizer_digest")), ABSENT, ABSENT))
    header = ("run", "data", "share", "digest", "documents", "tokens")
    return Table("Data", header, tuple(rows), ABOUT_COUNTS)


def _sources(run: Run, facts: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Folder, share of the rows, digest and counts of each source."""
    folders, weights = facts.get("folders"), facts.get("weights")
    if not (isinstance(folders, dict) and isinstance(weights, dict)):
        digest, path = facts.get("manifest_digest"), str(facts.get("shards", ""))
        yield (path or ABSENT, "all", _digest(digest), *_counts(path, digest))
        return
    for (path, digest), name in zip(folders.items(), source_names(list(folders)), strict=True):
        rows, weight = run.last(f"rows/{name}"), weights.get(str(digest)[:16])
        share = ABSENT if weight is None else f"{weight:.2%}"
        taken = "" if rows is None else f", {rows:,.0f} rows so far"
        yield (path, share + taken, _digest(digest), *_counts(path, digest))


def _counts(path: str, digest: object) -> tuple[str, str]:
    try:
        manifest = read_manifest(Path(path))
    except (ValueError, OSError):
        return ABSENT, ABSENT
    if manifest.digest != digest:
        return ABSENT, ABSENT
    return f"{manifest.counts['documents']:,}", f"{manifest.counts['tokens']:,}"


def _digest(digest: object) -> str:
    return str(digest)[:16] if digest else ABSENT


def hardware(runs: Sequence[Run]) -> Table:
    """What each run computes on and with, by its newest start."""
    wanted: dict[str, Callable[[dict[str, Any]], object]] = {
        "device": lambda config: config.get("versions", {}).get("device"),
        "ranks": lambda config: config.get("world_size"),
        "precision": lambda config: config.get("precision"),
        "ZeRO stage": lambda config: config.get("deepspeed", {}).get("zero_optimization", {}).get("stage", 0),
        "CPU threads of a rank": lambda config: config.get("torch_threads"),
    }
    rows = [(what, *(_shown(find, run) for run in runs)) for what, find in wanted.items()]
    libraries = dict.fromkeys(name for run in runs for name in run.config.get("versions", {}) if name != "device")
    for name in libraries:
        rows.append((name, *(str(run.config.get("versions", {}).get(name, ABSENT)) for run in runs)))
    return Table("Hardware and versions", ("", *(run.name for run in runs)), tuple(rows), "Of the newest start.")


def _shown(find: Callable[[dict[str, Any]], object], run: Run) -> str:
    try:
        found = find(run.config)
    except AttributeError:  # the file was changed by hand
        found = None
    return ABSENT if found is None or found == "" else str(found)
