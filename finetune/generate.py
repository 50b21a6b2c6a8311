"""Generate text: ``python -m finetune.generate --model DIR --input F --output F``, or ``--prompt TEXT``.

A GPT-2 goes on where each prompt ends; a model that was fine-tuned by the task lm or seq2seq does what it learned.
Plain torch on one device, in fp32.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.config.cli import parse_config, run_command
from finetune.config.generate import GenerateConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: _generate(sys.argv[1:] if argv is None else argv))


def _generate(argv: Sequence[str]) -> None:
    config = parse_config(GenerateConfig, argv, prog="python -m finetune.generate")
    from finetune.inference.text_generation import generate_file  # torch takes seconds to import

    generate_file(config)


if __name__ == "__main__":
    sys.exit(main())
