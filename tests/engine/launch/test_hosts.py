"""The hosts of a launch: DeepSpeed's choice, with errors where it goes on in silence."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from engine.config.cli import UsageError
from engine.launch import hosts
from engine.launch.__main__ import decodes, is_dry_run, launch, parse_options, refuse_harmful, run_deepspeed
from engine.launch.hosts import Hosts, choose_hosts, is_this_host
from tests import commands

pytest.importorskip("deepspeed")


@pytest.fixture
def hostfile(tmp_path: Path) -> str:
    (tmp_path / "hosts").write_text("# two kinds\nnode-0 slots=4\nnode-1 slots=4\n\nnode-2 slots=2\n")
    return str(tmp_path / "hosts")


def chosen(*argv: str) -> Hosts:
    return choose_hosts(parse_options([*argv, "script.py"]))


@pytest.mark.parametrize(
    ("options", "slots"),
    [
        ([], {"node-0": [0, 1, 2, 3], "node-1": [0, 1, 2, 3], "node-2": [0, 1]}),
        (["--num_nodes", "2"], {"node-0": [0, 1, 2, 3], "node-1": [0, 1, 2, 3]}),
        (["--num_nodes", "2", "--num_gpus", "3"], {"node-0": [0, 1, 2], "node-1": [0, 1, 2]}),
        (["--include", "node-2@node-0:1,3"], {"node-0": [1, 3], "node-2": [0, 1]}),
        (["--exclude", "node-1@node-0:0"], {"node-0": [1, 2, 3], "node-2": [0, 1]}),
    ],
)
def test_filters(hostfile, options, slots):
    found = chosen("--hostfile", hostfile, *options)
    assert found.slots == slots and found.remote
    sizes = [len(devices) for devices in slots.values()]
    assert found.world_size == sum(sizes)
    assert [list(found.ranks(host)) for host in slots][1] == list(range(sizes[0], sizes[0] + sizes[1]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num_nodes", "4"], "--num_nodes is 4, but .*hosts has 3 host"),
        (["--num_gpus", "3"], "--num_gpus is 3, but in .*hosts node-2 has 2 slots"),
        (["--num_gpus", "0"], "--num_gpus is 0; it must be at least 1"),
        (["--include", "node-9"], "Hostname 'node-9' not found in hostfile"),
        (["--include", "node-2:5"], "No slot '5' specified on host 'node-2'"),
        (["--exclude", "node-0@node-1@node-2"], "--exclude node-0@node-1@node-2 leaves no device of"),
        (["--include", "node-0", "--num_gpus", "1"], "--include and --exclude do not go with --num_nodes and --num"),
        (["--include", "node-0", "--exclude", "node-1"], "mutually exclusive"),
    ],
)
def test_what_deepspeed_would_take_as_it_is(hostfile, options, words):
    with pytest.raises(UsageError, match=words):
        chosen("--hostfile", hostfile, *options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a;b slots=1\nc slots=1\n", "'a;b' is no name or address of a host"),
        ("-oProxyCommand=x slots=1\n", "'-oProxyCommand=x' is no name or address of a host"),
        ("a slots=0\n", "a has slots=0; remove it"),
        ("a slots=1\na slots=2\n", "multiple entries for a"),
        ("a\n", "bad entry: a"),
        ("\n", "Hostfile is empty"),
    ],
)
def test_hostfiles_that_are_none(tmp_path, text, words):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UsageError, match=words):
        chosen("--hostfile", str(tmp_path / "hosts"))


def test_a_hostfile_that_is_not_there_is_an_error():
    with pytest.raises(UsageError, match=r"--hostfile none: no such file \(DeepSpeed would go on with this host alone"):
        chosen("--hostfile", "none")


def test_without_a_hostfile_this_host_runs():
    found = chosen("--num_gpus", "3")
    assert found.slots == {"localhost": [0, 1, 2]} and not found.remote
    with pytest.raises(UsageError, match="--num_nodes is 2, but there is no hostfile; give --hostfile"):
        chosen("--num_nodes", "2")


def test_one_host_alone_is_reached_unless_it_is_this_one(hostfile, monkeypatch):
    options = parse_options(["--hostfile", hostfile, "--include", "node-1", "script.py"])
    assert choose_hosts(options).remote and options.force_multi
    monkeypatch.setattr(hosts, "is_this_host", lambda name: name == "node-1")
    options = parse_options(["--hostfile", hostfile, "--include", "node-1", "script.py"])
    assert not choose_hosts(options).remote and not options.force_multi
    options = parse_options(["--hostfile", hostfile, "--no_ssh", "--node_rank", "1", "script.py"])
    assert not choose_hosts(options).remote


def test_this_host():
    assert is_this_host("localhost") and is_this_host("127.0.0.1") and not is_this_host("192.0.2.1")
    assert not is_this_host("no such host")


def test_options_of_deepspeed_and_ours_in_any_order():
    options = parse_options(
        ["--num_gpus", "2", "--export", "A", "--dry_run", "--export", "B", "s.py", "--dry_run", "x"]
    )
    assert (options.num_gpus, options.export, options.dry_run) == (2, ["A", "B"], True)
    assert (options.user_script, options.user_args) == ("s.py", ["--dry_run", "x"])
    with pytest.raises(UsageError, match="a bare -- among the arguments would be lost on the way"):
        parse_options(["s.py", "--", "x"])
    with pytest.raises(UsageError, match="--autotuning changes batch sizes in the DeepSpeed file"):
        parse_options(["--autotuning", "run", "s.py"])


def test_a_dry_run_may_be_asked_for_on_either_side():
    options = parse_options(["s.py"])
    for arguments in (["--dry_run"], ["--seed", "1", "--dry_run", "--x"], ["--dry_run=true"], ["--dry_run", "true"]):
        assert is_dry_run(options, arguments)
    for arguments in ([], ["--seed", "1"], ["--dry_run", "false"], ["--dry_run=false"]):
        assert not is_dry_run(options, arguments)
    assert is_dry_run(parse_options(["--dry_run", "s.py"]), [])


TWO = Hosts({"node-0": [0], "node-1": [0]}, remote=True)


def test_only_our_entries_get_arguments_that_shells_would_change(monkeypatch, tmp_path):
    ours = parse_options([str(commands.PRETRAIN), "--train.output", "a b"])
    assert decodes(ours)
    refuse_harmful(ours, TWO)
    refuse_harmful(parse_options(["--module", "finetune.run", "--output", "a b"]), TWO)
    theirs = parse_options(["theirs.py", "--x", "a b", "$y"])
    assert not decodes(theirs)
    with pytest.raises(
        UsageError, match=r"theirs.py gets arguments that the hosts' shells would change: 'a b', '\$y'; "
    ):
        refuse_harmful(theirs, TWO)
    refuse_harmful(theirs, Hosts({"localhost": [0]}, remote=False))  # no shell is in between


def test_paths_that_deepspeed_gives_to_a_shell(monkeypatch, tmp_path):
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=r"the working folder is '.*my runs': DeepSpeed puts it into the command line"):
        refuse_harmful(parse_options(["s.py"]), TWO)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"SCRIPT is '\./a;b\.py': DeepSpeed puts it into"):
        refuse_harmful(parse_options(["./a;b.py"]), TWO)
    with pytest.raises(UsageError, match=r"--venv_script is 'x y': DeepSpeed puts it into"):
        refuse_harmful(parse_options(["--venv_script", "x y", "s.py"]), TWO)
    with pytest.raises(UsageError, match=r"--master_addr 'a;b' is no name or address of a host"):
        refuse_harmful(parse_options(["--master_addr", "a;b", "s.py"]), TWO)


@pytest.fixture
def deepspeed_runner(monkeypatch):
    """DeepSpeed's launcher, put back as it was after the test."""
    from deepspeed.launcher import runner

    for name in ("parse_args", "main", "DEEPSPEED_ENVIRONMENT_NAME"):
        monkeypatch.setattr(runner, name, getattr(runner, name))
    for name in ("PATH", "DS_ENV_FILE", "MLFLOW_TRACKING_TOKEN", "NCCL_DEBUG"):
        monkeypatch.setenv(name, "/bin")
    return runner


def test_what_deepspeed_cannot_do_is_told_without_a_traceback(deepspeed_runner, tmp_path):
    def fail(options):
        raise RuntimeError("launcher 'pdsh' not installed.")

    deepspeed_runner.main = fail
    with pytest.raises(
        UsageError, match=r"^launcher 'pdsh' not installed\.: apt-get install pdsh, or another --launch"
    ):
        run_deepspeed(parse_options(["s.py"]), tmp_path / "env")


def test_deepspeed_gets_our_file_and_no_secret_and_its_code_is_ours(deepspeed_runner, tmp_path):
    def end(options):
        assert deepspeed_runner.parse_args(options) is options and options.user_script == "s.py"
        assert deepspeed_runner.DEEPSPEED_ENVIRONMENT_NAME == os.environ["DS_ENV_FILE"] == str(tmp_path / "env")
        assert "MLFLOW_TRACKING_TOKEN" not in os.environ and "NCCL_DEBUG" in os.environ
        assert os.environ["PATH"] == f"{Path(sys.executable).parent}:/bin"
        raise SystemExit(75)

    options = parse_options(["s.py"])
    deepspeed_runner.main = end
    assert run_deepspeed(options, tmp_path / "env") == 75
    deepspeed_runner.main = lambda options: None
    assert run_deepspeed(options, None) == 0


def test_a_foreign_script_has_no_dry_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    with pytest.raises(UsageError, match=r"--dry_run needs engine/pretrain.py or finetune/run.py, not theirs.py"):
        launch(["--num_gpus", "1", "--dry_run", "theirs.py"])
