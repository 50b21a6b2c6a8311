"""Check the settings of fine-tunings before any of them starts. Never imports torch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config.cli import UsageError, parse_config
from engine.downstream.process import write_settings
from finetune.config.run import FinetuneConfig

OURS = ("output", "config", "dry_run", "local_rank", "profile")  # what the settings of a fine-tuning may not say


def settings_problems(settings: Mapping[str, Any], owner: str) -> list[str]:
    """Everything that finetune/run.py would say of these settings before it reads a file.

    Args:
        settings: as a tree.
        owner: who sets what they may not say.
    """
    found = [f"{key} is given; {owner} sets it" for key in OURS if key in settings]
    train = settings.get("train")
    if isinstance(train, Mapping) and "output" in train:
        found.append(f"train.output is given; {owner} sets it")
    if found:
        return found
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.yaml"
        write_settings(file, settings)
        try:
            return parse_config(FinetuneConfig, ["--config", str(file)], prog="run.py").problems()
        except UsageError as error:
            return [line.removeprefix(f"--config {file}: ") for line in str(error).splitlines()]
