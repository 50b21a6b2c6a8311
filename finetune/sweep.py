"""Search settings: ``python -m finetune.sweep --config sweep.yaml --output DIR [--jobs N]``."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, from a bare checkout too: finetune/ itself must not stand first on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from collections.abc import Sequence

from engine.config.cli import parse_config, run_command
from finetune.drivers.config import SweepConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: _sweep(sys.argv[1:] if argv is None else argv))


def _sweep(argv: Sequence[str]) -> None:
    config = parse_config(SweepConfig, argv, prog="python -m finetune.sweep")
    from finetune.drivers.sweeping import Sweep

    Sweep(config).run()


if __name__ == "__main__":
    sys.exit(main())
