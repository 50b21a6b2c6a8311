"""The environment that ranks on other hosts get, and the file in which DeepSpeed's launcher reads it.

pdsh gives a remote process the environment of that host's ssh: no venv in PATH, no OMP_NUM_THREADS. What DeepSpeed
finds in DS_ENV_FILE it puts in front of the command as ``export NAME="VALUE";``, with nothing done to what a shell or
pdsh would obey in the value; that is done here.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.config.cli import UsageError

FILE_VARIABLE, DEFAULT_FILE = "DS_ENV_FILE", ".deepspeed_env"
FORWARDED_NAMES = (
    "PATH", "LD_LIBRARY_PATH", "DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME",
    "CUDA_DEVICE_ORDER", "CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
    "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "ENGINE_TRACEBACK", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY",
    "HF_HOME", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM",
)  # fmt: skip
# DeepSpeed forwards these itself, with its own quoting; what stands in the file replaces it.
BY_DEEPSPEED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
FORWARDED_PREFIXES = (*BY_DEEPSPEED, "TORCH_NCCL_", "GLOO_", "OMP_", "MKL_", "KMP_", "KERNELS_")
# Words that say so anywhere in a name, and words that do so only as a whole word of it or at its end.
SECRET = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|(API|PRIVATE|ACCESS)_?KEY|CONNECTION_?STRING|DATABASE_URL|WEBHOOK"
    r"|(?<![A-Z0-9])(PASS|PAT|AUTH|CREDS?|JWT|BEARER|COOKIES?|DSN)(?![A-Z0-9])"
    r"|_(KEYS?|PWD)$",
    re.IGNORECASE,
)
# Paths to secrets, and the public key that Python's container images name.
HARMLESS = re.compile(r".*_(FILE|PATH|DIR|SOCK)|GPG_KEY", re.IGNORECASE)
IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # user and password
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
UNQUOTED = re.compile(r"[\w@%+=:,./-]*")  # DeepSpeed puts anything else between double quotes


def is_secret(name: str) -> bool:
    """Whether a variable's name says that its value is nobody's business."""
    return bool(SECRET.search(name)) and not HARMLESS.fullmatch(name)


def shown(name: str, value: str) -> str:
    """A value as it may be printed: nothing of a secret, and no password in an address."""
    return "..." if is_secret(name) else IN_URL.sub("...", value)


def forwarded(environ: Mapping[str, str], user: Mapping[str, str], exports: Sequence[str]) -> dict[str, str]:
    """The environment to set on other hosts, by name.

    Args:
        environ: the environment of the launch.
        user: what the user's own file says; it wins.
        exports: names of more variables to forward.

    Raises:
        UsageError: for an export that is not set.
    """
    chosen = {
        name: value
        for name, value in environ.items()
        if (name in FORWARDED_NAMES or name.startswith(FORWARDED_PREFIXES)) and not is_secret(name)
    }
    chosen["PATH"] = path_with_python(environ)
    chosen["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *filter(None, [environ.get("PYTHONPATH")])])  # as DeepSpeed
    for name in exports:
        if name not in environ:
            raise UsageError(f"--export {name}: the variable is not set here")
        chosen[name] = environ[name]
    return dict(sorted({**chosen, **user}.items()))


def path_with_python(environ: Mapping[str, str]) -> str:
    """PATH with the folder of this Python first: ninja, which builds DeepSpeed's operators, is there in a venv."""
    folder, path = str(Path(sys.executable).parent), environ.get("PATH", os.defpath)
    return path if path.split(os.pathsep)[0] == folder else f"{folder}{os.pathsep}{path}"


def notes_on(environ: Mapping[str, str], sent: Mapping[str, str], user: Mapping[str, str]) -> list[str]:
    """What a user should know of the environment of the other hosts."""
    kept_back = [name for name in sorted(environ) if is_secret(name) and environ[name] and name not in sent]
    notes = []
    if kept_back:
        notes.append(
            f"{', '.join(kept_back)} not forwarded: it would stand in the process list of every host; log in on the "
            "hosts (wandb login, hf auth login), or --export it if nobody else is there"
        )
    if told := [name for name in sent if is_secret(name)]:
        notes.append(f"{', '.join(told)} can be read in the process list of every host, and DeepSpeed prints it here")
    if expanded := [name for name, value in user.items() if "$" in value or "`" in value]:
        notes.append(
            f"{', '.join(expanded)} of your environment file goes to the hosts as it stands there: nothing in it is "
            "expanded"
        )
    return notes


def user_entries(environ: Mapping[str, str]) -> dict[str, str]:
    """What the user's own environment files say, read from where DeepSpeed reads them.

    Raises:
        UsageError: for a line that is not NAME=VALUE, or a file that DS_ENV_FILE names and that is not there.
    """
    name = environ.get(FILE_VARIABLE, DEFAULT_FILE)
    files = list(dict.fromkeys(Path(folder, name) for folder in (Path("~").expanduser(), Path())))
    found = [file for file in files if file.is_file()]
    if FILE_VARIABLE in environ and not found:
        raise UsageError(f"{FILE_VARIABLE} is {name}, and there is no such file")
    entries: dict[str, str] = {}
    for file in found:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            key, equals, value = line.partition("=")
            if not equals or not NAME.fullmatch(key.strip()):
                what = f"{key.strip()!r} before the =" if equals else "no ="  # not the value, which may be a secret
                raise UsageError(f"{file}, line {number}: expected NAME=VALUE, found {what}")
            entries[key.strip()] = value.strip()
    return entries


def file_text(variables: Mapping[str, str], launcher: str) -> str:
    """The lines of a DS_ENV_FILE by which every value arrives as it is.

    For pdsh a value with anything special is put between single quotes, and the double quotes that DeepSpeed adds are
    made two empty strings; ``%`` is doubled, or pdsh would take ``%h`` for the host's name. The other launchers are no
    shells, and would keep DeepSpeed's quotes as a part of the value.

    Raises:
        UsageError: for a value that cannot be carried.
    """
    lines, problems = [], []
    for name, value in variables.items():
        plain = bool(UNQUOTED.fullmatch(value))
        if "\n" in value or "\r" in value or "\0" in value:
            problems.append(f"{name} has a line break, which DeepSpeed's environment file cannot hold; unset it")
        elif launcher != "pdsh" and not plain:
            problems.append(
                f"{name} is {shown(name, value)!r}, which DeepSpeed changes on its way through {launcher}; unset it"
            )
        elif launcher == "slurm" and "," in value:
            problems.append(
                f"{name} is {shown(name, value)!r}, which srun cuts at the comma in the --export that DeepSpeed "
                "writes; unset it, or start the ranks with srun alone, which takes the whole environment along "
                "(docs/launching.md, Slurm)"
            )
        elif launcher == "pdsh":
            text = value if plain else f'"{shlex.quote(value)}"'
            lines.append(f"{name}={text.replace('%', '%%')}\n")
        else:
            lines.append(f"{name}={value}\n")
    if problems:
        raise UsageError("\n".join(problems))
    return "".join(lines)
