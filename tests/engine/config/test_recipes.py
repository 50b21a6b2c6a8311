"""Each recipe: its numbers are its source's, it fits 1 to 64 ranks, and it runs, narrower, from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.config.cli import UsageError, parse_config
from engine.config.pretrain import PretrainConfig
from engine.config.recipes import RECIPE_FOLDER, recipe_names
from engine.train.resolve import Resolved, resolve
from tests import commands

# By hand from the sources that the files name: model, layers and width, all tokens of the run, and
# (step from 0, row length, rows, rate) of single steps.
EXPECTED: dict[str, tuple[str, tuple[int, int], int, list[tuple[int, int, int, float]]]] = {
    "bert-base": (
        "BertForPreTraining", (12, 768), 900_000 * 256 * 128 + 100_000 * 256 * 512,
        [
            (0, 128, 256, 1e-8), (9_999, 128, 256, 1e-4), (10_000, 128, 256, 9.9e-5), (900_000, 512, 256, 1e-5),
            (999_999, 512, 256, 1e-10),
        ],
    ),
    "bert-large-lamb": (
        "BertForPreTraining", (24, 1024), 7_038 * 65_536 * 128 + 1_563 * 32_768 * 512,
        [
            (0, 128, 65_536, 6e-3 / 2001), (2_000, 128, 65_536, 6e-3),
            (2_001, 128, 65_536, 6e-3 * (1 - 2_001 / 7_038) ** 0.5),
            (7_037, 128, 65_536, 6e-3 * (1 / 7_038) ** 0.5),
            (7_038, 512, 32_768, 4e-3 / 201), (7_238, 512, 32_768, 4e-3),
            (7_239, 512, 32_768, 4e-3 * (1 - 201 / 1_563) ** 0.5), (8_600, 512, 32_768, 4e-3 / 1_563**0.5),
        ],
    ),
    "bert-24h": (
        "RobertaPreLayerNormForMaskedLM", (24, 1024), 36_830 * 4_096 * 128,
        [(0, 128, 4_096, 1e-3 / 2210), (2_209, 128, 4_096, 1e-3), (36_829, 128, 4_096, 1e-3 / 34_621)],
    ),
    "roberta-wwm-chinese-base": (
        "BertForMaskedLM", (12, 768), 1_000_000 * 384 * 512,
        [(0, 512, 384, 1e-8), (9_999, 512, 384, 1e-4), (500_000, 512, 384, 5e-5)],
    ),
    "roberta-wwm-chinese-large": (
        "BertForMaskedLM", (24, 1024), 2_000_000 * 512 * 512,
        [(9_999, 512, 512, 1e-4), (1_000_000, 512, 512, 5e-5)],
    ),
    "roberta-wwm-chinese-giant": (
        "BertForMaskedLM", (36, 1024), 2_000_000 * 512 * 512,
        [(9_999, 512, 512, 5e-5), (19_999, 512, 512, 1e-4), (1_000_000, 512, 512, 5e-5)],
    ),
    "gpt2-124m": (
        "GPT2LMHeadModel", (12, 768), 18_865 * 524_288, [(699, 1024, 512, 6e-4), (9_782, 1024, 512, 3e-4)],
    ),
    "gpt2-355m": (
        "GPT2LMHeadModel", (24, 1024), 60_000 * 524_288, [(699, 1024, 512, 3e-4), (20_466, 1024, 512, 2.25e-4)],
    ),
    "gpt2-774m": (
        "GPT2LMHeadModel", (36, 1280), 286_102 * 524_288, [(699, 1024, 512, 2.5e-4), (143_401, 1024, 512, 1.25e-4)],
    ),
    "gpt2-1.5b": (
        "GPT2LMHeadModel", (48, 1600), 32_000 * 1_048_576,
        [(699, 1024, 1024, 6e-4), (16_350, 1024, 1024, 3.3e-4), (31_999, 1024, 1024, 6e-5)],
    ),
}  # fmt: skip
PARAMETERS = {  # millions, of the vocabulary that the source has, without heads
    "bert-base": (30_522, 109), "bert-large-lamb": (30_522, 334), "bert-24h": (30_522, 334),
    "roberta-wwm-chinese-base": (21_128, 102), "roberta-wwm-chinese-large": (21_128, 324),
    "roberta-wwm-chinese-giant": (21_128, 476),
    "gpt2-124m": (50_257, 124), "gpt2-355m": (50_257, 355), "gpt2-774m": (50_257, 774), "gpt2-1.5b": (50_257, 1_558),
}  # fmt: skip
NARROW = ["--arch.hidden_size", "32", "--arch.num_heads", "2", "--arch.intermediate_size", "48"]
SMALL = [
    "--train.save_every", "0", "--train.log_every", "1", "--train.eval_every", "0", "--train.eval_rows", "2",
    "--train.batch_size", "2", "--train.micro_batch_size", "1", "--train.tensorboard", "false",
]  # fmt: skip


def parse(name: str, shards: Path, *more: str) -> PretrainConfig:
    ds_config = str(commands.DS_CONFIGS / "fp32.json")
    argv = ["--config", name, "--ds_config", ds_config, "--data.shards", str(shards), *more]
    return parse_config(PretrainConfig, argv, prog="pretrain.py")


@pytest.fixture(scope="module")
def resolved(shards: Path) -> Callable[[str], Resolved]:
    """A recipe on the small shards, for one rank."""
    return lambda name: resolve(parse(name, shards))


def test_all_are_tested() -> None:
    assert recipe_names() == sorted(EXPECTED) == sorted(PARAMETERS)


@pytest.mark.parametrize("name", EXPECTED)
def test_numbers_are_those_of_the_source(name: str, resolved: Callable[[str], Resolved]) -> None:
    found = resolved(name)
    _, sizes, tokens, steps = EXPECTED[name]
    assert (found.arch.num_layers, found.arch.hidden_size) == sizes
    assert sum(length * rows for length, rows in found.timeline.rows_before(found.timeline.steps).items()) == tokens
    for step, length, rows, rate in steps:
        settings = found.timeline.at(step)
        assert (settings.seq_length, settings.batch_size) == (length, rows)
        assert settings.lr == pytest.approx(rate, rel=1e-4), step
    gpt2 = name.startswith("gpt2")
    assert found.arch.head_size == 64
    assert found.arch.intermediate_size == 4 * found.arch.hidden_size
    assert (found.arch.hidden_dropout, found.arch.attention_dropout) == ((0.0 if gpt2 else 0.1), 0.0)
    assert found.config.masking.whole_word == ("wwm" in name)
    objective = "mlm,nsp" if name in ("bert-base", "bert-large-lamb") else "lm" if gpt2 else "mlm"
    assert found.objective.name == objective
    optimizer = found.timeline.at(0).optimizer
    assert optimizer.name == ("lamb" if name == "bert-large-lamb" else "adamw")
    assert optimizer.betas == ((0.9, 0.95) if gpt2 else (0.9, 0.98) if name == "bert-24h" else (0.9, 0.999))
    assert (optimizer.eps, optimizer.weight_decay) == ((1e-8, 0.1) if gpt2 else (1e-6, 0.01))


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes(name: str, resolved: Callable[[str], Resolved]) -> None:
    """Counted by hand from the architecture, not by our modules."""
    arch, (vocab, millions) = resolved(name).arch, PARAMETERS[name]
    width, inner = arch.hidden_size, arch.intermediate_size
    layer = 4 * width * width + 4 * width + 2 * width * inner + inner + width + 4 * width
    norms = 2 * width * (arch.embedding_norm + (arch.norm_position == "pre"))
    embeddings = (vocab + arch.max_positions + arch.num_segments) * width
    assert round((arch.num_layers * layer + norms + embeddings) / 1e6) == millions


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("ranks", [1, 8, 64])
def test_batches_fit_any_number_of_ranks(name: str, ranks: int, resolved: Callable[[str], Resolved]) -> None:
    assert [text for shape in resolved(name).timeline.shapes(ranks) for text in shape.problems()] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_not_in_a_recipe(name: str) -> None:
    text = (RECIPE_FOLDER / f"{name}.yaml").read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert all(any(line.startswith(f"# {part}: ") for line in head) for part in ("Source", "Shards", "For"))
    tree = yaml.safe_load(text)
    assert not tree.keys() & {"ds_config", "init_from", "seed", "local_rank"}
    assert "shards" not in tree["data"] and "output" not in tree["train"]
    assert max(len(line) for line in text.splitlines()) <= 120


def test_a_file_of_that_name_wins(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("bert-base", shards).train.steps == 1_000_000
    (tmp_path / "bert-base").write_text("train: {steps: 7}\n")
    assert parse("bert-base", shards).train.steps == 7
    assert parse_config(PretrainConfig, ["--config=gpt2-1.5b", "--ds_config", "f"], prog="p").model == "gpt2-xl"


def test_later_options_win(shards: Path) -> None:
    config = parse("gpt2-124m", shards, "--train.optimizer.lr", "3e-4", "--train.micro_batch_size", "64")
    assert (config.train.optimizer.lr, config.train.micro_batch_size, config.train.batch_size) == (3e-4, 64, 512)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert-bas", "--config bert-bas: neither a file nor a recipe; did you mean bert-base?"),
        ("gpt2-1.5", "--config gpt2-1.5: neither a file nor a recipe; did you mean gpt2-1.5b?"),
        ("qqq", "--config qqq: neither a file nor a recipe; the recipes are bert-24h, bert-base, bert-large-lamb, gpt"),
    ],
)
def test_misspelt_names(name: str, message: str, shards: Path) -> None:
    with pytest.raises(UsageError) as caught:
        parse(name, shards)
    assert message in str(caught.value)


def test_help_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(PretrainConfig, ["--help"], prog="pretrain.py")
    shown = "".join(capsys.readouterr().out.split())
    assert "orarecipe:" + ",".join(recipe_names()) in shown


def narrow_command(name: str, shards: Path, run: Path) -> list[str]:
    """A recipe with two steps a stage and all its layers and lengths, but narrow."""
    tree: dict[str, Any] = yaml.safe_load((RECIPE_FOLDER / f"{name}.yaml").read_text())
    more = ["--train.output", str(run), *NARROW, *SMALL]
    if "stages" in tree:
        stages = [{**stage, "steps": 2, "batch_size": 2, "micro_batch_size": 1} for stage in tree["stages"]]
        more += ["--stages", json.dumps(stages)]
    else:
        more += ["--train.steps", "2"]
    if "length_ramp" in tree["data"]:
        more += ["--data.length_ramp", json.dumps({1: min(tree["data"]["length_ramp"].values())})]
    ds_config = str(commands.DS_CONFIGS / "fp32.json")
    return ["--config", name, "--ds_config", ds_config, "--data.shards", str(shards), *more]


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All recipes, run one after another by the entry's own main in one process, which imports torch once."""
    folder = tmp_path_factory.mktemp("recipes")
    argvs = [narrow_command(name, shards, folder / name) for name in EXPECTED]
    (folder / "argvs.json").write_text(json.dumps(argvs))
    program = (
        "import json, sys; from engine.pretrain import main\n"
        "sys.exit(max(main(argv) for argv in json.load(open(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "argvs.json")],
        cwd=commands.REPOSITORY, env=commands.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    yield folder


@pytest.mark.parametrize("name", EXPECTED)
def test_two_steps_of_each_stage(name: str, runs: Path) -> None:
    run, (architecture, (layers, _), _, steps) = runs / name, EXPECTED[name]
    assert (run / "FINISHED").is_file()
    lines = [line for line in commands.metrics(run) if "loss" in line]
    assert [line["step"] for line in lines] == ([1, 2, 3, 4] if name == "bert-large-lamb" else [1, 2])
    assert all(0 < line["loss"] < 20 and line["grad_norm"] > 0 for line in lines)
    lengths = [line["seq_length"] for line in lines if "seq_length" in line]
    assert lengths == {"bert-base": [128, 512], "bert-large-lamb": [128, 128, 512, 512]}.get(name, [])
    transformers = pytest.importorskip("transformers")
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    theirs, report = getattr(transformers, architecture).from_pretrained(run / "model", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.num_hidden_layers == layers
    longest = max(length for _, length, _, _ in steps)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    batch = tokenizer("a house " * longest, return_tensors="pt", truncation=True, max_length=longest)
    assert batch["input_ids"].shape == (1, longest)
    assert all(value.isfinite().all() for value in theirs(**batch).values() if hasattr(value, "isfinite"))
