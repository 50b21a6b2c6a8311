"""``python -m engine.plan --model gpt2-xl --gpus 64 --gpu_memory 80``: does it fit, and how long will it take."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from engine.config.cli import UsageError, parse_config, run_command
from engine.plan.config import NOT_PLANNED, PlanConfig

EXIT_DOES_NOT_FIT = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 where the run fits, 1 where it does not, 2 for a mistake."""
    return run_command(lambda: _plan(sys.argv[1:] if argv is None else argv))


def _plan(argv: Sequence[str]) -> int:
    config = parse_config(PlanConfig, argv, prog="engine.plan")
    given = [name for name in NOT_PLANNED if any(word.partition("=")[0] == f"--{name}" for word in argv)]
    if given:
        raise UsageError("\n".join(f"--{name}: a plan does not depend on it; leave it out" for name in given))
    from engine.plan.page import as_json, as_text  # torch takes seconds to import: not before the settings are right
    from engine.plan.planning import make_plan

    plan = make_plan(config)
    print(json.dumps(as_json(plan), indent=2) if config.json else as_text(plan))
    return 0 if plan.best.fits else EXIT_DOES_NOT_FIT


if __name__ == "__main__":
    sys.exit(main())
