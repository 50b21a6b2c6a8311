"""``python -m kernels``: what is built, and which backend each operation uses on each device, and why."""

from __future__ import annotations

import argparse
import sys

from kernels import build, dispatch, overview


def main() -> int:
    """Run the command; returns the exit code: 2 where a library could not be built."""
    parser = argparse.ArgumentParser(prog="python -m kernels", description=__doc__)
    parser.add_argument("--build", nargs="*", choices=overview.LIBRARIES, help="build these, or all that a run uses")
    wanted = parser.parse_args().build
    try:
        if wanted is not None:
            return build_libraries(wanted or possible())
        backends = overview.backends()  # first: it builds what is missing
        print("\n".join([*overview.libraries(), "", *backends]))
    except dispatch.BackendError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def possible() -> list[str]:
    """The libraries of a run that can be built here; says why others cannot."""
    reasons = {name: build.missing(name) for name in build.FOR_RUNS}
    for name, reason in reasons.items():
        if reason:
            print(f"{name}: not built, {reason}", file=sys.stderr)
    return [name for name, reason in reasons.items() if reason is None]


def build_libraries(names: list[str]) -> int:
    """Build libraries and say where they are; returns the exit code."""
    for name in names:
        try:
            print(f"{name}: {build.build(name)}")
        except build.BuildError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
