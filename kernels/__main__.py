"""``python -m kernels``: what is built, and which backend each operation uses on each device, and why."""

from __future__ import annotations

import argparse
import sys

import torch

from kernels import build, dispatch
from kernels.norm import DROPOUT_ADD, NORM

OPERATIONS = (NORM, DROPOUT_ADD)
LIBRARIES = ("cpu", "cuda", "emulator")


def main() -> int:
    """Run the command; returns the exit code: 2 where a library could not be built."""
    parser = argparse.ArgumentParser(prog="python -m kernels", description=__doc__)
    parser.add_argument("--build", nargs="*", choices=LIBRARIES, help="build these, or all that can be built here")
    wanted = parser.parse_args().build
    if wanted is not None:
        for name in wanted or [name for name in LIBRARIES[:2] if build.missing(name) is None]:
            try:
                print(f"{name}: {build.build(name)}")
            except build.BuildError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
        return 0
    try:
        print("\n".join([*libraries(), "", *backends()]))
    except dispatch.BackendError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def libraries() -> list[str]:
    """A line for each library: where it is, or why it is not there."""
    lines = [f"torch {torch.__version__}, KERNELS_BACKEND={dispatch.requested()}"]
    for name in LIBRARIES:
        found = build.find(name)
        reason = build.missing(name) or f"not built yet: python -m kernels --build {name}"
        lines.append(f"{name:9} {found or reason}")
    return lines


def backends() -> list[str]:
    """A line for each operation and device: the backend of a call, and why it is not the device's own."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    lines = []
    for operation in OPERATIONS:
        for device in devices:
            backend, why = dispatch.explain(operation, device)
            lines.append(f"{operation.name:14} {device.type:5} {backend:10} {why}".rstrip())
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
