"""One command, several runs one after the other: a run for each seed, or for each fold of the training file."""

from __future__ import annotations

import gc
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.checkpoint.files import write_text
from engine.config.cli import UsageError
from engine.train.distributed import from_rank_zero
from engine.train.metrics import say
from finetune.config.run import FinetuneConfig
from finetune.inference.writing import replaced_file, writer_of
from finetune.training.finetuning import FOLD_PREDICTIONS, RESULTS, finetune

SUMMARY, OUT_OF_FOLD = "summary.json", "out_of_fold.tsv"
FIGURES = ("dev_", "test_")  # how the names of figures begin in results.json


def finetune_all(config: FinetuneConfig) -> None:
    """Do the run of the settings, or all of its seeds or folds; what is finished already is not done again.

    Raises:
        ValueError: as ``finetune``; of several runs the later ones can be told wrong only when it is their turn.
    """
    if not config.is_repeated:
        finetune(config)
        return
    if problems := config.problems():
        raise UsageError("\n".join(problems))
    runs = runs_of(config)
    for number, (name, one) in enumerate(runs, 1):
        say(f"run {number} of {len(runs)}: {name}")
        finetune(one)
        gc.collect()  # an engine is full of circles, and the next one needs its memory
    for line in from_rank_zero(lambda: conclude(config, [Path(one.run_folder()) for _, one in runs])):
        say(line)


def runs_of(config: FinetuneConfig) -> list[tuple[str, FinetuneConfig]]:
    """Name and settings of each run, in order."""
    output = Path(config.run_folder())
    train = replace(config.train, output="")
    if config.seeds:
        changes: list[dict[str, Any]] = [{"seed": seed} for seed in config.seeds]
        names = [f"seed-{seed}" for seed in config.seeds]
    else:
        changes = [{"fold": fold} for fold in range(config.folds)]
        names = [f"fold-{fold}" for fold in range(config.folds)]
    return [
        (name, replace(config, seeds=[], output=str(output / name), train=train, **change))
        for name, change in zip(names, changes, strict=True)
    ]


def conclude(config: FinetuneConfig, folders: list[Path]) -> list[str]:
    """Write what all runs have in common, from rank 0; returns lines for the log."""
    output = Path(config.run_folder())
    results = {folder.name: read_results(folder) for folder in folders}
    found = summary(results)
    write_text(output / SUMMARY, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    lines = [
        f"{name}: mean {of['mean']:.4f}, sd {of['sd']:.4f}, max {of['max']:.4f}"
        for name, of in found["figures"].items()
    ]
    if config.folds:
        count = join_folds(folders, output / OUT_OF_FOLD)
        lines.append(f"{output / OUT_OF_FOLD}: {count:,} predictions, each by a model that did not learn its record")
    return [*lines, f"{output / SUMMARY}: {len(folders)} runs"]


def read_results(folder: Path) -> dict[str, Any]:
    """The results of a finished run; ValueError where they are not there."""
    try:
        results: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has no readable {RESULTS} ({error}); remove the folder, and the same command makes it"
        ) from None
    return results


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample: n - 1), largest value and values of each figure over runs by name.

    Figures that are not finite in one of the runs are left out.
    """
    runs = list(results.values())
    numbers = [name for name, value in runs[0].items() if name.startswith(FIGURES) and isinstance(value, float | int)]
    names = [name for name in numbers if all(math.isfinite(run[name]) for run in runs)]
    figures = {}
    for name in names:
        values = [float(run[name]) for run in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        figures[name] = {"mean": statistics.fmean(values), "sd": deviation, "max": max(values), "values": values}
    about = {name: runs[0].get(name) for name in ("task", "main_figure", "model")}
    return {**about, "runs": list(results), "figures": figures}


def join_folds(folders: list[Path], output: Path) -> int:
    """Write the predictions of all folds into one file, in the order of the training file; returns their number."""
    answers: dict[int, dict[str, Any]] = {}
    for folder in folders:
        for line in (folder / FOLD_PREDICTIONS).read_text(encoding="utf-8").split("\n")[:-1]:
            answer = json.loads(line)
            answers[answer.pop("record")] = answer
    if sorted(answers) != list(range(len(answers))):
        raise ValueError(f"the folds in {output.parent} are not those of one file; begin again in another --output")
    with replaced_file(output) as file:
        writer = writer_of(str(output), list(answers[0]), file)
        for number in range(len(answers)):
            writer.write(answers[number])
    return len(answers)
