"""``python -m engine.report RUN... [--output report.html]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.config.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(lambda: _report(sys.argv[1:] if argv is None else argv))


def _report(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.report",
        description="Write what runs did as one HTML page: curves over each other, settings, data, hardware.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder: what --train.output names")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page (default: %(default)s)")
    options = parser.parse_args(argv)
    from engine.report.page import render_page  # torch takes seconds to import: not before the command line is right
    from engine.report.runs import load_runs
    from preprocess.drawing import require_matplotlib
    from preprocess.files import write_atomically

    output = Path(options.output)
    if output.is_dir() or not output.resolve().parent.is_dir():
        raise ValueError(f"--output {output}: give the name of a file in a folder that exists")
    require_matplotlib("the curves of a report are drawn with matplotlib: pip install matplotlib")
    runs = load_runs(options.runs)
    write_atomically(output, render_page(runs).encode())
    for run in runs:
        print(f"{run.name}: {run.status()}")
    print(f"wrote {output}")


if __name__ == "__main__":
    sys.exit(main())
