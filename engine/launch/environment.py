"""Which rank this process is, from what its launcher says. Never imports torch.

torch and DeepSpeed read RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. ``deepspeed`` and
``torchrun`` set them; Slurm, Open MPI, MPICH, Intel MPI and MVAPICH have names of their own, which are translated here;
Kubernetes sets some. What is half given, or contradicts itself, would let ranks wait for others that never come, so it
is an error here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, MutableMapping

from engine.config.cli import UsageError

DEFAULT_PORT = 29500  # torch's and DeepSpeed's own
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
NAMES = (*NUMBERS, "MASTER_ADDR", "MASTER_PORT")
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]*")
# Names of our NUMBERS under mpirun. mpirun may itself be started by Slurm, whose variables then are those of its own
# daemons, one a host: these go first. MPI_LOCALRANKID comes from hydra alone (MPICH, Intel MPI), not from srun.
MPI = {
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}  # fmt: skip
WAYS_OUT = (
    "start the ranks with deepspeed, torchrun or srun, which set all of them; set RANK, WORLD_SIZE, MASTER_ADDR and "
    "MASTER_PORT for each process; or unset them all for one rank (docs/launching.md)"
)


def complete_environment(environ: MutableMapping[str, str] | None = None) -> list[str]:
    """Fill in the variables that torch reads; an environment without a launcher stays as it is and means one rank.

    RANK and WORLD_SIZE that are set win over a scheduler's names: another launcher runs inside the scheduler's task.

    Returns:
        Notes for the user.

    Raises:
        UsageError: everything that is half given, contradictory or no number, each with its way out.
    """
    environ = os.environ if environ is None else environ
    given = {name: environ[name].strip() for name in NAMES if environ.get(name, "").strip()}
    problems: list[str] = []
    launcher, found = _scheduler(environ, problems) if not {"RANK", "WORLD_SIZE"} <= given.keys() else ("", {})
    problems += _contradictions(given, launcher, found)
    values = {**found, **given}
    if not problems:
        problems = _half_given(values, launcher)
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    if "WORLD_SIZE" not in values:
        return _forgotten_srun(environ)
    local_size = environ.get("LOCAL_SIZE", "")  # DeepSpeed's launcher's name; 0 where this engine has changed it
    if "LOCAL_WORLD_SIZE" not in values and local_size.isdecimal() and int(local_size) > 0:
        values["LOCAL_WORLD_SIZE"] = local_size
    _fill(values)
    if problems := _wrong_values(values, launcher):
        raise UsageError("\n".join(problems))
    environ.update(values)
    return []


def _scheduler(environ: Mapping[str, str], problems: list[str]) -> tuple[str, dict[str, str]]:
    """The name of the scheduler that started this process, and what it says under our names."""
    for name, variables in MPI.items():
        if all(variable in environ for variable in (variables[0], variables[1], variables[2])):
            pairs = zip(NUMBERS, variables, strict=True)
            return name, {ours: environ[theirs] for ours, theirs in pairs if environ.get(theirs)}
    if "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ:  # a batch script's shell has the 2nd
        try:
            return "Slurm", slurm_values(environ)
        except ValueError as error:
            problems.append(str(error))
    return "", {}


def slurm_values(environ: Mapping[str, str]) -> dict[str, str]:
    """What Slurm says of a task of a job step, under our names.

    Raises:
        ValueError: for a variable that has not the form which Slurm documents.
    """
    values = {"RANK": environ["SLURM_PROCID"], "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"]}
    if local_rank := environ.get("SLURM_LOCALID"):
        values["LOCAL_RANK"] = local_rank
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    node = environ.get("SLURM_NODEID", "")
    if tasks and node.isdecimal():
        counts = tasks_per_node(tasks)
        if int(node) >= len(counts):
            raise ValueError(
                f"SLURM_NODEID is {node}, but SLURM_STEP_TASKS_PER_NODE ({tasks}) has {len(counts)} node(s); {WAYS_OUT}"
            )
        values["LOCAL_WORLD_SIZE"] = str(counts[int(node)])
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if nodes and values["WORLD_SIZE"] != values.get("LOCAL_WORLD_SIZE"):
        values["MASTER_ADDR"] = next(expand_hosts(nodes))
    job, step = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_STEP_ID", "0")
    if job.isdecimal() and step.isdecimal():
        values["MASTER_PORT"] = str(slurm_port(int(job), int(step)))
    return values


def slurm_port(job: int, step: int) -> int:
    """A port that all tasks of a step work out alike and other steps rarely: below those that systems give out."""
    return 15_000 + (job * 31 + step) % 15_000


def tasks_per_node(text: str) -> list[int]:
    """Slurm's tasks of each node: ``2(x3),1`` is [2, 2, 2, 1].

    Raises:
        ValueError: if the text has another form.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d{1,6})\))?", part.strip())
        if not match:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}; expected counts such as 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def expand_hosts(text: str) -> Iterator[str]:
    """The hosts of a Slurm node list, in its order: ``node[01-03,07],gpu5`` and ``r[1-2]n[1-2]-ib``.

    Raises:
        ValueError: if the text has another form.
    """
    parts = [part for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+|[\[\],]", text) if part != ","]
    if not parts:
        raise ValueError(f"the Slurm node list {text!r} names no hosts")
    names = [re.split(r"(\[[^\]]*\])", part) for part in parts]
    for part, pieces in zip(parts, names, strict=True):
        if any(piece[:1] != "[" and re.search(r"[^A-Za-z0-9._-]", piece) for piece in pieces) or part == "[":
            raise ValueError(f"the Slurm node list {text!r} has a part {part!r} that names no hosts")
    for pieces in names:
        yield from _combinations(pieces, text)


def _combinations(pieces: list[str], text: str) -> Iterator[str]:
    """All names that pieces of text and bracketed ranges make, the last range running fastest."""
    if not pieces:
        yield ""
        return
    first, *rest = pieces
    for start in _range_values(first, text) if first.startswith("[") else [first]:
        for end in _combinations(rest, text):
            yield start + end


def _range_values(bracket: str, text: str) -> Iterator[str]:
    """``[01-03,07]`` as 01, 02, 03, 07."""
    for item in bracket[1:-1].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"the Slurm node list {text!r} has a range {item!r}; expected such as 01-03")
        for number in range(int(match[1]), int(match[2] or match[1]) + 1):
            yield str(number).zfill(len(match[1]))


def _contradictions(given: Mapping[str, str], launcher: str, found: Mapping[str, str]) -> list[str]:
    """What is set otherwise than the scheduler says; MASTER_ADDR and MASTER_PORT may be."""
    return [
        f"{name} is set to {given[name]}, but {launcher} says {found[name]}: unset {name}, or set both RANK and "
        f"WORLD_SIZE for each process"
        for name in NUMBERS
        if name in given and name in found and given[name] != found[name]
    ]


def _half_given(values: Mapping[str, str], launcher: str) -> list[str]:
    """What lacks a part without which ranks would never meet, or would be the wrong ones."""
    have = [name for name in ("RANK", "WORLD_SIZE") if name in values]
    if len(have) == 1 and values[have[0]] != {"RANK": "0", "WORLD_SIZE": "1"}[have[0]]:
        missing = "WORLD_SIZE" if have == ["RANK"] else "RANK"
        return [f"{have[0]} is set ({values[have[0]]}), but {missing} is not; {WAYS_OUT}"]
    if not have:
        return [
            f"{name} is set ({values[name]}), but RANK and WORLD_SIZE are not; {WAYS_OUT}"
            for name, harmless in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
            if values.get(name, harmless) != harmless
        ]
    if "LOCAL_RANK" not in values and values.get("LOCAL_WORLD_SIZE", "1") != "1":
        return [f"LOCAL_WORLD_SIZE is set ({values['LOCAL_WORLD_SIZE']}), but LOCAL_RANK is not; {WAYS_OUT}"]
    several = values.get("WORLD_SIZE", "1") != "1"
    if several and "MASTER_ADDR" not in values and values.get("LOCAL_WORLD_SIZE") != values["WORLD_SIZE"]:
        told_by = f" ({launcher} started them)" if launcher else ""
        return [
            f"{values['WORLD_SIZE']} ranks{told_by}, but MASTER_ADDR is not set: set it to the host of rank 0, "
            f"and MASTER_PORT to a free port there ({DEFAULT_PORT} where it is not set)"
        ]
    return []


def _fill(values: dict[str, str]) -> None:
    """Add what follows: a process without LOCAL_RANK is alone on its host, as a Kubernetes pod is."""
    values.setdefault("RANK", "0")
    values.setdefault("WORLD_SIZE", "1")
    if "LOCAL_RANK" not in values:
        values.setdefault("LOCAL_WORLD_SIZE", "1")
    values.setdefault("LOCAL_RANK", "0")
    if values["WORLD_SIZE"] != "1":  # one rank finds a free port by itself
        values.setdefault("MASTER_ADDR", "127.0.0.1")
        values.setdefault("MASTER_PORT", str(DEFAULT_PORT))


def _wrong_values(values: Mapping[str, str], launcher: str) -> list[str]:
    """Numbers that are none, ranks beyond their count, an address that is none."""
    by = f" (from {launcher})" if launcher else ""
    problems = [
        f"{name}{by} is {values[name]!r}; it must be a whole number from {int(name.endswith('SIZE'))} on; {WAYS_OUT}"
        for name in NUMBERS
        if name in values and not _is_number(values[name], least=int(name.endswith("SIZE")))
    ]
    if problems:
        return problems
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if size in values and int(values[rank]) >= int(values[size]):
            problems.append(f"{rank} is {values[rank]}, but {size} is {values[size]}: ranks count from 0; {WAYS_OUT}")
    if int(values.get("LOCAL_WORLD_SIZE", "1")) > int(values["WORLD_SIZE"]):
        problems.append(
            f"LOCAL_WORLD_SIZE ({values['LOCAL_WORLD_SIZE']}) is above WORLD_SIZE ({values['WORLD_SIZE']}): WORLD_SIZE "
            f"counts the ranks of all hosts; {WAYS_OUT}"
        )
    if not HOST.fullmatch(values.get("MASTER_ADDR", "localhost")):
        problems.append(f"MASTER_ADDR is {values['MASTER_ADDR']!r}; it must be a host's name or address")
    port = values.get("MASTER_PORT", "1")
    if not _is_number(port, least=1) or int(port) > 65_535:
        service = " (Kubernetes sets it so for a service named master: give the service another name)" * ("://" in port)
        problems.append(f"MASTER_PORT is {port!r}{service}; it must be a port, 1 to 65535")
    return problems


def _is_number(text: str, least: int) -> bool:
    return text.isascii() and text.isdecimal() and int(text) >= least


def _forgotten_srun(environ: Mapping[str, str]) -> list[str]:
    """A batch script's own shell is no task of a step: what it starts without srun is one process."""
    tasks = environ.get("SLURM_NTASKS", "1")
    if tasks == "1" or not tasks.isdecimal():
        return []
    return [f"one rank alone, though the Slurm job has {tasks} tasks: start it with srun to use them"]
