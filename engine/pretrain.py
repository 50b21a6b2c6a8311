"""Pretrain a model: ``deepspeed [--num_gpus N | --hostfile H] engine/pretrain.py --ds_config F ...``."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, from a bare checkout too: engine/ itself must not stand first on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from collections.abc import Sequence

from engine.config.cli import exit_process, parse_config, run_command
from engine.config.pretrain import PretrainConfig
from engine.launch.arguments import enter


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: _pretrain(sys.argv[1:] if argv is None else argv))


def _pretrain(argv: Sequence[str]) -> None:
    config = parse_config(PretrainConfig, enter(argv), prog="pretrain.py")
    if config.dry_run:
        from engine.launch.dry_run import dry_run

        dry_run(config)
        return
    from engine.train.pretraining import pretrain  # torch takes seconds to import: not before the command line is right

    pretrain(config)


if __name__ == "__main__":
    exit_process(main())
