"""The whole way in a few minutes: text -> tokenizer -> shards -> BERT and GPT-2 -> classifier -> predictions.

    python examples/demo.py [--output runs/demo]

Every stage is one of the project's own commands, printed before it runs; copy and change them. The BERT's run is killed
once on the way and started again by the same command, which goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script, from a bare checkout too
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from examples.demo_results import plot_losses, read_metrics, read_table, show_predictions, summarize

ROOT = Path(__file__).resolve().parent.parent
CORPUS = [f"examples/corpus/{name}" for name in ("en_northanger_abbey.txt", "zh_poems.txt", "reviews.txt")]
REVIEWS = {split: f"examples/reviews/{split}.tsv" for split in ("train", "dev", "test")}
DS_CONFIG = "ds_configs/zero2.json"
MARKER = ".demo"  # a folder with this file was made here and may be made anew

VOCAB_SIZE = 6000
PRETRAIN_STEPS = 400
SAVE_EVERY = 100
KILL_AT_STEP = 150  # between two checkpoints: what came after the last one is lost and done again
LEARNING_RATE = {"bert-tiny": 1e-3, "gpt2-tiny": 3e-3}  # a norm before each layer (GPT-2) bears more
FINETUNE_EPOCHS = 8


# --- the stages -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Stage:
    """One command of the demo.

    Args:
        title: printed before it starts.
        command: argument list, run in the checkout's root.
        kill_at_step: kill it with SIGKILL once its metrics show this step, then run it again.
        run_folder: where it writes metrics.jsonl; needed with kill_at_step.
    """

    title: str
    command: list[str]
    kill_at_step: int | None = None
    run_folder: Path | None = None


def build_stages(output: Path, num_ranks: int) -> list[Stage]:
    """Return the stages; each starts from files that those before it wrote.

    Args:
        output: the demo's folder, relative to the checkout's root or absolute.
        num_ranks: processes of each training run on this machine.
    """
    bert, gpt2, tuned, scratch = (output / name for name in ("bert", "gpt2", "classifier", "classifier-random-init"))
    return [
        Stage("Train a WordPiece tokenizer on English and Chinese text", tokenizer_command(output)),
        Stage("Write the text as checksummed HDF5 shards, 5 % of the documents held out", shards_command(output)),
        Stage(
            "Pretrain a tiny BERT (masked words), kill it on the way, run the same command again",
            pretrain_command("bert-tiny", output, bert, num_ranks),
            kill_at_step=KILL_AT_STEP,
            run_folder=bert,
        ),
        Stage("Pretrain a tiny GPT-2 (next word)", pretrain_command("gpt2-tiny", output, gpt2, num_ranks)),
        Stage("Fine-tune a review classifier from the BERT", finetune_command(bert / "model", tuned, num_ranks)),
        Stage(
            "The same classifier from random weights, to compare",
            [*finetune_command(bert / "model", scratch, num_ranks), "--random_init", "true"],
        ),
        Stage("Predict the labels of the test reviews", predict_command(tuned / "model", output)),
    ]


def tokenizer_command(output: Path) -> list[str]:
    """Return the command that trains the tokenizer."""
    settings = {"type": "wordpiece", "vocab_size": VOCAB_SIZE, "lowercase": "true", "output": output / "tokenizer"}
    return [sys.executable, "-m", "preprocess", "tokenizer", "--corpus", *CORPUS, *_options(settings)]


def shards_command(output: Path) -> list[str]:
    """Return the command that writes the shards."""
    settings = {"tokenizer": output / "tokenizer", "heldout": 0.05, "workers": 2, "output": output / "shards"}
    return [sys.executable, "-m", "preprocess", "shards", "--corpus", *CORPUS, *_options(settings)]


def predict_command(model: Path, output: Path) -> list[str]:
    """Return the command that labels the test reviews, given without their labels."""
    settings = {"model": model, "input": output / "unlabelled.tsv", "output": output / "predictions.tsv"}
    return [sys.executable, "-m", "finetune.predict", *_options(settings)]


def launcher(num_ranks: int) -> list[str]:
    """Return the `deepspeed` command of this environment with a free port."""
    deepspeed = Path(sys.executable).with_name("deepspeed")
    return [str(deepspeed), "--quiet", "--num_gpus", str(num_ranks), "--master_port", str(free_port())]


def pretrain_command(model: str, output: Path, run_folder: Path, num_ranks: int) -> list[str]:
    """Return the command that pretrains a preset on the demo's shards."""
    settings = {
        "ds_config": DS_CONFIG,
        "model": model,
        "data.shards": output / "shards",
        "data.seq_length": 128,
        "train.steps": PRETRAIN_STEPS,
        "train.batch_size": 32,
        "train.micro_batch_size": 16,
        "train.optimizer.lr": LEARNING_RATE[model],
        "train.save_every": SAVE_EVERY,
        "train.eval_every": 50,
        "train.log_every": 10,
        "train.output": run_folder,
    }
    return [*launcher(num_ranks), "engine/pretrain.py", *_options(settings)]


def finetune_command(model: Path, output: Path, num_ranks: int) -> list[str]:
    """Return the command that fine-tunes a classifier of one text."""
    settings = {
        "task": "classification",
        "ds_config": DS_CONFIG,
        "model": model,
        "train_file": REVIEWS["train"],
        "dev_file": REVIEWS["dev"],
        "test_file": REVIEWS["test"],
        "output": output,
        "epochs": FINETUNE_EPOCHS,
        "train.batch_size": 32,
        "train.micro_batch_size": 16,
        "train.optimizer.lr": 5e-4,
    }
    return [*launcher(num_ranks), "finetune/run.py", *_options(settings)]


# --- running them ---------------------------------------------------------------------------------------------------
def run_stage(stage: Stage, environment: dict[str, str], progress: str) -> float:
    """Run a stage, its own progress bars passing through, and return its seconds.

    Raises:
        SystemExit: with the command's exit code where it fails.
    """
    print(f"\n\033[1m[{progress}] {stage.title}\033[0m\n$ {shlex.join(_shown(stage.command))}", flush=True)
    start = time.monotonic()
    if stage.kill_at_step is not None and stage.run_folder is not None:
        reached = killed_at(stage.command, environment, stage.run_folder, stage.kill_at_step)
        if reached is None:
            print("\n-- it finished before it could be killed; the same command again finds nothing to do")
        else:
            print(f"\n-- killed on purpose (SIGKILL) at step {reached}; now the same command again", flush=True)
    code = run_to_end(stage.command, environment)
    if code:
        raise SystemExit(f"error: this stage failed with exit code {code}: {shlex.join(_shown(stage.command))}")
    return time.monotonic() - start


def run_to_end(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command in a process group of its own and return its exit code; nothing of it outlives an interruption."""
    with process_group(command, environment) as process:
        return process.wait()


def killed_at(command: Sequence[str], environment: dict[str, str], run_folder: Path, step: int) -> int | None:
    """Start a command and kill it, as a power cut would, once it has logged a step and saved a checkpoint.

    Returns:
        The last logged step, or None where it ended by itself before.
    """
    with process_group(command, environment) as process:
        while process.poll() is None:
            reached = max(read_metrics(run_folder / "metrics.jsonl").steps, default=0)
            if reached >= step and has_checkpoint(run_folder):
                return reached
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit(f"error: this stage failed with exit code {process.returncode}")
        return None


def has_checkpoint(run_folder: Path) -> bool:
    """Whether a complete checkpoint is there; one that is being written has another name."""
    return any(re.fullmatch(r"step-[1-9]\d*", path.name) for path in run_folder.glob("checkpoints/*"))


@contextlib.contextmanager
def process_group(command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a started command; on leaving, kill what is left of its process group, which is ours alone."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def count_gpus() -> int:
    """Return the CUDA devices that torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def stage_environment(num_gpus: int) -> dict[str, str]:
    """Return the environment of the stages: this interpreter's tools first, a thread per rank."""
    bin_folder = str(Path(sys.executable).parent)
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    if num_gpus == 0:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


# --- all of it ------------------------------------------------------------------------------------------------------
def new_folder(output: Path) -> None:
    """Make an empty folder for the demo, in place of an earlier demo's.

    Raises:
        SystemExit: if the folder holds something that no demo made.
    """
    if output.exists() and any(output.iterdir()):
        if not (output / MARKER).is_file():
            raise SystemExit(f"error: {output} is not empty and no earlier demo made it; name another --output")
        print(f"removing the earlier demo in {output}")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()


def write_unlabelled(reviews: Path, path: Path) -> None:
    """Write the texts of labelled reviews without their labels."""
    lines = ["text_a", *(row["text_a"] for row in read_table(reviews))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all stages and show what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder of all the demo writes")
    output = parser.parse_args(arguments).output
    os.chdir(ROOT)
    num_gpus = count_gpus()
    new_folder(output)
    write_unlabelled(Path(REVIEWS["test"]), output / "unlabelled.tsv")
    stages = build_stages(output, num_ranks=min(2, num_gpus) or 2)
    environment = stage_environment(num_gpus)
    seconds = {
        stage.title: run_stage(stage, environment, f"{number}/{len(stages)}")
        for number, stage in enumerate(stages, start=1)
    }
    print(f"\n\033[1mWhat came out\033[0m\n\n{summarize(output, seconds)}\n")
    print(show_predictions(Path(REVIEWS["test"]), output / "predictions.tsv"))
    print(f"\nloss curves: {plot_losses(output)}   models: {output}/bert/model {output}/gpt2/model")


def _options(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def _shown(command: Sequence[str]) -> list[str]:
    """The command as a user in an activated environment types it."""
    program, *rest = command
    return ["python" if program == sys.executable else Path(program).name, *rest]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; nothing of it is running any more") from None
