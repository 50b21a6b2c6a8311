"""Write vectors of texts or tokens: ``python -m finetune.embed --model DIR --input F --output F.npy``.

Plain torch on one device, in fp32; texts are read in chunks, so a file may be of any size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.config.cli import parse_config, run_command
from finetune.config.embedding import EmbedConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: _embed(sys.argv[1:] if argv is None else argv))


def _embed(argv: Sequence[str]) -> None:
    config = parse_config(EmbedConfig, argv, prog="python -m finetune.embed")
    from finetune.inference.embedding import embed_file  # torch takes seconds to import

    embed_file(config)


if __name__ == "__main__":
    sys.exit(main())
