"""Fill masks: ``python -m finetune.fill_mask --model DIR --input F --output F``, or ``--text TEXT``.

Plain torch on one device, in fp32.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.config.cli import parse_config, run_command
from finetune.config.generate import FillMaskConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: _fill(sys.argv[1:] if argv is None else argv))


def _fill(argv: Sequence[str]) -> None:
    config = parse_config(FillMaskConfig, argv, prog="python -m finetune.fill_mask")
    from finetune.inference.mask_filling import fill_file  # torch takes seconds to import

    fill_file(config)


if __name__ == "__main__":
    sys.exit(main())
