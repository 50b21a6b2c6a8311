"""Two hosts on one machine: two network namespaces joined by a veth pair, an sshd in each.

`deepspeed --hostfile H --num_nodes 2` runs over them as over a cluster: pdsh, ssh, gloo through the network. The hosts
share this machine's files and process numbers; network and host name are their own. Needs root, Linux and the commands
in COMMANDS. All is written into one given folder, but for the namespaces and an empty /run/sshd.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COMMANDS = {  # command -> Debian package
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "pdsh": "pdsh",
    "unshare": "util-linux",
}
ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "ds0"  # one name in both namespaces: GLOO_SOCKET_IFNAME is one value for all ranks
PORT = 2222
PREFIX = "pretraining"
TOOLS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> str | None:
    """Return why two hosts cannot be made here, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "two hosts need root on Linux (network namespaces)"
    absent = [package for command, package in COMMANDS.items() if shutil.which(command, path=TOOLS) is None]
    if absent:
        return f"two hosts need {', '.join(absent)}: apt-get install {' '.join(absent)}"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"two hosts need network namespaces, which this machine refuses: {made.stderr.strip()}"
    _call("ip", "netns", "del", probe)
    return None


@dataclass(frozen=True)
class TwoNodes:
    """The two hosts.

    Args:
        folder: keys, sshd settings, hostfile, environment file, ssh wrapper.
        namespaces: names of the two network namespaces.
        environment_of_ranks: what ranks on either host find in their environment.
    """

    folder: Path
    namespaces: tuple[str, str]
    environment_of_ranks: Mapping[str, str]

    @property
    def hostfile(self) -> Path:
        """DeepSpeed's hostfile of both hosts."""
        return self.folder / "hostfile"

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """Return the command that runs `deepspeed --hostfile ... ARGUMENTS` on the first host."""
        deepspeed = Path(sys.executable).with_name("deepspeed")
        launch = [str(deepspeed), "--hostfile", str(self.hostfile), "--master_addr", ADDRESSES[0]]
        return self.on_host(0, [*launch, *map(str, arguments)])

    def on_host(self, number: int, command: Sequence[str]) -> list[str]:
        """Return the command that runs another one on a host."""
        return _on_host(self.namespaces, number, command)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the launcher's environment; `more` reaches the ranks too, by the environment file.

        Raises:
            ValueError: for a value with a line break, which the file cannot hold.
        """
        ranks = {**self.environment_of_ranks, **(more or {})}
        if any("\n" in value for value in ranks.values()):
            raise ValueError("an environment value for the ranks has a line break")
        path = self.folder / "ds_env"
        path.write_text("".join(f"{name}={value}\n" for name, value in ranks.items()))
        launcher_path = f"{self.folder / 'bin'}{os.pathsep}{ranks['PATH']}"
        return {**os.environ, **ranks, "PATH": launcher_path, "DS_ENV_FILE": str(path)}

    def run(
        self,
        arguments: Sequence[str | Path],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run `deepspeed --hostfile ... ARGUMENTS` on the first host and wait for its end.

        Args:
            arguments: what follows the hostfile: --num_nodes 2 script.py ...
            cwd: working folder, on both hosts.
            env: more environment for the launcher and for the ranks on both hosts.
            timeout: seconds after which everything that was started is killed.

        Raises:
            subprocess.TimeoutExpired: with what was printed until then.
        """
        return self.run_here(self.command(arguments), cwd, self.environment(env), timeout)

    def run_here(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command made by `command` or `on_host` in an environment, as `run` does."""
        with (self.folder / "launch.log").open("w+") as log:
            process = subprocess.Popen(
                command, cwd=cwd, env=env, stdout=log, stderr=log, text=True, start_new_session=True
            )
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired as error:
                raise subprocess.TimeoutExpired(command, timeout, output=_read(log.name)) from error
            finally:
                self.kill_processes(spare_sshd=True)
                process.wait()
        output = _read(self.folder / "launch.log")
        return subprocess.CompletedProcess(command, process.returncode, output, output)

    def kill_processes(self, spare_sshd: bool = False) -> None:
        """Kill what runs in the two namespaces; all of it was started through this object."""
        spared = {int(_read(path)) for path in self.folder.glob("sshd-*.pid")} if spare_sshd else set()
        for _ in range(20):  # a killed parent may have forked just before
            left = {pid for name in self.namespaces for pid in processes_in(name)} - spared
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


@contextlib.contextmanager
def two_nodes(folder: Path, slots: int = 1, env: Mapping[str, str] | None = None) -> Iterator[TwoNodes]:
    """Make two hosts, and take them down again whatever happens.

    Args:
        folder: an empty folder for keys and settings.
        slots: ranks of each host in the hostfile.
        env: environment of the ranks beside the defaults.
    """
    remove_leftovers()
    names = (f"{PREFIX}-{os.getpid()}-a", f"{PREFIX}-{os.getpid()}-b")
    ranks = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{TOOLS}",  # ssh's own has no venv, so no ninja
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": INTERFACE,  # else gloo takes the address of the host name, 127.0.0.1
        **{name: os.environ[name] for name in ("TORCH_EXTENSIONS_DIR",) if name in os.environ},
        **(env or {}),
    }
    nodes = TwoNodes(folder, names, ranks)
    try:
        _write_files(folder, slots)
        _make_network(names)
        _start_sshds(folder, names)
        yield nodes
    finally:
        _remove(names)


def remove_leftovers() -> None:
    """Remove the namespaces of earlier runs whose process is gone."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        match = re.match(rf"({PREFIX}-(\d+)-\w+)", line)
        if match and not Path(f"/proc/{match[2]}").exists():
            _remove((match[1],))


def processes_in(namespace: str) -> set[int]:
    """Return the processes of a network namespace; none where it does not exist."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return {int(pid) for pid in listed.stdout.split()}


def _write_files(folder: Path, slots: int) -> None:
    """Write keys, the settings of ssh and sshd, the hostfile and the ssh that uses them."""
    folder.chmod(0o700)
    for name in ("id", "hostkey"):
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    shutil.copy(folder / "id.pub", folder / "authorized_keys")
    (folder / "hostfile").write_text("".join(f"{address} slots={slots}\n" for address in ADDRESSES))
    for number, address in enumerate(ADDRESSES):
        (folder / f"sshd-{number}.conf").write_text(
            f"Port {PORT}\nListenAddress {address}\nHostKey {folder}/hostkey\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nPidFile {folder}/sshd-{number}.pid\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\n"
        )
    (folder / "ssh_config").write_text(
        f"Host {' '.join(ADDRESSES)}\n  Port {PORT}\n  User root\n  IdentityFile {folder}/id\n  IdentitiesOnly yes\n"
        "  BatchMode yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    # deepspeed runs a bare `ssh HOST` and so does pdsh: a wrapper first in PATH serves both, ~/.ssh stays as it is
    wrapper = folder / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh", path=TOOLS)} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)


def _make_network(names: tuple[str, str]) -> None:
    for name in names:
        _call("ip", "netns", "add", name)
    peer = ["peer", "name", INTERFACE, "netns", names[1]]
    _call("ip", "link", "add", INTERFACE, "netns", names[0], "type", "veth", *peer)
    for name, address in zip(names, ADDRESSES, strict=True):
        _call("ip", "-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
        _call("ip", "-n", name, "link", "set", "lo", "up")
        _call("ip", "-n", name, "link", "set", INTERFACE, "up")


def _start_sshds(folder: Path, names: tuple[str, str]) -> None:
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = shutil.which("sshd", path=TOOLS) or "sshd"
    for number in range(len(names)):
        settings = ["-f", str(folder / f"sshd-{number}.conf"), "-E", str(folder / f"sshd-{number}.log")]
        _call(*_on_host(names, number, [sshd, *settings]))
    deadline = time.monotonic() + 10
    while len(list(folder.glob("sshd-*.pid"))) < len(names):
        if time.monotonic() > deadline:
            raise RuntimeError("sshd did not start: " + " ".join(_read(path) for path in folder.glob("sshd-*.log")))
        time.sleep(0.02)


def _on_host(names: tuple[str, str], number: int, command: Sequence[str]) -> list[str]:
    """Return the command that runs another one in a namespace, under the host's own name."""
    script = 'hostname "$1"; shift; exec "$@"'
    inside = ["unshare", "--uts", "/bin/sh", "-c", script, "sh", f"node-{number}", *command]
    return ["ip", "netns", "exec", names[number], *inside]


def _remove(names: Sequence[str]) -> None:
    """Kill what runs in the namespaces and delete them; the veth pair goes with them."""
    for name in names:
        for pid in processes_in(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")


def _read(path: Path | str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")
