"""The commands and manifests of docs/launching.md are ones that work."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.config.cli import parse_config
from engine.config.pretrain import PretrainConfig
from engine.launch.__main__ import parse_options
from engine.launch.environment import complete_environment

pytest.importorskip("deepspeed")
SCRIPT = "engine/pretrain.py"


def blocks(repository: Path, language: str) -> list[str]:
    text = (repository / "docs" / "launching.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The words of every command that starts the script."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if SCRIPT in line]


def settings(words: list[str]) -> PretrainConfig:
    """What the script makes of the words after its name."""
    return parse_config(PretrainConfig, words[words.index(SCRIPT) + 1 :], prog="pretrain.py")


def test_every_command_has_options_that_there_are(repository):
    found = [words for language in ("sh", "bash") for text in blocks(repository, language) for words in commands(text)]
    assert len(found) >= 11
    for words in found:
        config = settings(words)
        assert (repository / config.ds_config).is_file()
        if "engine.launch" in words:
            options = parse_options(words[words.index("engine.launch") + 1 :])
            assert options.user_script == SCRIPT and options.hostfile == "hosts"
    assert [config.dry_run for config in map(settings, found)][:3] == [False, True, True]


def test_the_batch_script_is_one(repository):
    (script,) = blocks(repository, "bash")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert script.startswith("#!/bin/bash\n#SBATCH ")


def test_the_pods_of_the_indexed_job_are_ranks_of_one_run(repository):
    service, job = yaml.safe_load_all(blocks(repository, "yaml")[0])
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert settings(container["command"]).model == "bert-large"
    assert pod["restartPolicy"] == "OnFailure" and job["spec"]["backoffLimit"] == 12 * job["spec"]["parallelism"]
    given: dict[str, Any] = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert job["spec"]["completionMode"] == "Indexed" and job["spec"]["completions"] == job["spec"]["parallelism"] == 4
    assert given["WORLD_SIZE"] == str(job["spec"]["completions"])
    # a pod of an Indexed Job is called JOB-INDEX, within the subdomain of a headless service
    assert given["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert service["metadata"]["name"] == pod["subdomain"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for index in range(4):
        environ = {**given, "RANK": str(index)}
        assert complete_environment(environ) == []
        assert (environ["RANK"], environ["LOCAL_RANK"], environ["LOCAL_WORLD_SIZE"]) == (str(index), "0", "1")


def test_the_pytorchjob_starts_as_many_commands_as_replicas(repository):
    job = yaml.safe_load(blocks(repository, "yaml")[1])
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"]["replicas"] == 1 and replicas["Worker"]["template"] == replicas["Master"]["template"]
    for kind in replicas.values():
        (container,) = kind["template"]["spec"]["containers"]
        assert container["name"] == "pytorch" and settings(container["command"]).model == "bert-large"
