"""Start ranks on the hosts of a hostfile: ``python -m engine.launch [deepspeed's options] SCRIPT ARGUMENTS...``.

A front of the ``deepspeed`` command with the same options. It writes the environment file (DS_ENV_FILE) that DeepSpeed
sends to the other hosts, sees to it that arguments and values arrive there unchanged, and checks what DeepSpeed takes
as it is. ``--dry_run`` prints what would run on which host, and what the script's own dry run says.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine.config.cli import UsageError, run_command
from engine.launch.arguments import encode_arguments, is_harmless
from engine.launch.environment import HOST
from engine.launch.forwarded import (
    BY_DEEPSPEED,
    FILE_VARIABLE,
    file_text,
    forwarded,
    is_secret,
    notes_on,
    path_with_python,
    user_entries,
)
from engine.launch.hosts import Hosts, choose_hosts
from engine.launch.nodes import TOLD, environment_of, master_address, nodes_text

ENTRIES = {"engine.pretrain": "engine/pretrain.py", "finetune.run": "finetune/run.py"}  # they decode arguments
WITHOUT_ADDRESS = ("openmpi", "mvapich")  # DeepSpeed leaves the address of rank 0 to its own mpi4py there
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: launch(sys.argv[1:] if argv is None else argv))


def launch(argv: Sequence[str]) -> int:
    """Start the ranks and wait for their end, or print what would be started; returns the exit code.

    Raises:
        UsageError: everything that can be seen to be wrong before anything is started.
    """
    environ = dict(os.environ)
    user = user_entries(environ)
    options = parse_options(argv)
    hosts = choose_hosts(options)
    wanted = list(options.user_args)
    refuse_harmful(options, hosts)
    variables = forwarded(environ, user, options.export) if hosts.remote else {}
    if hosts.remote and options.launcher.lower() in WITHOUT_ADDRESS:
        found = {"MASTER_ADDR": master_address(options, hosts), "MASTER_PORT": str(options.master_port)}
        variables = {**found, **variables}
    text = file_text(variables, options.launcher.lower())  # refused here, before anything is told or started
    for note in notes_on(environ, variables, user) if hosts.remote else ():
        print(f"note: {note}", file=sys.stderr, flush=True)
    if hosts.remote:
        options.user_args = encode_arguments(wanted)
    if is_dry_run(options, wanted):
        return dry_run(options, hosts, wanted, variables)
    if not hosts.remote:
        return run_deepspeed(options, None)
    with tempfile.TemporaryDirectory(prefix="pretraining-launch-") as folder:
        file = Path(folder, "deepspeed_env")
        file.write_text(text, encoding="utf-8")
        return run_deepspeed(options, file)


class Parser(argparse.ArgumentParser):
    """A parser that knows our options beside those that DeepSpeed adds to it."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Add ours, behind DeepSpeed's in the help, and parse."""
        self.prog = "python -m engine.launch"
        self.add_argument(
            "--export", action="append", default=[], metavar="NAME", help="Forward one more environment variable."
        )
        self.add_argument(
            "--dry_run", action="store_true", help="Check everything, print what would run where, start nothing."
        )
        return super().parse_args(args, namespace)


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """DeepSpeed's options and ours, the script and its arguments; argparse ends the process for ``--help``."""
    from deepspeed.launcher import runner

    runner.argparse = SimpleNamespace(**{**vars(argparse), "ArgumentParser": Parser})  # it makes its parser itself
    options: argparse.Namespace = runner.parse_args(list(argv))
    given = list(argv)[len(argv) - len(options.user_args) - 1 :]
    if given != [options.user_script, *options.user_args]:  # argparse drops a bare --
        raise UsageError("a bare -- among the arguments would be lost on the way; leave it out")
    if options.autotuning:
        raise UsageError("--autotuning changes batch sizes in the DeepSpeed file, which are --train.* here; remove it")
    return options


def refuse_harmful(options: argparse.Namespace, hosts: Hosts) -> None:
    """UsageError for what would stand in a remote shell's command line and cannot be encoded."""
    if options.master_addr and not HOST.fullmatch(options.master_addr):
        raise UsageError(f"--master_addr {options.master_addr!r} is no name or address of a host")
    if not hosts.remote:
        return
    words = {
        "the working folder": os.getcwd(),
        "this Python": sys.executable,
        "SCRIPT": options.user_script,
        "--venv_script": options.venv_script or "-",
        "--enable_each_rank_log": options.enable_each_rank_log,
    }
    problems = [
        f"{what} is {word!r}: DeepSpeed puts it into the command line of each host's shell as it is; use a path of "
        "letters, digits and _@+=:,./- alone"
        for what, word in words.items()
        if not is_harmless(word)
    ]
    if not decodes(options) and (bad := [argument for argument in options.user_args if not is_harmless(argument)]):
        problems.append(
            f"{options.user_script} gets arguments that the hosts' shells would change: {', '.join(map(repr, bad))}; "
            f"only {' and '.join(ENTRIES.values())} of this project can be given such"
        )
    if problems:
        raise UsageError("\n".join(problems))


def decodes(options: argparse.Namespace) -> bool:
    """Whether the script is an entry of this project, which reads encoded arguments."""
    if options.module:
        return options.user_script in ENTRIES
    found = Path(options.user_script).resolve()
    return not options.no_python and any(found == REPOSITORY / entry for entry in ENTRIES.values())


def is_dry_run(options: argparse.Namespace, arguments: Sequence[str]) -> bool:
    """Whether our option or the script's own asks for a dry run."""
    following = [*arguments, ""][1:]
    script = any(
        argument in ("--dry_run=true", "--dry_run=True")
        or (argument == "--dry_run" and value.lower() not in ("false", "no"))
        for argument, value in zip(arguments, following, strict=True)
    )
    return bool(options.dry_run or script)


def dry_run(options: argparse.Namespace, hosts: Hosts, arguments: Sequence[str], variables: dict[str, str]) -> int:
    """Print the script's own dry run, made here with the ranks of all hosts, after what each host would start."""
    if not decodes(options):
        raise UsageError(f"--dry_run needs {' or '.join(ENTRIES.values())}, not {options.user_script}")
    first = next(iter(hosts.slots))
    command = [sys.executable, *(["-m"] if options.module else []), options.user_script, *arguments]
    if not is_dry_run(argparse.Namespace(dry_run=False), arguments):
        command.append("--dry_run=true")
    environ = {**os.environ, **environment_of(options, hosts, first, 0), TOLD: "1"}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        print(nodes_text(options, hosts, variables), end="")
    print(done.stdout, end="", flush=True)
    return done.returncode


# What DeepSpeed's runner ends with for a user's mistake: hostfile and filters, a launcher that is unknown or not
# installed, a rank of a node out of range (an assert), a host that ssh does not reach.
REFUSALS = (ValueError, RuntimeError, AssertionError, subprocess.CalledProcessError)


def run_deepspeed(options: argparse.Namespace, file: Path | None) -> int:
    """DeepSpeed's own launcher in this process, with options that are parsed; returns its exit code."""
    from deepspeed.launcher import runner

    os.environ["PATH"] = path_with_python(os.environ)
    if file is not None:
        os.environ[FILE_VARIABLE] = runner.DEEPSPEED_ENVIRONMENT_NAME = str(file)
        for name in [name for name in os.environ if name.startswith(BY_DEEPSPEED) and is_secret(name)]:
            del os.environ[name]
    runner.parse_args = lambda args: args
    try:
        runner.main(options)
    except REFUSALS as error:
        hint = ": apt-get install pdsh, or another --launcher" if "'pdsh' not installed" in str(error) else ""
        what = str(error) or f"DeepSpeed's launcher refuses these options ({type(error).__name__})"
        raise UsageError(f"{what}{hint}; ENGINE_TRACEBACK=1 shows where") from error
    except SystemExit as ended:
        return int(ended.code or 0) if isinstance(ended.code, int | None) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
