"""Run a benchmark: ``python -m finetune.suite --suite glue --data DIR --model DIR --ds_config F --output DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, from a bare checkout too: finetune/ itself must not stand first on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from collections.abc import Sequence

from engine.config.cli import parse_config, run_command
from finetune.drivers.config import SuiteConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: _suite(sys.argv[1:] if argv is None else argv))


def _suite(argv: Sequence[str]) -> None:
    config = parse_config(SuiteConfig, argv, prog="python -m finetune.suite")
    from finetune.drivers.suite_runs import Suite

    Suite(config).run()


if __name__ == "__main__":
    sys.exit(main())
