"""Tiny model folders, labelled files and the fine-tuning command, for the tests of fine-tuning."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.config.arch import ArchConfig
from engine.convert.huggingface import to_huggingface
from engine.convert.model_folder import write_model_folder
from engine.models.heads import CausalLMHead, MaskedLMHead
from engine.models.model import build_model
from preprocess.tokenizer import train_wordpiece
from tests import commands

FINETUNE = commands.REPOSITORY / "finetune" / "run.py"
FP32 = commands.DS_CONFIGS / "fp32.json"
ENGLISH = (
    "apple bread cloud dance earth flame grape house island jungle kettle lemon mountain night ocean paper queen river "
    "stone train under valley window yellow zebra"
)
WORDS = [*ENGLISH.split(), *"天地人山水火木金土日月星"]
BERT = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, "max_positions": 64}
PRE_NORM_BERT = {**BERT, "norm_position": "pre"}
GPT2 = {
    **BERT,
    "causal": True,
    "norm_position": "pre",
    "num_segments": 0,
    "embedding_norm": False,
    "activation": "gelu_tanh",
    "norm_eps": 1e-5,
}


def write_pretrained(folder: Path, fields: dict[str, object], seed: int = 5) -> Path:
    """A model folder as pretraining leaves it, with random weights."""
    tokenizer = train_wordpiece(WORDS * 3, vocab_size=150)
    tokenizer.save(folder)
    arch = ArchConfig(vocab_size=tokenizer.vocab_size, init_std=0.1, **fields)  # type: ignore[arg-type]
    name, head = ("lm", CausalLMHead(arch)) if arch.causal else ("mlm", MaskedLMHead(arch))
    model = build_model(arch, {name: head}, seed)
    config, tensors = to_huggingface(model.state_dict(), arch, [name], tokenizer.special_ids)
    write_model_folder(folder, config, tensors)
    return folder


def write_table(path: Path, header: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> Path:
    """A tab-separated file."""
    lines = ["\t".join(cells) for cells in [*([header] if header else []), *rows]]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def sentence(number: int, length: int = 6) -> str:
    """Words that differ from number to number."""
    return " ".join(WORDS[(number * 7 + place * place * 3 + number * place) % len(WORDS)] for place in range(length))


def single_rows(count: int, labels: Sequence[str] = ("no", "yes"), start: int = 0) -> list[tuple[str, str]]:
    """(label, text) of texts of different lengths."""
    numbers = range(start, start + count)
    return [(labels[number % len(labels)], sentence(number, 3 + number % 9)) for number in numbers]


def pair_rows(count: int, labels: Sequence[str] = ("0", "1", "2")) -> list[tuple[str, str, str]]:
    """(label, text, text) of pairs."""
    return [
        (labels[number % len(labels)], sentence(number, 2 + number % 5), sentence(number + 50, 3 + number % 4))
        for number in range(count)
    ]


def options(model: Path, train: Path, output: Path, *more: str | Path, dev: Path | None = None) -> list[str | Path]:
    """Arguments of a short run."""
    return [
        "--ds_config", FP32, "--model", model, "--train_file", train, "--dev_file", dev or train, "--output", output,
        "--max_length", "40", "--train.batch_size", "8", "--train.micro_batch_size", "4", "--train.log_every", "1",
        "--train.tensorboard", "false", "--train.optimizer.lr", "3e-3", *more,
    ]  # fmt: skip


def finetune(arguments: Sequence[str | Path], ranks: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command, which must end well."""
    done = commands.run(FINETUNE, arguments, ranks)
    assert done.returncode == 0, done.stdout
    return done
