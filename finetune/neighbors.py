"""Find the words nearest to a word: ``python -m finetune.neighbors --model DIR --words river,bank [--sentence TEXT]``.

By the embedding table, or, with a sentence, by the vectors that candidates get in the place of the word.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.config.cli import parse_config, run_command
from finetune.config.embedding import NeighborsConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: _neighbors(sys.argv[1:] if argv is None else argv))


def _neighbors(argv: Sequence[str]) -> None:
    config = parse_config(NeighborsConfig, argv, prog="python -m finetune.neighbors")
    from finetune.inference.neighbors import write_neighbors  # torch takes seconds to import

    write_neighbors(config)


if __name__ == "__main__":
    sys.exit(main())
