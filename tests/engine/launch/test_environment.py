"""What launchers say in the environment, under the names that torch reads; what hangs elsewhere is an error here."""

from __future__ import annotations

import re

import pytest

from engine.config.cli import UsageError
from engine.launch.environment import complete_environment, expand_hosts, slurm_port, tasks_per_node

# what srun --nodes 2 --ntasks 3 sets for its last task, in a job of 4 nodes (Slurm 23.11, the variables that matter)
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NODELIST": "gpu[08-11]",
    "SLURM_TASKS_PER_NODE": "2(x4)",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "gpu[09-10]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def completed(environ: dict[str, str]) -> dict[str, str]:
    """What is added to or changed in an environment."""
    after = dict(environ)
    complete_environment(after)
    return {name: value for name, value in after.items() if environ.get(name) != value}


def problem(environ: dict[str, str]) -> str:
    """The error that an environment is; it stays as it was."""
    before = dict(environ)
    with pytest.raises(UsageError) as raised:
        complete_environment(environ)
    assert environ == before
    return str(raised.value)


def test_no_launcher_is_one_rank():
    assert completed({"PATH": "/bin", "MASTER_ADDR": "node-0"}) == {}
    assert completed({"RANK": "", "WORLD_SIZE": " "}) == {}


def test_a_slurm_step():
    assert completed(SLURM) == {
        "RANK": "2",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "gpu09",
        "MASTER_PORT": str(slurm_port(4711, 2)),
    }
    first = completed({**SLURM, "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"})
    assert (first["RANK"], first["LOCAL_RANK"], first["LOCAL_WORLD_SIZE"]) == ("1", "1", "2")
    assert (first["MASTER_ADDR"], first["MASTER_PORT"]) == ("gpu09", str(slurm_port(4711, 2)))


def test_a_slurm_step_on_one_host_needs_no_name_of_it():
    step = {
        "SLURM_STEP_TASKS_PER_NODE": "3",
        "SLURM_NODEID": "0",
        "SLURM_LOCALID": "2",
        "SLURM_STEP_NODELIST": "gpu09",
    }
    assert completed({**SLURM, **step})["MASTER_ADDR"] == "127.0.0.1"


def test_what_is_set_for_slurm_wins_where_it_does_not_contradict():
    chosen = completed({**SLURM, "MASTER_ADDR": "gpu09-ib", "MASTER_PORT": "7000", "WORLD_SIZE": "3"})
    assert "MASTER_ADDR" not in chosen and "MASTER_PORT" not in chosen and chosen["RANK"] == "2"
    text = problem({**SLURM, "WORLD_SIZE": "8"})
    assert "WORLD_SIZE is set to 8, but Slurm says 3: unset WORLD_SIZE" in text
    assert "RANK is set to 0, but Slurm says 2: unset RANK" in problem({**SLURM, "RANK": "0"})
    assert "LOCAL_RANK is set to 5, but Slurm says 0: unset LOCAL_RANK" in problem({**SLURM, "LOCAL_RANK": "5"})


def test_torchrun_or_deepspeed_inside_a_slurm_task_decide():
    torchrun = {"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}
    torchrun |= {"MASTER_ADDR": "gpu08", "MASTER_PORT": "29400"}
    assert completed({**SLURM, **torchrun}) == {}
    deepspeed = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert completed({**SLURM, **deepspeed, "MASTER_PORT": "29500"}) == {"LOCAL_WORLD_SIZE": "2"}


def test_a_batch_script_s_own_shell_is_one_rank_and_says_so():
    shell = {name: value for name, value in SLURM.items() if "_STEP_" not in name}
    shell |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    before = dict(shell)
    assert complete_environment(shell) == [
        "one rank alone, though the Slurm job has 8 tasks: start it with srun to use them"
    ]
    assert shell == before
    assert complete_environment({**shell, "SLURM_NTASKS": "1"}) == []


def test_open_mpi_and_hydra_go_before_the_slurm_step_of_their_daemons():
    expected = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
    assert completed({**SLURM, **OPEN_MPI, "MASTER_ADDR": "node-0"}) == expected
    hydra = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "MASTER_ADDR": "node-0"}
    assert completed({**SLURM, **hydra}) == expected
    mvapich = {
        f"MV2_COMM_WORLD_{name.removeprefix('OMPI_COMM_WORLD_')}": value for name, value in OPEN_MPI.items()
    }  # fmt: skip
    assert completed({**mvapich, "MASTER_ADDR": "node-0", "MASTER_PORT": "1"})["RANK"] == "3"
    assert completed({**SLURM, "PMI_RANK": "2", "PMI_SIZE": "3"})["MASTER_ADDR"] == "gpu09"  # srun --mpi=pmi2
    assert re.search(r"^4 ranks \(Open MPI started them\), but MASTER_ADDR is not set: set it to", problem(OPEN_MPI))
    one_host = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    assert completed(one_host)["MASTER_ADDR"] == "127.0.0.1"


def test_kubernetes_is_one_process_a_pod():
    pod = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "bert-0.bert", "MASTER_PORT": "23456"}
    assert completed(pod) == {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert completed({"RANK": "0", "WORLD_SIZE": "1"}) == {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    text = problem({**pod, "MASTER_PORT": "tcp://10.0.0.7:23456"})
    assert "MASTER_PORT is 'tcp://10.0.0.7:23456' (Kubernetes sets it so for a service named master" in text
    assert "it must be a port, 1 to 65535" in text


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is set (4), but RANK is not; start the ranks with deepspeed, torchrun or"),
        ({"RANK": "1"}, "RANK is set (1), but WORLD_SIZE is not; start the ranks"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is set (1), but RANK and WORLD_SIZE are not"),
        ({"LOCAL_WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE is set (2), but RANK and WORLD_SIZE are not"),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE is set (2), but LOCAL_RANK is"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, "4 ranks, but MASTER_ADDR is not set: set it to the host of rank 0, and"),
        ({"RANK": "4", "WORLD_SIZE": "4", "MASTER_ADDR": "a"}, "RANK is 4, but WORLD_SIZE is 4: ranks count from 0"),
        ({"RANK": "x", "WORLD_SIZE": "4", "MASTER_ADDR": "a"}, "RANK is 'x'; it must be a whole number from 0 on"),
        ({"RANK": "-1", "WORLD_SIZE": "4", "MASTER_ADDR": "a"}, "RANK is '-1'; it must be a whole number from 0 on"),
        ({"RANK": "0", "WORLD_SIZE": "0", "MASTER_ADDR": "a"}, "WORLD_SIZE is '0'; it must be a whole number from 1"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a;b"}, "MASTER_ADDR is 'a;b'; it must be a host's name or"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "MASTER_PORT is '70000'; it"),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"},
            "LOCAL_RANK is 2, but LOCAL_WORLD_SIZE is 2: ranks count from 0",
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"},
            "LOCAL_WORLD_SIZE (4) is above WORLD_SIZE (2): WORLD_SIZE counts the ranks of all hosts",
        ),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2x"}, "SLURM_STEP_TASKS_PER_NODE is '2x'; expected counts such as 2"),
        ({**SLURM, "SLURM_NODEID": "2"}, "SLURM_NODEID is 2, but SLURM_STEP_TASKS_PER_NODE (2,1) has 2 node(s)"),
        ({**SLURM, "SLURM_STEP_NODELIST": "a[1-"}, "the Slurm node list 'a[1-' has a part '[' that names no hosts"),
        ({**SLURM, "SLURM_PROCID": "z"}, "RANK (from Slurm) is 'z'; it must be a whole number from 0 on"),
    ],
)
def test_what_would_hang_or_go_wrong_is_an_error(environ, words):
    assert words in problem(environ)


def test_half_an_environment_of_one_rank_is_one_rank():
    assert completed({"WORLD_SIZE": "1"}) == {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert completed({"RANK": "0", "LOCAL_RANK": "0"}) == {}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("gpu5", ["gpu5"]),
        ("node[01-03,07],gpu5", ["node01", "node02", "node03", "node07", "gpu5"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("r[1-2]n[01-02]-ib.example.org", [f"r{r}n0{n}-ib.example.org" for r in (1, 2) for n in (1, 2)]),
        ("a,b-1,c[3]", ["a", "b-1", "c3"]),
    ],
)
def test_node_lists(text, hosts):
    assert list(expand_hosts(text)) == hosts


@pytest.mark.parametrize("text", ["n[3-1]", "n[a-b]", "n[1", "n]1[", "n[]", "a b", "$(touch x)", "n[1-2;3]", ","])
def test_node_lists_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match=r"the Slurm node list .* (has a (part|range) |names no hosts)"):
        list(expand_hosts(text))


def test_tasks_per_node():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("4") == [4]
    for text in ("", "2(x)", "x3", "1,,2", "-1"):
        with pytest.raises(ValueError, match="expected counts such as"):
            tasks_per_node(text)


def test_ports_differ_by_job_and_step_and_stay_below_the_ephemeral_ones():
    ports = {slurm_port(job, step) for job in range(1000, 1040) for step in range(4)}
    assert len(ports) == 160 and min(ports) >= 15_000 and max(ports) < 30_000
