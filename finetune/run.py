"""Fine-tune a model: ``deepspeed [--num_gpus N | --hostfile H] finetune/run.py --ds_config F --model DIR ...``."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, from a bare checkout too: finetune/ itself must not stand first on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from collections.abc import Sequence

from engine.config.cli import exit_process, parse_config, run_command
from engine.launch.arguments import enter
from finetune.config.run import FinetuneConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: _finetune(sys.argv[1:] if argv is None else argv))


def _finetune(argv: Sequence[str]) -> None:
    config = parse_config(FinetuneConfig, enter(argv), prog="run.py")
    if config.dry_run:
        from finetune.training.dry_run import dry_run

        dry_run(config)
        return
    from finetune.training.repeated import (
        finetune_all,  # torch takes seconds to import: not before the command line is right
    )

    finetune_all(config)


if __name__ == "__main__":
    exit_process(main())
