"""Predict with a fine-tuned model: ``python -m finetune.predict --model DIR --input F --output F``.

Plain torch on one device, in fp32; texts are read in chunks, so a file may be of any size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.cli import parse_config, run_command


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Label the lines of a file.

    Args:
        model: folder of a fine-tuned model, or run folder of a fine-tuning.
        input: tab-separated file with the column text_a and, for a model of pairs, text_b; others are left alone.
        output: file to write: a first line with the names of the columns, then a line for each line of the input.
        columns: names of the columns, for a file whose first line does not name them, such as text_a,text_b.
        probabilities: write a column probability_LABEL for each class too.
        batch_size: lines per forward pass.
    """

    model: str
    input: str
    output: str
    columns: str | None = None
    probabilities: bool = False
    batch_size: int = 32

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        return [f"batch_size is {self.batch_size}; it must be at least 1"] if self.batch_size < 1 else []


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: _predict(sys.argv[1:] if argv is None else argv))


def _predict(argv: Sequence[str]) -> None:
    config = parse_config(PredictConfig, argv, prog="python -m finetune.predict")
    from finetune.prediction import predict_file  # torch takes seconds to import

    predict_file(config)


if __name__ == "__main__":
    sys.exit(main())
