"""The command line of a tree of dataclasses, and what becomes of a user's mistake."""

from __future__ import annotations

import contextlib
import errno
import io
from dataclasses import asdict
from pathlib import Path

import pytest

from engine.config.cli import (
    RankLostError,
    RunStopped,
    SharedError,
    UsageError,
    collect,
    nearest,
    parse_config,
    run_command,
)
from engine.config.pretrain import PretrainConfig

BASE = ("--ds_config", "ds.json")


def parse(*argv: str) -> PretrainConfig:
    return parse_config(PretrainConfig, [*BASE, *argv], prog="pretrain.py")


def write(folder: Path, text: str | bytes, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def printed(*argv: str) -> str:
    """What a command that ends by itself writes to stdout; it must exit with 0."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        parse(*argv)
    assert ended.value.code in (0, None)
    return out.getvalue()


def test_defaults():
    assert parse() == PretrainConfig(ds_config="ds.json")


def test_the_later_of_file_and_option_wins(tmp_path):
    file = write(tmp_path, "seed: 5\ntrain: {steps: 70, optimizer: {lr: 1e-3}}\nmasking: {whole_word: true}\n")
    config = parse("--config", file, "--train.steps", "9")
    assert (config.seed, config.train.steps, config.train.optimizer.lr) == (5, 9, 1e-3)
    assert config.masking.whole_word is True and config.train.batch_size == 256
    second = write(tmp_path, "seed: 6\n", "second.yaml")
    config = parse("--config", file, "--config", second)
    assert (config.seed, config.train.steps) == (6, 70)


def test_print_config_round_trip(tmp_path):
    options = ("--train.optimizer.betas", "[0.8, 0.95]", "--arch.num_layers", "3", "--seed=4", "--init_from", "x")
    text = printed(*options, "--print_config")
    again = parse_config(PretrainConfig, ["--config", write(tmp_path, text)], prog="pretrain.py")
    assert again == parse(*options)
    assert again.train.optimizer.betas == (0.8, 0.95)


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (("--train.steps=12",), ("train", "steps", 12)),
        (("--train.optimizer.lr=2e-4",), ("train", "optimizer", "lr", 2e-4)),
        (("--train.optimizer.betas=[0.5,0.6]",), ("train", "optimizer", "betas", (0.5, 0.6))),
        (("--train.optimizer.betas", "[0.5, 0.6]"), ("train", "optimizer", "betas", (0.5, 0.6))),
        (("--seed", "-3"), ("seed", -3)),
        (("--train.optimizer.weight_decay", "-0.5"), ("train", "optimizer", "weight_decay", -0.5)),
        (("--local_rank=1",), ("local_rank", 1)),
        (("--masking.whole_word",), ("masking", "whole_word", True)),
        (("--masking.whole_word", "--seed", "2"), ("masking", "whole_word", True)),
        (("--masking.whole_word=false",), ("masking", "whole_word", False)),
        (("--train.tensorboard", "false"), ("train", "tensorboard", False)),
        (("--arch.causal", "true"), ("arch", "causal", True)),
        (("--train.peak_tflops", "null"), ("train", "peak_tflops", None)),
        (("--model", "./bert=base"), ("model", "./bert=base")),
    ],
    ids=str,
)
def test_values(argv, found):
    tree = asdict(parse(*argv))
    *path, expected = found
    for name in path:
        tree = tree[name]
    assert tree == expected and type(tree) is type(expected)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--train.stepz", "3"), "unknown option --train.stepz; did you mean --train.steps?"),
        (("--train.step", "3"), "unknown option --train.step; did you mean --train.steps?"),  # no abbreviations
        (("--train.optimizer.learning_rat=1",), "unknown option --train.optimizer.learning_rat"),
        (("--sed=1", "--batch_size", "3"), "unknown option --sed; did you mean --seed?\nunknown option --batch_size"),
        (("--train.steps", "many"), "--train.steps: expected int, found many"),
        (("--train.steps", "1.5"), "--train.steps: expected int, found 1.5"),
        (("--train.optimizer.betas", "[0.9]"), "--train.optimizer.betas"),
        (("--masking.whole_word", "perhaps"), "--masking.whole_word"),
        (("--config", "absent.yaml"), "--config absent.yaml: No such file or directory"),
        (("--config", "."), "--config .: Is a directory"),
        (("--config",), "--config"),
        (("--train.steps",), "--train.steps: expected one argument"),
        (("--train", "3"), "--train"),
        (("stray",), "stray"),
    ],
    ids=str,
)
def test_mistakes_on_the_command_line(argv, message):
    with pytest.raises(UsageError) as caught:
        parse(*argv)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  optimizer:\n    lrr: 1\n", "unknown key train.optimizer.lrr; did you mean train.optimizer.lr?"),
        ("a: 1\ntrain: {b: 2}\n", "unknown key a\n--config {file}: unknown key train.b"),
        ("train: [1\n", "--config {file} is not a YAML file"),
        (b"\xff\xfe\x00seed: 1", "--config {file} is not a YAML file"),
        ("- seed\n- 1\n", "expected keys and values at the top, found list"),
        ("", "expected keys and values at the top, found NoneType"),
        ("seed: x\n", "expected int, found x"),
        ("train: 3\n", "--config {file}: train must hold keys and values"),
        ("train:\nseed: 1\n", "--config {file}: train must hold keys and values"),
        ("train: {optimizer: adamw}\n", "--config {file}: train.optimizer must hold keys and values"),
        ("train: {steps: }\n", "train.steps has no value; give one or leave the setting out"),
        ("train: {seed: {steps: 3}}\n", "unknown key train.seed.steps"),
    ],
    ids=str,
)
def test_mistakes_in_a_settings_file(text, message, tmp_path):
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        parse("--config", file)
    assert message.format(file=file) in str(caught.value)


def test_missing_required_option():
    with pytest.raises(UsageError, match="ds_config"):
        parse_config(PretrainConfig, [], prog="pretrain.py")


def test_help_exits_with_0_and_explains_every_option():
    text = printed("--help")
    for words in ("--train.schedule.warmup_ratio", "peak learning rate", "--masking.whole_word", "share of a row's"):
        assert words in text


def test_nearest_and_collect():
    assert nearest("train.stps", ["train.steps", "seed"]) == "; did you mean train.steps?"
    assert nearest("zzzzzz", ["train.steps"]) == ""
    problems: list[str] = []
    assert collect(problems, lambda: 3) == 3
    assert collect(problems, lambda: int("x")) is None and "invalid literal" in problems[0]


def fail(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("rank", "local_rank", "error", "message"),
    [
        (0, 0, UsageError("wrong"), "error: wrong\n"),
        (0, 0, SharedError("wrong"), "error: wrong\n"),
        (1, 1, UsageError("wrong"), ""),  # found before the ranks have met: its neighbour says the same
        (4, 0, UsageError("wrong"), "error on rank 4: wrong\n"),  # another host may lack a file that rank 0's host has
        (4, 0, SharedError("wrong"), ""),
    ],
)
def test_one_rank_of_each_host_tells_a_mistake(rank, local_rank, error, message, monkeypatch, capsys):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert run_command(lambda: fail(error)) == 2
    assert capsys.readouterr().err == message


def test_full_disk_is_a_message(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    assert run_command(lambda: fail(OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"))) == 2
    assert "error: [Errno 28] No space left on device: 'metrics.jsonl'" in capsys.readouterr().err
    with pytest.raises(PermissionError):
        run_command(lambda: fail(PermissionError(errno.EACCES, "Permission denied")))


def test_exit_codes(monkeypatch):
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 3) == 3
    assert run_command(lambda: fail(KeyboardInterrupt())) == 130
    with pytest.raises(RuntimeError):  # not a user's mistake: the traceback is what is wanted
        run_command(lambda: fail(RuntimeError("bug")))
    monkeypatch.setenv("ENGINE_TRACEBACK", "1")
    with pytest.raises(UsageError):
        run_command(lambda: fail(UsageError("wrong")))


@pytest.mark.parametrize(("rank", "told"), [(0, True), (1, False)])
def test_a_run_that_was_asked_to_stop_has_a_code_of_its_own_and_rank_zero_tells(rank, told, monkeypatch, capsys):
    monkeypatch.setenv("RANK", str(rank))
    assert run_command(lambda: fail(RunStopped("SIGUSR1", 12))) == 75
    line = "stopped by SIGUSR1 at step 12, which is saved: the same command goes on from there\n"
    assert capsys.readouterr().err == (line if told else "")


@pytest.mark.parametrize("tell", [True, False])
def test_a_lost_rank_has_a_code_of_its_own_and_is_told_once(tell, capsys):
    assert run_command(lambda: fail(RankLostError("rank 3 is gone", tell=tell))) == 76
    assert capsys.readouterr().err == ("error: rank 3 is gone\n" if tell else "")


STAGES = "[{steps: 3, seq_len: 5}, {steps: 2, schedule: {nam: linear}, masking: {rate: 0.3}, optimizer: {name: lamb}}]"


@pytest.mark.parametrize("in_file", [True, False])
def test_unknown_keys_in_a_list_are_named_by_its_number(in_file, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"ds_config: a\nstages: {STAGES}\n")
    argv = ["--config", str(file)] if in_file else ["--ds_config", "a", "--stages", STAGES]
    where = f"--config {file}: " if in_file else ""
    with pytest.raises(UsageError) as caught:
        parse_config(PretrainConfig, argv, "x")
    assert str(caught.value).splitlines() == [
        f"{where}unknown key stages.0.seq_len; did you mean seq_length?",
        f"{where}unknown key stages.1.schedule.nam; did you mean schedule.name?",
        f"{where}unknown key stages.1.masking.rate; masking.rate is a setting of the whole run",
        f"{where}unknown key stages.1.optimizer.name; train.optimizer.name is a setting of the whole run",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train.peak_tflops", "x"], "--train.peak_tflops: expected float, found x (see --help)"),
        (["--train.optimizer.betas", "[0.9]"], "--train.optimizer.betas: expected tuple[float, float], found [0.9]"),
        (["--train.batch_ramp", "7"], "--train.batch_ramp: expected dict, found 7"),
        (["--stages", "[{"], "--stages is not YAML: "),
        (["--stages", "[{steps: x}]"], "--steps: expected int, found x"),
    ],
)
def test_values_of_a_wrong_type(argv, message):
    with pytest.raises(UsageError) as caught:
        parse_config(PretrainConfig, ["--ds_config", "a", *argv], "x")
    assert message in str(caught.value)
