"""Predict with a fine-tuned model: ``python -m finetune.predict --model DIR --input F --output F``.

Plain torch on one device, in fp32; texts are read in chunks, so a file may be of any size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.config.cli import parse_config, run_command
from finetune.config.predict import PredictConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: _predict(sys.argv[1:] if argv is None else argv))


def _predict(argv: Sequence[str]) -> None:
    config = parse_config(PredictConfig, argv, prog="python -m finetune.predict")
    from finetune.inference.prediction import predict_file  # torch takes seconds to import

    predict_file(config)


if __name__ == "__main__":
    sys.exit(main())
