"""The file of --train.evaluate_with: what it chooses, and every message that it can earn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.config.cli import UsageError
from engine.downstream.plan import DownstreamPlan, read_plan
from engine.downstream.process import clean_environment, tail


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    files = {name: str(tmp_path / name) for name in ("ds_config", "train_file", "dev_file")}
    for file in files.values():
        Path(file).touch()
    return {**files, "epochs": 2, "train": {"batch_size": 8}}


def read(folder: Path, tree: Any) -> DownstreamPlan:
    file = folder / "plan.yaml"
    file.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return read_plan(str(file))


def test_a_whole_plan(tmp_path: Path, task: dict[str, Any]) -> None:
    plan = read(tmp_path, {"every": 20, "environment": {"A": "1"}, "tasks": {"toy-1": task}})
    assert plan == DownstreamPlan(every=20, environment={"A": "1"}, tasks={"toy-1": task})
    assert [step for step in range(0, 71, 5) if plan.chooses(step, 65)] == [20, 40, 60, 65]
    single = read(tmp_path, {"at": [0, 30], "last": False, "keep_models": True, "tasks": {"toy": task}})
    assert [step for step in range(0, 71, 5) if single.chooses(step, 65)] == [0, 30]
    assert single.keep_models and not plan.keep_models
    assert plan.chosen(65) == [20, 40, 60, 65] and single.chosen(65) == [0, 30] and single.chosen(20) == [0]
    assert plan.timeout == 86400 and read(tmp_path, {"at": [1], "timeout": 60, "tasks": {"toy": task}}).timeout == 60
    plan.refuse_absent_files()


def test_digest_follows_the_settings(tmp_path: Path, task: dict[str, Any]) -> None:
    first = read(tmp_path, {"every": 20, "tasks": {"toy": task}})
    assert read(tmp_path, {"at": [1], "tasks": {"toy": dict(reversed(task.items()))}}).digest("toy") == first.digest(
        "toy"
    )
    assert read(tmp_path, {"every": 20, "tasks": {"toy": {**task, "epochs": 3}}}).digest("toy") != first.digest("toy")


@pytest.mark.parametrize(
    ("plan", "save_every", "wrong"),
    [
        (DownstreamPlan(every=20), 10, []),
        (DownstreamPlan(every=20), 20, []),
        (DownstreamPlan(every=20), 15, [20]),
        (DownstreamPlan(every=200), 10, [200]),
        (DownstreamPlan(at=(0, 10, 65)), 10, []),
        (DownstreamPlan(at=(10, 15, 70)), 10, [15, 70]),
        (DownstreamPlan(at=(65,)), 0, []),
        (DownstreamPlan(at=(10,)), 0, [10]),
    ],
)
def test_steps_without_a_checkpoint(plan: DownstreamPlan, save_every: int, wrong: list[int]) -> None:
    text = (
        f"has no checkpoint: train.save_every is {save_every} and the last step is 65; choose multiples of it, or the"
    )
    found = plan.problems(save_every, 65)
    assert [message.split()[2] for message in found] == [str(step) for step in wrong]
    assert all(text in message for message in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evry": 3}, "unknown key evry; did you mean every?"),
        ({"every": 0}, "every is 0; it must be a number of steps, at least 1"),
        ({"every": "often"}, "every is 'often'; it must be a number of steps"),
        ({"at": [10]}, "give either every, as every: 1000, or at, as at: [1000, 5000]"),
        ({"every": None, "at": 10}, "at is 10; it must be a list of steps"),
        ({"at": [-1]}, "at is [-1]; it must be a list of steps"),
        ({"last": "yes please"}, "last is 'yes please'; it must be true or false"),
        ({"environment": {"A": 1}}, "environment must map names to texts, such as CUDA_VISIBLE_DEVICES"),
        ({"timeout": 0}, "timeout is 0; it must be a number of seconds above 0"),
        ({"timeout": True}, "timeout is True; it must be a number of seconds above 0"),
        ({"tasks": {}}, "tasks must map names to settings of finetune/run.py"),
        ({"tasks": {"a b": {}}}, "tasks.a b: its name must be of letters, digits, _ and -"),
        ({"tasks": {"toy": 3}}, "tasks.toy: expected settings of finetune/run.py"),
        ({"tasks": {"toy": {}}}, "tasks.toy: ds_config is missing"),
        ({"task": {"model": "x"}}, "tasks.toy: model is given; the run sets it"),
        ({"task": {"train": {"output": "x"}}}, "tasks.toy: train.output is given; the run sets it"),
        ({"task": {"dev_file": 3}}, "tasks.toy: dev_file is 3; it must be the path of a file"),
    ],
    ids=str,
)
def test_refused(tmp_path: Path, task: dict[str, Any], change: dict[str, Any], message: str) -> None:
    changed = {**task, **change.pop("task", {})}
    tree = {"every": 20, "tasks": {"toy": changed}, **change}
    with pytest.raises(UsageError) as caught:
        read(tmp_path, {key: value for key, value in tree.items() if value is not None})
    assert f"evaluate_with {tmp_path / 'plan.yaml'}: {message}" in str(caught.value)


def test_all_problems_at_once_and_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, {"evry": 1, "last": 3})
    assert len(str(caught.value).splitlines()) == 4
    for content, message in [
        ("- 1", "expected keys and values at the top, found list"),
        ("a: [", "is not a YAML file"),
    ]:
        with pytest.raises(UsageError, match=message):
            read(tmp_path, content)
    with pytest.raises(UsageError, match="evaluate_with absent: No such file or directory"):
        read_plan("absent")


def test_files_that_are_not_there(tmp_path: Path, task: dict[str, Any]) -> None:
    tasks = {"one": {**task, "dev_file": "absent.tsv"}, "two": {**task, "test_file": str(tmp_path)}}
    plan = read(tmp_path, {"every": 20, "tasks": tasks})
    with pytest.raises(UsageError) as caught:
        plan.refuse_absent_files()
    assert str(caught.value) == (
        "evaluate_with: tasks.one: dev_file absent.tsv: no such file\n"
        f"evaluate_with: tasks.two: test_file {tmp_path}: no such file"
    )


def test_environment_of_one_rank() -> None:
    environ = {
        "PATH": "/bin", "RANK": "1", "WORLD_SIZE": "8", "LOCAL_SIZE": "4", "SLURM_PROCID": "3",
        "OMPI_COMM_WORLD_RANK": "3",
        "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "a", "MASTER_PORT": "1", "GROUP_RANK": "0",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }  # fmt: skip
    found = clean_environment(environ, {"CUDA_VISIBLE_DEVICES": "7", "A": "b"})
    assert found == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "7", "A": "b"}


def test_end_of_a_log() -> None:
    assert tail("one\ntwo\n 0%\r 50%\rstep 3\n\nlast\n", 2) == "  step 3\n  last"
