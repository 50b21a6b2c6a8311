"""Write requirements.txt: the exact versions, in this environment, of all that the project and its `dev` extra need."""

from __future__ import annotations

import importlib.metadata as metadata
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
BUILD = ("setuptools", "setuptools_scm", "wheel")  # deepspeed, seqeval and the project are built without isolation
HEADER = """\
# Exact versions for development, tests and the demo; written by tools/lock.py, installed by tools/make_venv.sh.
# For Python 3.11 and later. torch has no +cpu or +cu suffix: the CPU and the CUDA builds of this version both fit.
# deepspeed and seqeval are source archives: install the other lines first, then these two with --no-build-isolation.
# Else pip would fetch a second torch to build deepspeed with, and seqeval's old setup.py does not build by itself.
"""


def requirements_of(name: str, extras: set[str]) -> list[Requirement]:
    """Return what an installed distribution requires on this platform with the given extras."""
    found = []
    for line in metadata.distribution(name).requires or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            found.append(requirement)
    return found


def closure(roots: list[Requirement]) -> dict[str, str]:
    """Return canonical name -> public version for the roots and everything that they need."""
    versions: dict[str, str] = {}
    visited: set[tuple[str, frozenset[str]]] = set()
    pending = list(roots)
    while pending:
        requirement = pending.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in visited:
            continue
        visited.add((name, extras))
        versions[name] = Version(metadata.version(name)).public  # drops +cpu
        pending += requirements_of(name, set(extras))
    return {name: version for name, version in versions.items() if not name.startswith("nvidia-")}


def main() -> None:
    """Write requirements.txt beside pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"], *BUILD]
    versions = closure([Requirement(line) for line in lines])
    pins = "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))
    (ROOT / "requirements.txt").write_text(HEADER + pins, encoding="utf-8")
    print(f"requirements.txt: {len(versions)} packages")


if __name__ == "__main__":
    main()
