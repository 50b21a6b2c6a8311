"""Tasks by name."""

from __future__ import annotations

from finetune.tasks.base import Task
from finetune.tasks.classification import Classification

TASKS: dict[str, type[Task]] = {"classification": Classification}
